"""The box at the top of a page: the right numbers of the right files, and nothing made up where a file is missing."""

import json
import re

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_markdown_cell, new_notebook

from dfd import config
from dfd.reports import html


def number(value):
    return {"value": value, "low": value - 0.1, "high": value + 0.05}


@pytest.fixture
def box(tmp_path):
    """Makes the box of a notebook in a run folder, its lines joined."""
    told = "- **Not shown:** before.\n- **Learnt:** a.\n- **Not shown:** `why` it <b>fails."  # the last one counts
    cells = [new_markdown_cell("# Title"), new_markdown_cell(told)]
    nb = new_notebook(cells=cells)
    nb.metadata["papermill"] = {"start_time": "2026-01-02T03:04:05+00:00", "duration": 75.2}

    def make(stem, **options):
        nbformat.write(nb, tmp_path / f"{stem}.ipynb")
        return re.sub(r"\s*\n\s*", "", html.box(tmp_path / f"{stem}.ipynb", **options))

    return make


def manifest(out, groups, sources=0, photos=0):
    rows = {"label": "ProGAN", "split": "test", "group": [f"g{i}" for i in range(groups)]}
    rows |= {"source": [f"s{i % sources}" for i in range(groups)]} if sources else {}
    train = pd.DataFrame({"label": ["RealPhotos"] * 3, "split": "train", "group": "t"})
    test = pd.DataFrame({"label": "RealPhotos", "split": "test", "group": [f"p{i}" for i in range(photos)]})
    test = test.assign(source=test["group"]) if sources else test
    pd.concat([pd.DataFrame(rows), train, test]).to_parquet(out / "manifest.parquet")


def shown(page):
    """Label -> value and interval of each card, as text."""
    cards = (
        r'class="value">(.*?)</div><div>(.*?)</div>(?:<div class="interval">95 % interval (.*?) to (.*?)</div>)?</div>'
    )
    return {label: (value, low, high) for value, label, low, high in re.findall(cards, page)}


def test_sources_left_out_come_first_on_the_page_and_on_the_index(box, tmp_path):
    held = {"value": 0.9301, "deviation": 0.08, "worst": 0.6149, "draws": 40}
    stages = {"stage1": "auc", "stage2": "accuracy"}
    metrics = {
        stage: {"test": {name: number(0.99)}, "hold_outs": {"as it is": {name: held}}} for stage, name in stages.items()
    }
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    for stem, label in (("01_stage1_real_fake", "AUC"), ("02_stage2_attribution", "Balanced accuracy")):
        page = box(stem)
        first, second = re.findall(r'class="value">(.*?)</div><div>(.*?)</div>', page)[:2]
        assert first == ("0.930", f"{label} on sources left out") and second[0] == "0.990"
        assert page.count("mean of 40 joint hold-outs, the worst 0.615") == 1
    index = re.sub(r"\s+", " ", html.write_index(tmp_path).read_text())
    assert index.index("Real or fake, on sources left out: AUC") < index.index("Real or fake: AUC")
    assert (
        index.count("mean of 40 joint hold-outs, the worst 0.615") == 2 and "whose sources may have been in it" in index
    )
    metrics["stage1"]["test"] |= {"real_accuracy": number(0.8), "fake_accuracy": number(0.7)}
    when = {"00_eda": {"ended": "2026-01-02"}, "01_stage1_real_fake": {"ended": "2026-01-01"}}
    stale = html.fill("ran.txt.j2", metrics=metrics, config={"notebooks": when}, out="o", index="i")
    assert "Found" not in stale and "Next: train with" in stale  # notebook 00 ran again, on other images
    when = {stem: {"ended": "2026-01-02", "status": "finished"} for stem in ("00_eda", "01_stage1_real_fake")}
    for entry in ({"ended": "2026-01-01", "status": "finished"}, {"status": "interrupted"}):
        record = {"notebooks": when | {"02_stage2_attribution": entry}}
        half = html.fill("ran.txt.j2", metrics=metrics, config=record, out="o", index="i")
        assert "real or fake AUC 0.930" in half and "which generator" not in half and "Next: judge" in half
        (tmp_path / "config.json").write_text(json.dumps(record))
        index = html.write_index(tmp_path).read_text()
        assert "which generator: notebook 00 ran again" in index or "which generator: its numbers below may be" in index
        assert "real or fake: " not in index
    (tmp_path / "config.json").unlink()
    told = html.fill("ran.txt.j2", metrics=metrics, out="o", index="i").strip().splitlines()
    assert told[0] == (
        "Found on sources left out, by joint hold-outs: real or fake AUC 0.930 (worst of 40 0.615); "
        "which generator, balanced accuracy 0.930 (worst of 40 0.615)."
    ) and told[1].startswith("Found on test images: real or fake AUC 0.990")
    assert "photos called real 0.800" in told[1] and "fakes called fake 0.700" in told[1]
    (tmp_path / "metrics.json").write_text(json.dumps({"stage1": {"test": {"auc": number(0.99)}}}))
    assert "sources left out" not in box("01_stage1_real_fake") + html.write_index(tmp_path).read_text()


@pytest.mark.parametrize("stem", [*config.NOTEBOOKS, "07_own"])
def test_an_empty_run_folder_gives_an_empty_box(box, stem):
    page = box(stem)
    assert shown(page) == {} and page.count("<li>") == 1 and "Data" not in page
    assert "<dd>2026-01-02 03:04 UTC; took 1:15</dd>" in page
    assert "<li>Not shown here: <code>why</code> it <b>fails." in page


def test_the_run_names_what_differs_from_the_defaults_and_the_data_its_splits(box, tmp_path):
    parameters = {"data": "d", "out": "o", "seed": 0, "num_epochs": 3, "crops": 5}
    record = {"data": "<d>", "profile": "quick", "notebooks": {"01_stage1_real_fake": {"parameters": parameters}}}
    (tmp_path / "config.json").write_text(json.dumps(record))
    manifest(tmp_path, 2)
    page = box("01_stage1_real_fake")
    assert "profile quick; with num_epochs = 3</dd>" in page
    assert (
        "<dd>&lt;d&gt;: 5 images (3 RealPhotos, 2 ProGAN) in 3 groups; 2 images in 2 groups are kept for the test</dd>"
        in page
    )


def test_few_test_groups_are_a_caveat_and_many_are_none(box, tmp_path):
    assert not any("test split has" in box(stem) for stem in ("01_stage1_real_fake", "02_stage2_attribution"))
    manifest(tmp_path, 19, photos=40)
    told = "<li>The test split has photos of 40 and fakes of 19 independent groups, so every interval on them is crude."
    assert told in box("01_stage1_real_fake")
    manifest(tmp_path, 20, photos=20)
    assert "independent groups" not in box("01_stage1_real_fake")
    manifest(tmp_path, 60, 7, photos=40)
    why = ": what needs a class of fewer than 8 has no interval.</li>"
    assert f"<li>The test split has photos of 40 and fakes of 7 sources{why}" in box("01_stage1_real_fake")
    assert f"<li>The test split has of each generator 7 sources at least{why}" in box("02_stage2_attribution")
    manifest(tmp_path, 60, 30, photos=3)
    assert "photos of 3 and fakes of 30" in box("03_robustness") and "30 s" not in box("02_stage2_attribution")


def test_each_stage_shows_its_test_numbers_and_the_worst_generator(box, tmp_path):
    recalls = {name: {"recall": number(value)} for name, value in (("A", 0.9), ("B", 0.4), ("C", 0.6))}
    stages = {
        "stage1": {"val": {"auc": number(0.1)}, "test": {"auc": number(0.8), "real_accuracy": number(0.7)}},
        "stage2": {"test": {"accuracy": number(0.6), "by_generator": recalls}},
        "audit": {"stage1": {"auc": number(0.5)}},
    }
    (tmp_path / "metrics.json").write_text(json.dumps(stages))
    first = shown(box("01_stage1_real_fake"))
    assert [value for value, _, _ in first.values()] == ["0.800", "0.700"]
    assert first["AUC on the test images"][1:] == ("0.700", "0.850")
    assert shown(box("02_stage2_attribution"))["Likeliest name right, of the worst generator, B"][0] == "0.400"
    assert [value for value, _, _ in shown(box("00_eda")).values()] == ["0.500"]
    assert shown(box("00_eda", error={"cell": 3, "text": "no"})) == {}


def test_an_interval_of_no_width_is_not_shown_as_certainty(box, tmp_path):
    all_right = {"value": 1.0, "low": 1.0, "high": 1.0}
    (tmp_path / "metrics.json").write_text(json.dumps({"stage1": {"test": {"real_accuracy": all_right}}}))
    assert list(shown(box("01_stage1_real_fake")).values()) == [("1.000", "", "")]


def test_robustness_names_the_worst_conditions(box, tmp_path):
    worst = {"condition": "blur 2", "value": 0.5, "low": 0.05, "high": 0.6}
    section = {"stage1_false_positive_rate": {"as_it_is": worst | {"value": 0.1}, "worst": worst}}
    (tmp_path / "metrics.json").write_text(json.dumps({"robustness": section}))
    content = box("03_robustness")
    assert shown(content) == {"Stage 1: photos called fake, worst at blur 2": ("0.500", "0.050", "0.600")}
    assert "<li>The worst of several conditions" in content


def test_mistakes_are_one_minus_the_accuracies_and_so_are_their_intervals(box, tmp_path):
    section = {"accuracy_at_threshold": {"value": 0.6, "low": 0.2, "high": 0.9}, "fake_accuracy": number(0.8)}
    (tmp_path / "metrics.json").write_text(
        json.dumps({"stage1": {"test": section, "val": {"real_accuracy": number(0.3)}}})
    )
    first = shown(box("04_error_analysis"))
    assert first["Stage 1: images wrong"] == ("0.400", "0.100", "0.800")
    assert list(first) == ["Stage 1: images wrong", "Stage 1: fakes called photos"]
    record = {"notebooks": {"04_error_analysis": {"parameters": {"split": "val"}}}}
    (tmp_path / "config.json").write_text(json.dumps(record))
    assert list(shown(box("04_error_analysis"))) == ["Stage 1: photos called fake"]
