"""Runs beside one another: paired intervals, changed verdicts, and folders that cannot be compared."""

import re

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from score_tables import noisy_table, stage1_table, stage2_table

from dfd import cli
from dfd.evaluate import compare
from dfd.evaluate import metrics as metrics_module
from dfd.reports import html


def stage2(seed=0):
    return stage2_table(seed, images=30).assign(path=lambda rows: [f"{i}.png" for i in range(len(rows))])


def write(folder, stage1=None, stage2=None, hashes=None):
    """A run folder of fabricated tables."""
    folder.mkdir(parents=True, exist_ok=True)
    for stage, table in (("stage1", stage1), ("stage2", stage2)):
        if table is not None:
            table.to_parquet(folder / f"scores_{stage}.parquet", index=False)
    if hashes is not None:
        pd.DataFrame({"path": list(hashes), "sha256": list(hashes.values())}).to_parquet(folder / "manifest.parquet")
    return folder


def worse(table, shift=1.0, seed=1):
    """The same images by a detector whose logits are off by some noise of its own."""
    logits = table["logit_fake"] + np.random.default_rng(seed).normal(0, shift, len(table))
    called = np.where(logits > 0, "fake", "real")
    return table.assign(logit_fake=logits, prediction=called, answer=called)


@pytest.fixture
def runs(tmp_path):
    table = noisy_table()
    return write(tmp_path / "a", table, stage2()), write(tmp_path / "b", worse(table), stage2(1))


def test_the_metrics_are_those_of_each_runs_own_metrics(runs):
    (found,) = compare.compare(runs)
    for stage, name in (("stage1", "a"), ("stage2", "b")):
        expected = metrics_module.evaluate(pd.read_parquet(runs[name == "b"] / f"scores_{stage}.parquet"), 1.0)
        metrics = found.stages[stage].metrics
        assert list(metrics.index) == list(compare.COMPARED[stage])
        for metric, value in metrics["base" if name == "a" else "other"].items():
            assert value == pytest.approx(expected[metric]["value"])
        assert np.allclose(metrics["other"] - metrics["base"], metrics["difference"])


def test_the_paired_interval_is_narrower_than_the_unpaired_one_on_scores_that_go_together(tmp_path):
    table = noisy_table()
    slight = worse(table, shift=0.3)
    (found,) = compare.compare([write(tmp_path / "a", table), write(tmp_path / "b", slight)])
    auc = found.stages["stage1"].metrics.loc["auc"]
    alone = [metrics_module.evaluate(one, 1.0, only=["auc"])["auc"] for one in (table, slight)]
    unpaired = np.hypot(*(one["high"] - one["low"] for one in alone))
    assert 0 < auc["high"] - auc["low"] < 0.5 * unpaired


def test_another_seed_draws_other_resamples(runs):
    first, again, other = (compare.compare(runs, seed)[0].stages["stage1"].metrics.loc["auc"] for seed in (0, 0, 1))
    assert first.equals(again) and first["difference"] == other["difference"] and first["low"] != other["low"]


def test_the_interval_is_that_of_accuracy_differences_over_groups():
    """Of equal groups the mean difference has the standard error of the groups' own mean differences."""
    first, second = noisy_table(images=900), worse(noisy_table(images=900))
    true = np.where(first["label"] == "RealPhotos", "real", "fake")
    gain = (second["prediction"] == true).astype(int) - (first["prediction"] == true).astype(int)
    error = gain.groupby(first["group"]).mean().sem()
    row = compare.differences(first, second, "stage1").loc["accuracy_at_threshold"]
    assert row["difference"] == pytest.approx(gain.mean())
    assert (row["high"] - row["low"]) / (2 * 1.96 * error) == pytest.approx(1, abs=0.12)


def test_runs_are_compared_over_sources_where_these_are_known(tmp_path, runs):
    first, second = (pd.read_parquet(run / "scores_stage1.parquet") for run in runs)
    sources = first["label"] + (first.index // 3 % 10).astype(str)
    known = [write(tmp_path / f"{i}", table.assign(source=sources)) for i, table in enumerate((first, second))]
    by_hand = [write(tmp_path / f"hand{i}", table.assign(group=sources)) for i, table in enumerate((first, second))]
    paired, expected = (compare.compare(folders)[0].stages["stage1"] for folders in (known, by_hand))
    assert (paired.groups, paired.unit) == (30, "source")
    pd.testing.assert_frame_equal(paired.metrics, expected.metrics)


def test_differences_of_a_class_of_few_groups_have_no_interval():
    table = noisy_table()
    photos = table.index[table["label"] == "RealPhotos"]
    few = table.assign(group=np.arange(len(table))).drop(photos[7:])
    found = compare.differences(few, worse(few), "stage1")
    assert found["low"].notna().to_dict() == {
        name: name in ("accuracy_at_threshold", "fake_accuracy", "fakes_passed")  # unsure is 0 in all draws
        for name in compare.COMPARED["stage1"]
    }
    assert found["difference"].notna().all()


def test_changed_verdicts_are_found_and_named(tmp_path):
    logits = [2, 2, -2, -2, 2, -2]
    labels = ["ProGAN", "RealPhotos", "ProGAN", "RealPhotos", "BigGAN", "BigGAN"]
    first, second = stage1_table(logits, labels), stage1_table([2, -2, 2, 2, 2, -2], labels)
    (found,) = compare.compare([write(tmp_path / "a", first), write(tmp_path / "b", second)])
    assert found.stages["stage1"].changed.to_dict("records") == [
        {"path": "RealPhotos/3.png", "label": "RealPhotos", "base": "real", "other": "fake", "change": "broken"},
        {"path": "ProGAN/2.png", "label": "ProGAN", "base": "real", "other": "fake", "change": "mended"},
        {"path": "RealPhotos/1.png", "label": "RealPhotos", "base": "fake", "other": "real", "change": "mended"},
    ]
    assert "\n  3 verdicts of 6 changed: 2 mended, 1 broken.\n" in html.fill("compare.txt.j2", comparison=found)


def test_two_wrong_names_are_neither_mended_nor_broken(tmp_path):
    tables = [stage2().assign(label="ProGAN", prediction=name) for name in ("BigGAN", "StyleGAN2")]
    (found,) = compare.compare([write(tmp_path / str(i), stage2=table) for i, table in enumerate(tables)])
    assert found.stages["stage2"].changed["change"].tolist() == ["right in neither"] * 30
    assert found.missing == {"stage1": "no score table in 0 and 1"}


def test_only_images_that_both_tested_as_they_are_count_and_the_others_are_counted(tmp_path):
    table = noisy_table(60)
    extra = table.assign(degradation="jpeg", level=50.0, logit_fake=-table["logit_fake"])
    table = pd.concat([table, extra, table.assign(split="val", path="v" + table["path"])], ignore_index=True)
    clean = table["degradation"].eq("none") & table["split"].eq("test")
    names = table["path"][clean].to_list()
    hashes = dict(zip(names, names, strict=True))
    other = table.drop(index=table.index[clean][:7])
    other.loc[other.index[-1], "label"] = "BigGAN"
    other.loc[clean & (table["path"] == names[20]), "label"] = "Other"
    one = write(tmp_path / "a", table, hashes=hashes)
    two = write(tmp_path / "b", other, hashes=hashes | {names[30]: "changed", names[31]: "changed"})
    (found,) = compare.compare([one, two])
    stage1 = found.stages["stage1"]
    assert stage1.images == 60 - 7 - 3
    assert stage1.unshared == {"only in a": 7, "of the same name, but with other content or another label": 3}
    assert stage1.changed.empty and stage1.metrics["difference"].eq(0).all()
    text = html.fill("compare.txt.j2", comparison=found)
    assert "50 test images" in text and "7 only in a" in text and "leave the intervals rough" in text


@pytest.mark.parametrize("finer", [0, 1])
def test_images_are_drawn_in_the_groups_of_the_run_with_the_fewer(finer, tmp_path):
    tables = [noisy_table(60).assign(group=np.arange(60) // images) for images in (2, 6)]
    if finer:
        tables.reverse()
    (found,) = compare.compare([write(tmp_path / "a", tables[0]), write(tmp_path / "b", tables[1])])
    assert (found.stages["stage1"].groups, found.stages["stage1"].unit) == (10, "group")


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["a"], "two run folders or more"),
        (["a", "a/../a"], "named twice"),
        (["a", "nowhere"], "no folder .*nowhere"),
        (["a", "empty"], "empty is no finished run.*scores_stage1.parquet"),
        (["a", "strangers"], "a and strangers cannot be compared.*no test image in common"),
        (["a", "broken"], "broken.scores_stage1.parquet is damaged"),
        (["a", "stopped"], "stopped: its scores may be of an earlier run; run notebook 01 to its end"),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_line(folders, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = noisy_table(30)
    write(tmp_path / "a", table)
    write(tmp_path / "strangers", table.assign(path="x" + table["path"]))
    write(tmp_path / "empty")
    record = '{"notebooks": {"00_eda": {"status": "failed"}, "01_stage1_real_fake": {"status": "%s"}}}'
    for name, status in (("a", "finished"), ("stopped", "interrupted")):
        write(tmp_path / name, table).joinpath("config.json").write_text(record % status)
    write(tmp_path / "broken").joinpath("scores_stage1.parquet").write_bytes(b"no table")
    result = CliRunner().invoke(cli.main, ["compare", *folders])
    assert result.exit_code == 2 and result.output.count("\n") == 1
    assert re.search(message, result.output)


def test_the_command_prints_and_writes_what_it_found(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    third = write(tmp_path / "c", worse(noisy_table(), seed=2).assign(label=lambda rows: rows["label"]))
    result = CliRunner().invoke(cli.main, ["compare", "a", "b", "c", "--out", "page.html"])
    assert result.exit_code == 0, result.output
    first, second = compare.compare([*runs, third])
    assert "b beside a" in result.output and "c beside a" in result.output
    assert "Stage 2, which generator: not compared, no score table in c" in result.output
    auc = first.stages["stage1"].metrics.loc["auc"]
    assert re.search(rf"AUC +{auc['base']:.3f} +{auc['other']:.3f} +{auc['difference']:+.3f} \[", result.output)
    sizes = [len(stage.changed) for one in (first, second) for stage in one.stages.values()]
    assert max(sizes) > 10
    assert result.output.count("… and ") == sum(size > 10 for size in sizes)
    page = (tmp_path / "page.html").read_text()
    assert "<script" not in page and "default-src 'none'" in page and f"{auc['difference']:+.3f}" in page
    assert first.stages["stage1"].changed["path"][0] in page


def test_names_of_runs_are_escaped_on_pages_and_control_characters_of_images_in_the_terminal(tmp_path):
    table = noisy_table(30).assign(path=lambda rows: "<i>\x1b" + rows["path"])
    (found,) = compare.compare([write(tmp_path / "<b>", table), write(tmp_path / "c", worse(table).iloc[1:])])
    page = html.render(tmp_path / "page.html", "compare.html.j2", comparisons=[found]).read_text()
    assert "1 only in &lt;b&gt;" in page and "in <b>" not in page and "<i>" not in page
    text = html.fill("compare.txt.j2", comparison=found)
    assert "1 only in <b>" in text and r"<i>\x1b" in text and "\x1b" not in text


def test_an_undefined_metric_is_a_dash(tmp_path):
    photos = noisy_table(30).assign(label="RealPhotos")
    (found,) = compare.compare([write(tmp_path / name, photos) for name in "ab"])
    row = found.stages["stage1"].metrics.loc["auc"]
    assert np.isnan(row["difference"]) and re.search(r"AUC +– +– +–\n", html.fill("compare.txt.j2", comparison=found))
    assert (
        "<td>–</td>\n<td></td>"
        in html.render(tmp_path / "page.html", "compare.html.j2", comparisons=[found]).read_text()
    )


def test_runs_of_one_name_are_told_by_their_paths(tmp_path):
    folders = [write(tmp_path / name / "run", noisy_table(30)) for name in "ab"]
    (found,) = compare.compare(folders)
    assert [found.base, found.other] == [str(folder) for folder in folders]


def test_a_run_of_an_earlier_version_without_a_manifest_is_compared_by_paths(tmp_path):
    table = noisy_table(60)
    first = write(tmp_path / "a", table, hashes=dict.fromkeys(table["path"], "x"))
    (found,) = compare.compare([first, write(tmp_path / "b", table.drop(columns="answer"))])
    assert found.stages["stage1"].images == 60 and found.stages["stage1"].changed.empty
