"""The script that tunes CLIP's trunk, and the one that makes the detector of what it leaves."""

import sys

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score

from dfd import config
from dfd.data import manifest
from dfd.inference import Stage
from dfd.models import clip

sys.path.insert(0, str(config.ROOT / "scripts"))
import ship_detector
import tune_clip


def arrays(path):
    with np.load(path) as file:
        return dict(file)


def test_subjects_come_as_often_among_photos_as_among_fakes():
    labels = ["RealPhotos"] * 30 + ["ProGAN"] * 30
    table = pd.DataFrame({"label": labels, "source": ["a"] * 10 + ["b"] * 20 + ["c"] * 30})
    table["is_fake"] = table["label"] != "RealPhotos"
    subject = np.r_[np.arange(30) % 3 == 0, np.arange(30) % 3 > 0].astype(int)  # a third of photos, two of fakes
    kept = np.arange(60) != 7
    weight = tune_clip.weights(table, subject, kept)
    sides = [[weight[side & (subject == s)].sum() for s in (0, 1)] for side in (table["is_fake"], ~table["is_fake"])]
    assert weight[7] == 0 and weight.sum() == pytest.approx(1)
    assert np.allclose(sides[0], sides[1], atol=0.02) and np.sum(sides[0]) == pytest.approx(0.5, abs=0.02)
    few = tune_clip.weights(table, np.zeros(60, int), np.arange(60) >= 0)
    assert few[:10].sum() / few[10:30].sum() == pytest.approx(2**-0.5, abs=0.01)  # sources by the root of their size


def test_items_are_made_ahead_and_errors_arrive():
    assert list(tune_clip.ahead(iter(range(5)))) == list(range(5))
    with pytest.raises(ZeroDivisionError):
        list(tune_clip.ahead(1 / n for n in (1, 0)))


@pytest.mark.slow
def test_a_tuned_run_goes_on_and_becomes_two_stages(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(clip, "NAME", "vit_tiny_patch16_224")
    monkeypatch.setattr(clip, "SIDE", 32)

    def trunk(blocks):
        torch.manual_seed(0)
        return clip.Trunk(blocks, pretrained=False)

    monkeypatch.setattr(tune_clip, "Trunk", trunk)
    monkeypatch.setattr(tune_clip, "uses_bfloat16", lambda device: False)  # its rounding is as large as two steps
    for name, value in {"DRAWS": 2, "SUBJECTS": 2, "PART": 3, "SPLITS": {"one": ["RealPhotos 1", "ProGAN 1"]}}.items():
        monkeypatch.setattr(tune_clip, name, value)
    sizes = tune_clip.Sizes(steps=2, batch=4, clean=1, degraded=1)
    data, out, rng = tmp_path / "images", tmp_path / "run", np.random.default_rng(0)
    rows = []
    for label in ("RealPhotos", "ProGAN", "BigGAN", "StyleGAN2"):
        (data / label).mkdir(parents=True)
        for number in range(4):
            file = f"{label}/{number}.png"
            Image.fromarray(rng.integers(0, 256, (128, 130, 3), dtype=np.uint8)).save(data / file)
            rows.append({"file": file, "label": label, "source": f"{label} {number % 2}"})
    pd.DataFrame(rows).to_csv(tmp_path / "provenance.csv", index=False)
    with pytest.raises(ValueError, match="no split is called two: one, unknown BigGAN"):
        tune_clip.main(data, out, sizes, ["two"])
    tune_clip.main(data, out, sizes, ["one"])
    split = arrays(out / "splits" / "one.npz")
    assert sorted(split["path"]) == [f"{label}/{n}.png" for label in ("ProGAN", "RealPhotos") for n in (1, 3)]
    assert split["stage1"].shape == (4, 4, 3, 1) and "one, 4 images, tuned, AUC" in capsys.readouterr().out
    assert not (out / "tuned.safetensors").exists()
    tune_clip.main(data, out, sizes)
    told, unknown = capsys.readouterr().out, arrays(out / "splits" / "unknown ProGAN.npz")
    known = arrays(out / "draws" / "01.npz")["path"]  # its draw's sources, and all of ProGAN
    assert set(unknown["path"]) == {*known, *(f"ProGAN/{n}.png" for n in range(4))}
    names = unknown["stage2"].mean(2)
    assert (names[..., 1] == -np.inf).all() and np.isfinite(names[..., [0, 2]]).all()
    fakes = [n for n, path in enumerate(unknown["path"]) if not path.startswith("RealPhotos")]
    is_unknown = [unknown["path"][n].startswith("ProGAN") for n in fakes]
    weight = [1.0 for _ in fakes]  # each source has two images
    auroc = roc_auc_score(is_unknown, -names[fakes, 0].max(-1), sample_weight=weight)
    assert f"unknown ProGAN, {len(fakes)} images, tuned, AUC as it is, JPEG 95, 75, 50: [{round(auroc, 3)}, " in told
    tuned, made = load_file(out / "tuned.safetensors"), (out / "tuned.safetensors").stat().st_mtime_ns
    assert any(values.abs().max() > 0 for name, values in tuned.items() if name.endswith("up"))
    before = arrays(out / "draws" / "01.npz")
    (out / "draws" / "01.npz").unlink()
    monkeypatch.setattr(tune_clip, "PART", 64)  # gradients of parts add up to that of the whole
    first = (out / "draws" / "00.npz").stat().st_mtime_ns
    monkeypatch.setattr(tune_clip, "EVERY", 1)
    steps, zoom = [], tune_clip.zoom

    def stopped(*crops):
        steps.append(1)
        if len(steps) == 2:
            raise KeyboardInterrupt
        return zoom(*crops)

    monkeypatch.setattr(tune_clip, "zoom", stopped)
    with pytest.raises(KeyboardInterrupt):
        tune_clip.main(data, out, sizes)
    assert (out / "draws" / "01.training.pt").exists()
    tune_clip.main(data, out, sizes)
    assert len(steps) == 3 and not list(out.rglob("*.training.pt"))  # the second step alone, and as without the stop:
    for name, values in arrays(out / "draws" / "01.npz").items():
        assert np.array_equal(values, before[name]) if name == "path" else np.allclose(values, before[name], atol=0.02)
    assert (out / "draws" / "00.npz").stat().st_mtime_ns == first
    assert (out / "tuned.safetensors").stat().st_mtime_ns == made

    provenance = pd.DataFrame(rows).rename(columns={"file": "path"})
    table = provenance.assign(is_fake=provenance["label"] != "RealPhotos", sha256=provenance["path"])
    table["split"] = ["train", "train", "val", "test"] * 4
    table = table.assign(width=32, height=32, jpeg_quality=None, group=table["path"])
    table.attrs["root"] = str(data)
    monkeypatch.setattr(manifest, "digest", lambda _: "digest")
    monkeypatch.setattr(clip, "weights_file", lambda: pytest.fail("weights were fetched"))
    clip.shared_trunk.cache_clear()
    monkeypatch.setattr(clip, "shared_trunk", lambda blocks, *_: clip.Trunk(blocks, pretrained=False))
    ship_detector.make_stage1(out, table, tuned)
    judged = pd.read_parquet(out / "hold_outs_stage1.parquet")
    opened = Stage.load(out / config.CHECKPOINTS["stage1"])
    assert opened.is_held_out and opened.settings["backbone"] == "clip-tuned"
    assert torch.equal(opened.backbone.head.weight, tuned["stage1.weight"])
    draw = arrays(out / "draws" / "00.npz")
    held = judged[(judged["draw"] == 0) & (judged["level"] == 75)].set_index("path")
    assert len([path for path in draw["path"] if path in held.index]) == 8
    assert sum(opened.likelihood["groups"]) == provenance["source"].nunique() and opened.rates
    assert opened.ood_threshold > 0 and len(opened.neighbours) == len(opened.neighbour_names) > 0
    assert np.allclose(held.loc[draw["path"], "logit_fake"], draw["stage1"][:, 2, :, 0].mean(-1), atol=1e-5)
    frozen = ship_detector.judged(out, table, ["real", "fake"], "frozen1")
    held, two = frozen[(frozen["draw"] == 0) & (frozen["level"] == 75)], draw["frozen1"][:, 2].mean(1)
    assert np.allclose(held.set_index("path").loc[draw["path"], "logit_fake"], two[:, 1] - two[:, 0], atol=1e-4)
    names = ship_detector.judged(out, table, ["BigGAN", "ProGAN", "StyleGAN2"], "stage2")
    named = names[(names["draw"] == 0) & (names["level"] == 50)].set_index("path")
    fakes = [path for path in draw["path"] if not path.startswith("RealPhotos")]
    assert named.index.tolist() == fakes and len(fakes) == 6
    expected = draw["stage2"][np.isin(draw["path"], fakes), 3].mean(1)
    assert np.allclose(named.filter(like="logit_"), expected, atol=1e-5)


def test_other_images_or_sources_are_not_gone_on_with(tmp_path, monkeypatch):
    """A corrected source would be judged by heads that saw it."""

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(tune_clip, "views", stop)
    sizes, rows = tune_clip.Sizes(), [("ProGAN/0.png", "ProGAN", "a"), ("RealPhotos/0.png", "RealPhotos", "b")]
    for source in ("a", "a", "corrected"):
        table = pd.DataFrame([(*rows[0][:2], source), rows[1]], columns=["file", "label", "source"])
        table.to_csv(tmp_path / "provenance.csv", index=False)
        expected = pytest.raises(ValueError, match="other images, labels or sources") if source == "corrected" else None
        with expected or pytest.raises(KeyboardInterrupt):
            tune_clip.main(tmp_path / "images", tmp_path / "run", sizes)


def test_zoom_enlarges_and_shows_a_part_of_those_that_are_chosen():
    crops = torch.rand(40, 3, 32, 32)
    which = torch.arange(40) % 2 == 0
    shown = tune_clip.zoom(crops, which)
    whole = torch.nn.functional.interpolate(crops, (clip.SIDE, clip.SIDE), mode="bicubic").clamp(0, 1)
    assert torch.allclose(shown[~which], whole[~which], atol=1e-4)
    ramp = torch.linspace(0.2, 0.8, 32).expand(40, 3, 32, 32)
    shown = tune_clip.zoom(ramp, which)
    spans = shown.amax((1, 2, 3)) - shown.amin((1, 2, 3))
    assert spans[~which].min() > 0.59 and 0.28 < spans[which].min() < 0.4 < spans[which].max() < 0.62
