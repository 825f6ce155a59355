"""The benchmarks: each row runs on tiny inputs, bars are read the right way, and runs are kept."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from benchmarks import (
    gpu,
    growth,
    measure,
    memory,
    networks,
    peers,
    pictures,
    predicting,
    scanning,
    speed,
    sweeping,
    training,
)
from dfd.data import manifest
from dfd.models import clip

TINY = {"pretrained": False, "batch_size": 4, "crop_size": 32, "num_epochs": 1, "workers": 0}
STAGES = {
    "stage1": {**TINY, "backbone": "test_resnet.r160_in1k", "launderer_width": 4, "adversarial_every": 2},
    "stage2": {**TINY, "backbone": "test_efficientnet.r160_in1k", "unet_width": 4, "carried_every": 2,
               "carried_weight": 0.5, "adversarial_weight": 0.1},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return pictures.folder(tmp_path_factory.mktemp("bench") / "data", 48, 64)


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(training, "WARM", 1)
    monkeypatch.setattr(training, "TIMED", 2)


def test_bars_are_floors_of_ratios_and_ceilings_of_everything_else():
    assert measure.Row("x", 0.91, 0.90).met and not measure.Row("x", 0.89, 0.90).met
    assert measure.Row("x", 1.9, 2, "s").met and not measure.Row("x", 2.1, 2, "s").met
    assert measure.Row("x", 5).met is None
    assert str(measure.Row("x", 0.89, 0.90)).split()[1:] == [">=", "0.9", "0.89", "of", "bare", "NOT", "MET"]
    assert "<= 2" in str(measure.Row("x", 1.9, 2, "s"))


def test_a_group_that_is_not_there_measures_and_keeps_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "HISTORY", tmp_path / "history.jsonl")
    ran = CliRunner().invoke(speed.main, ["--only", "growth"])
    assert ran.exit_code == 2 and "there are pictures, starting," in ran.output and not any(tmp_path.iterdir())


def test_both_sides_are_timed_in_turns_and_the_best_counts():
    order = []
    times = iter([9.0, 9.0, 3.0, 2.0, 4.0, 1.0])  # the first of each does not count

    def call(name):
        order.append(name)
        return next(times)

    row = measure.against("x", lambda: call("product"), lambda: call("bare"), 2)
    assert order == ["product", "bare"] * 3
    assert (row.seconds, row.bare_seconds, row.value) == (3.0, 1.0, 1 / 3)


def test_runs_are_kept_a_line_each(tmp_path):
    path = tmp_path / "new" / "history.jsonl"
    for value in (0.5, 0.95):
        measure.keep([measure.Row("x", value, 0.9)], path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["rows"][0]["met"] for line in lines] == [False, True]
    assert {"date", "commit", "machine", "load", "versions", "rows"} == set(lines[0])
    assert lines[0]["versions"]["torch"] == torch.__version__


def test_pictures_are_the_same_in_every_run(folder, tmp_path):
    again = pictures.folder(tmp_path, 48, 64)
    files = sorted(path.relative_to(folder) for path in folder.glob("*/*"))
    assert len(files) == 48 and {path.suffix for path in files} == {".jpg", ".png"}
    assert all((folder / path).read_bytes() == (again / path).read_bytes() for path in files)


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_bare_training_takes_the_same_passes_and_changes_nothing(stage, folder, short, monkeypatch):
    """Every pass of every network, by the images that it saw and whether it was trained on; never a step."""
    table, passes, steps = manifest.scan(folder, progress=False), {}, []
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *_: steps.append(kind))
    backward = torch.Tensor.backward

    def counted(loss, *given, inputs, **options):
        passes[kind].append(sum(one.numel() for one in inputs))
        backward(loss, *given, inputs=inputs, **options)

    monkeypatch.setattr(torch.Tensor, "backward", counted)
    for kind in (training.Timed, training.Bare, training.Loaded, training.Loaders):
        passes[kind] = []
        assert training.seconds(stage, table, kind, **STAGES[stage]) > 0
    assert passes[training.Timed] == passes[training.Bare] == passes[training.Loaded]
    assert len(passes[training.Bare]) > 4 and not passes[training.Loaders]
    assert set(steps) == {training.Timed, training.Loaded}


def test_the_feature_bank_is_held_against_as_many_crops_of_its_backbone(folder, monkeypatch):
    monkeypatch.setattr(clip, "NAME", "vit_tiny_patch16_224")
    monkeypatch.setattr(clip, "SIDE", 32)
    monkeypatch.setattr(clip, "shared_trunk", clip.shared_trunk.__wrapped__)
    crops, tokens = [], clip.Trunk.tokens
    monkeypatch.setattr(clip.Trunk, "tokens", lambda trunk, x: crops.append(len(x)) or tokens(trunk, x))
    table = manifest.scan(folder, progress=False).groupby("label").head(3)
    table.attrs["root"] = str(folder)
    row = training.of_bank(table, 1, pretrained=False, workers=0, crop_size=32)
    assert row.bar == 0.95 and row.value > 0
    assert sum(crops) == 4 * 12 * 5  # twice each: once to warm up, once that counts


def test_a_ratio_that_fell_by_more_than_a_tenth_is_named_with_the_last_one(tmp_path):
    """Of the same kind of machine, of ratios alone, and of each row the last that was kept."""
    rows = [("a", 1.0, "of bare"), ("b", 0.8, "of bare"), ("c", 9.0, "s")]
    kept = (("mine", "old", rows), ("mine", "new", rows[:1]), ("other", "x", [("a", 9.0, "of bare")]))
    entries = [dict(zip(("machine", "commit", "rows"), entry, strict=True)) for entry in kept]
    for entry in entries:
        entry["rows"] = [dict(zip(("what", "value", "unit"), row, strict=True)) for row in entry["rows"]]
    (path := tmp_path / "history.jsonl").write_text("\n".join(map(json.dumps, entries)) + "\n")
    now = [measure.Row("a", 0.89), measure.Row("b", 0.73), measure.Row("c", 1.0, unit="s"), measure.Row("d", 0.1)]
    assert measure.regressions(now, path, "mine") == ["a: 0.89, at commit new 1.00"]
    assert measure.regressions(now, tmp_path / "none.jsonl", "mine") == []


@pytest.mark.parametrize("work", ["scan", "predict", "sweep", "feature bank", "case"])  # score has tests of its own
def test_work_of_growth_takes_as_many_images_as_it_is_told(work, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("DFD_CACHE", str(tmp_path))  # which the scan sets anew
    growth.WORK[work](folder, 24, tmp_path)  # each asserts it


def test_growth_is_an_exponent_between_the_two_largest_sizes(tmp_path, monkeypatch):
    monkeypatch.setattr(growth.pictures, "folder", lambda *_: tmp_path)
    monkeypatch.setattr(growth, "PICTURE", tmp_path / "growth.png")
    monkeypatch.setattr(growth, "WORK", {"squares": lambda images, count, out: None})
    monkeypatch.setattr(growth.memory, "alone", lambda call: (1.0 + call.args[1] / 1000, call.args[1] ** 2 / 1e4))
    time, space = growth.rows(tmp_path, (10, 100, 1000))
    assert time.value == pytest.approx(2) and not time.met
    measure.keep([time, space], tmp_path / "kept.jsonl")  # as JSON, which knows none of NumPy's numbers
    assert space.value == pytest.approx(2 / 1.1) and (tmp_path / "growth.png").exists()


@pytest.mark.parametrize("peer", [peers.resnet, peers.ladeda])
def test_peers_answer_for_each_file_whatever_its_size(peer, folder, tmp_path):
    large = pictures.folder(tmp_path, 8, 256)
    answers = list(peer()([*sorted(folder.glob("*/*"))[:3], *sorted(large.glob("*/*"))[:2]]))
    assert len(answers) == 5 and len({float(np.ravel(answer)[0]) for answer in answers}) > 1


def test_a_peer_that_does_not_run_is_skipped_by_name(tmp_path, monkeypatch):
    def fail(call):
        raise RuntimeError

    monkeypatch.setattr(peers.memory, "alone", fail)
    rows = list(peers.rows(tmp_path, 8))
    assert len(rows) == len(peers.PEERS) and all("skipped" in row.what for row in rows)


def test_rows_of_scanning_and_sweeping_run(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(sweeping, "CONDITIONS", ("jpeg 75", "blur 1"))
    small = predicting.untrained(backbone="test_efficientnet.r160_in1k", unet_width=4)
    monkeypatch.setattr(sweeping, "untrained", lambda: small)
    monkeypatch.setattr(predicting, "untrained", lambda: small)
    first, second = scanning.rows(folder, 1)
    assert 0 < first.value and first.bar == 0.85 and second.bar is None
    monkeypatch.setattr(scanning, "MANY", 48)
    assert list(scanning.rows(folder, 1))[1].bar == 0.5
    monkeypatch.setattr(scanning, "HASHES", 200)
    assert list(scanning.long_rows(tmp_path))[-1].met
    (row,) = sweeping.rows(folder, 8, 1)
    assert 0 < row.value < 1.5 and "8 images x 3" in row.what
    (row,) = predicting.rows(folder, 4, 1)
    assert row.bar == 0.90 and row.seconds > 0


def test_rows_of_the_networks_compare_what_they_name(monkeypatch):
    seen = []
    monkeypatch.setattr(networks, "SHAPE", (2, 3, 32, 32))
    monkeypatch.setattr(networks, "step", lambda model, images, bfloat16: seen.append((model, images, bfloat16)))
    monkeypatch.setattr(torch, "compile", lambda model: ("compiled", model))
    assert len(list(networks.rows(1))) == 5
    sides = seen[0:20:4], seen[1:20:4]  # of each row; every side runs twice
    assert [(one[2], other[2]) for one, other in zip(*sides, strict=True)][:3] == [(False, True)] * 3
    for one, other in list(zip(*sides, strict=True))[3:]:
        assert one[2] == other[2]
        for (model, images, _), layout in ((one, torch.channels_last), (other, torch.contiguous_format)):
            assert images.is_contiguous(memory_format=layout)
            assert all(w.is_contiguous(memory_format=layout) for w in model.parameters() if w.ndim == 4)
    seen.clear()
    assert len(list(networks.long_rows(1))) == 3
    assert all(other[0] == ("compiled", one[0]) for one, other in zip(seen[::2], seen[1::2], strict=True))


@pytest.mark.slow
def test_rows_of_memory_run_in_processes_of_their_own(tmp_path):
    scan, score = memory.rows(tmp_path, 60, 20)
    assert 0.05 < scan.value < 2 and 0.05 < score.value < 2
    assert scan.unit == "GiB" and scan.met


@pytest.mark.slow
def test_rows_of_a_gpu_run_on_a_cpu(tmp_path, short, monkeypatch):
    monkeypatch.setattr(gpu, "untrained", lambda: predicting.untrained(backbone="test_efficientnet.r160_in1k"))
    shared = {key: STAGES["stage2"][key] for key in ("batch_size", "crop_size", "workers", "pretrained", "backbone")}
    found = list(gpu.rows(tmp_path, "cpu", 48, 64, "quick", **shared))
    assert [row.unit for row in found] == ["TFLOP/s", *["images/s", "%"] * 3]
    assert all(row.value > 0 for row in found)


def test_a_missing_gpu_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="leave --gpu out"):
        next(gpu.rows(tmp_path))


def test_the_command_prints_and_keeps_the_rows_of_a_group(tmp_path, monkeypatch):
    rows = {"one": [measure.Row("first", 1.0, 0.9)], "two": [measure.Row("second", 0.1, 0.9)]}
    monkeypatch.setattr(speed, "_groups", lambda *_: {name: iter(found) for name, found in rows.items()})
    monkeypatch.setattr(measure, "HISTORY", tmp_path / "runs.jsonl")
    result = CliRunner().invoke(speed.main, ["--only", "two"], catch_exceptions=False)
    assert "second" in result.output and "NOT MET" in result.output and "first" not in result.output
    (line,) = (tmp_path / "runs.jsonl").read_text().splitlines()
    assert [row["what"] for row in json.loads(line)["rows"]] == ["second"]
