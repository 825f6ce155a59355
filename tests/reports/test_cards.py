"""Model cards and the data sheet: numbers of the run's own files, and nothing where these are missing."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from nbconvert.filters import markdown2html
from score_tables import noisy_table

from dfd import config
from dfd.core import sha256_of
from dfd.data import manifest
from dfd.reports import cards, html, runner

STEMS = {"00_eda": config.Eda, "01_stage1_real_fake": config.Stage1}


def rows_of(text, heading):
    """The cells of the first table whose header starts with this word, by their first cell."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    end = next(i for i in range(start, len(lines) + 1) if i == len(lines) or not lines[i].startswith("|"))
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start:end]]
    return {row[0]: dict(zip(table[0][1:], row[1:], strict=True)) for row in table[2:]}


@pytest.fixture
def run(tmp_path):
    """A run folder as notebooks 00, 01 and 03 leave it, with fabricated numbers."""
    out = tmp_path / "out"
    (tmp_path / "images").mkdir()
    scores = noisy_table(90)
    table = pd.DataFrame({"path": [f"{label}/{i}.png" for i, label in enumerate(scores["label"])]})
    table["label"], table["group"] = scores["label"], scores["group"].astype(str)
    table["is_fake"] = table["label"] != "RealPhotos"
    table["split"] = np.where(scores["group"] < 10, "train", np.where(scores["group"] < 14, "val", "test"))
    table["width"], table["height"], table["format"] = 64, 48 + np.arange(90), "PNG"
    table["jpeg_quality"], table["sha256"] = np.nan, [f"{i:064x}" for i in range(90)]
    table["subsampling"], table["bytes"], table["phash"] = None, 100, None
    rejected = [{"path": f"ProGAN/_bad_|{i}.png", "reason": f"truncated: {i}"} for i in range(12)]
    for name in ("A/0.png", "A/1.png"):
        rejected.append({"path": name, "reason": f"near-duplicate of test image {name}x (same group)"})
    table.attrs = {"root": str(tmp_path / "images"), "layout": "one folder per class", "rejected": rejected}
    manifest.write(table, out)
    scores.assign(split=table["split"]).to_parquet(out / "scores_stage1.parquet")
    temperature = 1.7
    metrics = {"stage1": {"val": measured(0.1), "test": measured(0.2)}}
    audit = {"auc": {"value": 0.91, "low": 0.85, "high": 0.95}, "warning": "the format gives it away"}
    metrics |= {"audit": {"stage1": audit}, "notes": ["The fakes are *simulated*."]}
    (out / "metrics.json").write_text(json.dumps(metrics))
    parameters = {
        stem: json.loads(json.dumps(vars(cls(**{"data": "d", "out": "o"} | config.profile("quick", stem)))))
        for stem, cls in STEMS.items()
    }
    parameters["00_eda"] |= {"group_by": "source", "hold_out": ["it's, one", "two"]}
    parameters["01_stage1_real_fake"] |= {"num_epochs": 3, "lr_gc": 0.5, "adversarial": False}
    notebooks = {stem: {"parameters": one, "status": "finished", "ended": ""} for stem, one in parameters.items()}
    record = {"data": "d", "out": "o", "profile": "quick", "notebooks": notebooks}
    (out / "config.json").write_text(json.dumps(record))
    sweep = {"quality": [np.nan, 50], "auc": [0.9, 0.8], "auc_low": [0.85, 0.7], "auc_high": [0.95, 0.88]}
    pd.DataFrame(sweep).to_csv(out / "sweep_jpeg_stage1.csv", index=False)
    save(out, manifest_hash=manifest.digest(table), metrics=metrics["stage1"], temperature=temperature)
    return out


def measured(start):
    """Metrics in the form of metrics.json; each number is another one."""
    each = iter(np.arange(start, 1, 0.003).round(3).tolist())

    def three():
        return {"value": next(each), "low": next(each), "high": next(each)}

    names = ("auc", "accuracy", "real_accuracy", "fake_accuracy")
    by_generator = {label: {name: three() for name in names[:2] + names[3:]} for label in ("BigGAN", "ProGAN")}
    return {**{name: three() for name in names}, "by_generator": by_generator}


def save(out, **values):
    content = {
        "stage": "stage1",
        "weights": {"a": torch.zeros(3, 4), "b": torch.zeros(5)},
        "classes": ["real", "fake"],
        "preprocessing": {"crop_size": 64, "equalise_quality": 90, "mean": None, "std": None},
        "crops": 5,
        "crop_mode": "five",
        "threshold": 0.625,
        "operating_points": {"balanced": 0.625, "fpr_5": 0.8},
        "conformal_quantile": 1.0,
        "config": {"backbone": "tiny", "pretrained": False},
        "history": [{"score": 0.25}, {"score": 0.75}, {"score": 0.5}],
        "finished": True,
    }
    torch.save(content | values, out / "best_real_fake_model.pt")


def test_the_model_cards_numbers_are_those_of_the_files(run):
    assert cards.write(run) == {}
    text = (run / "model_card_stage1.md").read_text()
    scores = pd.read_parquet(run / "scores_stage1.parquet")
    metrics = json.loads((run / "metrics.json").read_text())["stage1"]
    table = rows_of(text, "metric")
    assert len(table) == len(metrics["test"]) - 1
    for split in ("val", "test"):
        auc = metrics[split]["auc"]
        assert table["auc"][split] == f"{auc['value']:.3f} [{auc['low']:.3f}, {auc['high']:.3f}]"
    recall = metrics["test"]["by_generator"]["ProGAN"]["fake_accuracy"]
    assert rows_of(text, "generator")["ProGAN"]["fake accuracy"].startswith(f"{recall['value']:.3f} [")
    assert "By JPEG quality: sweep_jpeg_stage1.csv" in text
    assert f"`best_real_fake_model.pt`, SHA-256 `{sha256_of(run / 'best_real_fake_model.pt')}`" in text
    test, table_of = scores[scores["split"] == "test"], manifest.load(run)
    assert "balanced 0.625, fpr 5 0.800." in text
    assert f"{len(test)} images in {test['group'].nunique()} groups" in text
    assert "from a bootstrap over groups of images that belong together." in text
    assert "- 4 independent groups of each class at least stand behind the test numbers; what needs" in text
    sources = table_of["label"] + (table_of.index // 3 % 9).astype(str)
    manifest.write(table_of.assign(source=sources), run)
    assert cards.write(run) == {}
    text = (run / "model_card_stage1.md").read_text()
    assert "bootstrap over sources." in text and "- 6 sources of each class at least stand" in text
    real = metrics["test"]["real_accuracy"]
    assert f"{real['value']:.3f} [{real['low']:.3f}, {real['high']:.3f}] was called real" in " ".join(text.split())
    for part in ("17 numbers in its weights", "score 0.750", "Trained for 3 epochs", "probability of 0.625"):
        assert part in text
    assert "AUC of 0.910 [0.850, 0.950]" in text and "the format gives it away" in text
    assert "Licence of this checkpoint: unknown" in text and "commit unknown" in text
    assert "<em>" not in markdown2html(text) and "**Warning:**" in text


def test_a_card_has_both_limits_whose_sources_were_seen_and_no_sweep_of_other_weights(run):
    table, metrics = manifest.load(run), json.loads((run / "metrics.json").read_text())
    is_new = (table["split"] == "test") & (table["label"] != "BigGAN")
    manifest.write(table.assign(source=np.where(is_new, "new", "old")), run)
    digest = manifest.digest(manifest.load(run))
    save(run, manifest_hash=digest, metrics=metrics["stage1"], temperature=1.0, band=[0.2, 0.7])
    record = json.loads((run / "config.json").read_text())
    newer = {"ended": "2026-01-03", "status": "finished"}
    entries = ({"ended": "2026-01-01"}, newer | {"status": "failed"}, {"status": "interrupted"}, newer)
    for entry, has_sweep in zip(entries, (False, False, False, True), strict=True):
        record["notebooks"]["01_stage1_real_fake"]["ended"] = "2026-01-02"
        record["notebooks"]["03_robustness"] = entry
        (run / "config.json").write_text(json.dumps(record))
        assert cards.write(run) == {}
        text = " ".join((run / "model_card_stage1.md").read_text().split())
        assert ("By JPEG quality: sweep_jpeg_stage1.csv" in text) == has_sweep
    assert "fake from 0.700, real below 0.200, and in between unsure" in text
    assert "Test holds whole sources, but those of BigGAN: such images" in text


def test_the_card_of_a_head_on_clip_says_what_it_rests_on(run):
    number = {"value": 0.93, "deviation": 0.08, "worst": 0.61, "draws": 40}
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["stage1"]["hold_outs"] = {"as it is": {"auc": number}, "jpeg 75": {"auc": number | {"value": 0.88}}}
    (run / "metrics.json").write_text(json.dumps(metrics))
    (run / "removal.csv").write_text("")
    clip = {"backbone": "clip", "pretrained": True}
    common = {"manifest_hash": manifest.digest(manifest.load(run)), "metrics": metrics["stage1"], "temperature": 1.0}
    save(run, config=clip, is_held_out=True, **common)
    assert cards.write(run) == {}
    text = " ".join((run / "model_card_stage1.md").read_text().split())
    assert rows_of((run / "model_card_stage1.md").read_text(), "condition") == {
        "as it is": {"AUC": "0.930", "deviation": "0.080", "worst": "0.610", "draws": "40"},
        "jpeg 75": {"AUC": "0.880", "deviation": "0.080", "worst": "0.610", "draws": "40"},
    }
    for part in ("linear discriminants on the class tokens", "resized to 224 x 224 before the",
                 "Fitted in closed form",
                 "fitted on train and val; the temperature and the thresholds are chosen on the joint hold-outs",
                 "Fitted on the joint hold-outs (balanced", "val was learnt from", "CLIP's, which OpenAI trained",
                 "was tested: see removal.csv"):  # fmt: skip
        assert part in text, part
    for part in ("ImageNet", "the epoch", "epochs", "fitted on val", "never resized"):
        assert part not in text, part
    save(run, config=clip | {"pretrained": False}, stage="stage2", classes=["A", "B"], ood_threshold=-2.5, **common)
    (run / "best_real_fake_model.pt").rename(run / "best_gfd2_model.pt")
    cards.write(run)
    text = " ".join((run / "model_card_stage2.md").read_text().split())
    assert "Weights are fitted on the fakes of train; the temperature" in text and "trained from random weights" in text
    assert "of whose names none has a logit of at least 2.500" in text and "carriers" not in text
    fitted = common | {"temperature": 1.7, "ood_threshold": 0.3, "conformal_quantile": 0.8}
    save(run, stage="stage2", classes=["A", "B"], **fitted)
    (run / "best_real_fake_model.pt").rename(run / "best_gfd2_model.pt")
    cards.write(run)
    text = (run / "model_card_stage2.md").read_text()
    for told in ("Temperature 1.700", "is above 0.300 is called unknown", "possible names: 0.800"):
        assert told in text
    save(run, stage="stage2", classes=["A", "B"], **common | {"finished": False, "conformal_quantile": None})
    (run / "best_real_fake_model.pt").rename(run / "best_gfd2_model.pt")
    assert cards.write(run) == {}  # after the first epoch nothing is fitted
    text = (run / "model_card_stage2.md").read_text()
    assert "training was not finished" in text and "possible names" not in text


def test_numbers_of_other_weights_or_another_manifest_are_left_out(run):
    save(run, manifest_hash="of another", metrics={"val": {"score": 1.0}}, temperature=1.0, finished=False)
    assert cards.write(run) == {}
    text = (run / "model_card_stage1.md").read_text()
    assert "training was not finished" in text and "metrics.json holds other numbers" in text
    assert "Not measured yet" in text and "| auc |" not in text and "| label |" not in text
    assert "`of another`" in text
    assert "Measured: not yet;" in text and "has not been tested here" in text and "the degradation (JPEG)" not in text
    assert "format gives it away" not in text and "AUC of 0.910" not in text  # of other images than it learnt from
    for stem in STEMS:
        record = json.loads((run / "config.json").read_text())
        record["notebooks"][stem] |= {"status": "interrupted"}
        (run / "config.json").write_text(json.dumps(record))
    assert cards.write(run) == {} and "Asked for" not in (run / "data_sheet.md").read_text()


def test_the_sheet_counts_what_the_manifest_holds(run):
    cards.write(run)
    text = (run / "data_sheet.md").read_text()
    table = manifest.load(run)
    assert f"Manifest: `{manifest.digest(table)}`" in text
    counts = rows_of(text, "label")
    for (label, split), part in table.groupby(["label", "split"]):
        assert counts[label][split] == str(len(part))
    part = table[table["label"] == "ProGAN"]
    assert rows_of(text, "label")["ProGAN"]["images"] == str(len(part))
    assert f"`{manifest.digest(table)}`" in text and "14 files were left out" in text and "- 12 truncated" in text
    assert "- 2 near-duplicate of test\n" in text
    assert text.count("truncated: ") == 10 and "The others are in rejected.csv" in text
    assert r"ProGAN/\_bad\_\|0.png" in text
    assert "Sources: unknown" in text and "Licence: unknown" in text
    assert "AUC 0.910 [0.850, 0.950]" in text and r"\*simulated\*" in text


def test_known_sources_and_licence_files_are_named(run):
    table = manifest.load(run)
    table["source"] = np.where(table["is_fake"], "made | here", "camera")
    manifest.write(table, run)
    for name in ("LICENCES.md", "ReadMe.txt", "notes.md"):
        (run.parent / "images" / name).write_text("")
    cards.write(run)
    text = (run / "data_sheet.md").read_text()
    assert r"| ProGAN | made \| here |" in text
    assert "holds LICENCES.md, ReadMe.txt; read" in text and "Licence: unknown" not in text


@pytest.mark.parametrize(
    "name", ["config.json", "metrics.json", "scores_stage1.parquet", "rejected.csv", "manifest.parquet"]
)
def test_a_missing_file_leaves_the_rest(run, name):
    cards.write(run)
    (run / name).unlink()
    assert cards.write(run) == {}
    assert (run / "model_card_stage1.md").exists()
    assert (run / "data_sheet.md").exists() == (name != "manifest.parquet")


def test_a_broken_file_is_named_and_takes_its_old_card_with_it(run):
    cards.write(run)
    (run / "best_real_fake_model.pt").write_bytes(b"no checkpoint")
    assert list(cards.write(run)) == ["model_card_stage1.md"]
    assert not (run / "model_card_stage1.md").exists() and (run / "data_sheet.md").exists()


def test_the_end_of_a_run_writes_and_links_them_and_an_empty_one_has_none(run, tmp_path, capsys):
    made_with = {"dfd": "1", "python": "3", "device": "cpu", "written": "2026-01-01T00:00"}
    runner.finish(run, json.loads((run / "config.json").read_text()), made_with)
    told = json.loads((run / "environment.json").read_text())
    assert told == made_with | {"manifest": manifest.digest(manifest.load(run))}
    page = (run / "index.html").read_text()
    assert 'href="model_card_stage1.md">Model card' in page and 'href="data_sheet.md">Data sheet' in page
    assert "model_card_stage2" not in page
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "best_gfd2_model.pt").write_bytes(b"no checkpoint")
    runner.finish(tmp_path / "empty", {"notebooks": {}}, made_with)
    assert "model_card_stage2.md was not written: " in capsys.readouterr().out
    assert "Model card" not in html.write_index(tmp_path / "empty").read_text()


def test_a_name_makes_no_link():
    assert "<a" not in markdown2html(cards.markdown("[click](page.html)"))
