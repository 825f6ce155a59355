"""Is the residual a fingerprint? Planted patterns are found again, pairs keep groups apart, figures show numbers."""

import io
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import nn

from dfd import plots
from dfd.analysis import explain, fingerprint
from dfd.data import crops as crops_module
from dfd.degrade.operators import jpeg
from dfd.inference import files as files_module
from dfd.inference import stage as stage_module
from dfd.inference.openset import FeatureBank
from dfd.models import backbones

LABELS = ["BigGAN", "ProGAN", "StyleGAN2"]
SIZE, SIDE, EACH = 36, 32, 8  # of the images, of the crops, and images per label and split


def patterns():
    return dict(zip(LABELS, np.random.default_rng(1).normal(0, 1, (3, SIZE, SIZE, 3)), strict=True))


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A manifest of noise; each generator adds a pattern of its own. Photo i and the fakes i are one group."""
    root, rng, rows = tmp_path_factory.mktemp("planted"), np.random.default_rng(0), []
    for label in [*LABELS, "RealPhotos"]:
        (root / label).mkdir()
        for number in range(2 * EACH):
            split = "train" if number < EACH else "test"
            base = 128 if label in LABELS else 240  # what is put on a bright photo is clipped
            pixels = base + rng.normal(0, 10, (SIZE, SIZE, 3)) + 10 * patterns().get(label, 0)
            path = f"{label}/{number:02}.png"
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / path)
            rows.append((path, label, label != "RealPhotos", f"g{number:02}", split))
    table = pd.DataFrame(rows, columns=["path", "label", "is_fake", "group", "split"])
    table.attrs["root"] = str(root)
    return table


def tiny_stage(quality=None, stage="stage2"):
    settings = {"backbone": "test_efficientnet.r160_in1k", "unet_width": 4, "residual_bound": 0.1}
    settings["representation"] = "rgb"
    torch.manual_seed(0)
    model = files_module.build_model(stage, settings, 3)
    if stage == "stage2":
        nn.init.normal_(model.classifier.backbone.get_classifier().weight)  # images shall differ
    content = {
        "stage": stage, "classes": LABELS, "config": settings, "crops": 1, "threshold": 0.5, "temperature": 1.0,
        "preprocessing": {"crop_size": SIDE, "equalise_quality": quality}, "history": [], "manifest_hash": "x",
        "key": "k", "weights": model.state_dict(),
    }  # fmt: skip
    return stage_module.Stage(content, torch.device("cpu"))


def residuals(stage, table, paths):
    """(N, S, S, 3) of the centre crops of some images."""
    return explain.residuals(stage, stage_module.center_crops(table, paths, SIDE)).permute(0, 2, 3, 1).numpy()


@pytest.fixture(scope="module")
def stage():
    return tiny_stage()


@pytest.fixture(scope="module")
def found(stage, table):
    return fingerprint.correlations(stage, fingerprint.fingerprints(stage, table, EACH), table, EACH)


pytestmark = pytest.mark.usefixtures("closed")


def test_crops_are_the_middle_of_the_file_after_the_stages_codec(table, tmp_path):
    names = ["small.png", "wide.png"]
    for name, size in zip(names, [(20, 50), (51, 32)], strict=True):
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)).save(tmp_path / name)
    rows = pd.DataFrame({"path": names, "label": ["A", "B"]})
    rows.attrs["root"] = str(tmp_path)
    crops, used = stage_module.sample_crops(tiny_stage(quality=80), rows, 5)
    assert used["path"].tolist() == names
    for crop, name in zip(crops, names, strict=True):
        pixels = np.asarray(Image.open(tmp_path / name))
        pixels = np.pad(pixels, ((0, max(32 - len(pixels), 0)), (0, 0), (0, 0)), "reflect")
        top, left = (pixels.shape[0] - 32) // 2, (pixels.shape[1] - 32) // 2
        window = Image.fromarray(pixels[top : top + 32, left : left + 32])
        window.save(buffer := io.BytesIO(), "JPEG", quality=80, subsampling="4:2:0")
        assert np.array_equal((crop * 255).round().permute(1, 2, 0), np.asarray(Image.open(buffer)))


def test_choice_is_even_over_labels_and_repeats_under_its_seed(stage, table):
    crops, rows = stage_module.sample_crops(stage, table, 5, seed=3)
    assert rows["label"].value_counts().tolist() == [5] * 4 and len(crops) == 20
    assert rows.index.is_monotonic_increasing
    again, other = (stage_module.sample_per_label(table, 5, seed).index.tolist() for seed in (3, 4))
    assert rows.index.tolist() == again != other
    short = table[(table["label"] != "ProGAN") | (table["path"] < "ProGAN/02")]
    counts = stage_module.sample_per_label(short, 5)["label"].value_counts()
    assert counts.to_dict() == {"BigGAN": 5, "ProGAN": 2, "StyleGAN2": 5, "RealPhotos": 5}


def test_fingerprint_is_the_mean_residual_of_training_images_alone(stage, table):
    prints = fingerprint.fingerprints(stage, table, limit=100)
    assert list(prints) == LABELS
    paths = [f"ProGAN/{number:02}.png" for number in range(EACH)]
    expected = np.mean(residuals(stage, table, paths), axis=0)
    assert prints["ProGAN"].images == EACH
    np.testing.assert_allclose(prints["ProGAN"].mean, expected, atol=1e-6)
    with pytest.raises(ValueError, match="no fake"):
        fingerprint.fingerprints(stage, table[table["split"] == "test"], 5)


def test_spectrum_of_white_noise_is_its_variance_and_of_stripes_a_point_whatever_their_phase():
    rng = np.random.default_rng(0)
    noise = torch.from_numpy(rng.normal(0.3, 0.01, (200, 3, 32, 32)))
    ring = explain.spectrum(noise.float())[:10]
    assert np.median(ring) == pytest.approx(-4, abs=0.03) and np.abs(ring + 4).max() < 0.25
    x = np.arange(32)
    stripes = [np.broadcast_to(np.cos(np.pi / 2 * x + phase), (3, 32, 32)) for phase in (0, np.pi)]  # their mean is 0
    spectrum = explain.spectrum(torch.from_numpy(np.stack(stripes)).float())
    assert sorted(np.argwhere(spectrum > spectrum.max() - 1e-3).tolist()) == [[16, 8], [16, 24]]


def test_planted_patterns_correlate_most_with_their_own_class(found):
    assert list(found.columns) == LABELS and list(found.index) == [*LABELS, "RealPhotos"]
    own = np.diag(found.loc[LABELS])
    assert own.min() > 0.3 and np.abs(found.to_numpy()[~np.eye(4, 3, dtype=bool)]).max() < 0.1


def test_correlation_is_pearsons_over_all_pixels_of_test_images(stage, table):
    prints = fingerprint.fingerprints(stage, table, EACH)
    prints = {name: one._replace(mean=one.mean + 0.3) for name, one in prints.items()}  # an offset changes nothing
    found = fingerprint.correlations(stage, prints, table, EACH)
    paths = table.loc[table["split"].eq("test") & table["label"].eq("ProGAN"), "path"]
    for name, one in prints.items():
        each = [np.corrcoef(own.ravel(), one.mean.ravel())[0, 1] for own in residuals(stage, table, paths)]
        assert len(each) == EACH and found.loc["ProGAN", name] == pytest.approx(np.mean(each), abs=1e-5)


def test_photos_come_last_whatever_their_name(stage, table):
    prints = fingerprint.fingerprints(stage, table, EACH)
    named = table.replace({"label": {"RealPhotos": "AAA"}})
    assert list(fingerprint.correlations(stage, prints, named, 2).index) == [*LABELS, "AAA"]


def test_flat_residual_correlates_with_nothing(stage, table, monkeypatch):
    prints = fingerprint.fingerprints(stage, table, EACH)
    monkeypatch.setattr(stage.model.generator, "forward", torch.zeros_like)
    flat = fingerprint.correlations(stage, prints, table, 2)
    assert flat.abs().to_numpy().max() == 0


def test_features_are_what_the_last_layer_makes_the_logits_from(stage, monkeypatch):
    torch.manual_seed(0)
    crops = torch.rand(7, 3, SIDE, SIDE)
    values = stage_module.extract_features(stage, crops)
    head = stage.model.classifier.backbone.get_classifier()
    assert values.shape == (7, head.in_features) and isinstance(values, np.ndarray)
    with torch.no_grad():
        logits = stage.model(crops).numpy()
    assert logits.std(0).min() > 1e-3
    made = values @ head.weight.detach().numpy().T + head.bias.detach().numpy()
    np.testing.assert_allclose(made, logits, atol=1e-4)
    monkeypatch.setattr(stage_module, "BATCH", 3)
    np.testing.assert_allclose(stage_module.extract_features(stage, crops), values, atol=1e-4)


def test_training_images_are_remembered_and_strange_ones_found(table, tmp_path, monkeypatch):
    monkeypatch.setattr(crops_module, "off_grid", lambda corners, *_: corners)
    path, stage, fakes = tmp_path / "model.pt", tiny_stage(), table[table["is_fake"]]
    files_module.save_checkpoint({"other": 1}, path)
    stage_module.fit_feature_bank(stage, fakes, path, limit=5)
    bank = torch.load(path, weights_only=True)["feature_bank"]
    stage.feature_bank = FeatureBank(bank.float().numpy())
    assert len(bank) == 5 * len(LABELS)
    crops, rows = stage_module.sample_crops(stage, fakes, 5)
    found = stage_module.extract_features(stage, crops)
    assert np.allclose(bank.numpy(), found / np.linalg.norm(found, axis=1, keepdims=True), atol=1e-3)
    (scored,) = stage.stream([Image.open(f"{table.attrs['root']}/{rows['path'].iloc[0]}")], 1)
    assert scored.ood_score == pytest.approx(stage.feature_bank.distance(found[:1])[0], abs=1e-3)


def blobs(count):
    """Features of two classes far apart, too many for an exact PCA, and rows that say which is which."""
    label = np.arange(count) % 2
    values = np.random.default_rng(0).normal(0, 1, (count, 1200)) + 20 * label[:, None]
    return values, pd.DataFrame({"label": np.array(["A", "B"])[label], "split": "test"}, index=range(5, 5 + count))


def test_embedding_keeps_neighbours_and_repeats_under_its_seed():
    values, rows = blobs(40)
    points = fingerprint.embed(values, rows, seed=1)
    assert list(points) == ["x", "y", "label", "source"] and points.index.equals(rows.index)
    xy = points[["x", "y"]].to_numpy()
    distance = np.linalg.norm(xy[:, None] - xy[None], axis=2) + 1e9 * np.eye(40)
    assert (points["label"].to_numpy()[distance.argmin(1)] == rows["label"]).all()
    pd.testing.assert_frame_equal(points, fingerprint.embed(values, rows, seed=1))


def test_embedding_of_few_images_and_its_sources():
    values, rows = blobs(4)
    assert fingerprint.embed(values, rows)["source"].tolist() == ["test split"] * 4
    named = fingerprint.embed(values, rows.assign(source=["a", "b", "c", "d"]))
    assert named["source"].tolist() == ["a", "b", "c", "d"]
    with pytest.raises(ValueError, match="four"):
        fingerprint.embed(values[:3], rows.iloc[:3])
    with pytest.raises(ValueError, match="not all alike"):
        fingerprint.embed(np.ones_like(values), rows)


def test_carriers_are_photos_of_the_split_and_of_other_groups(table):
    pairs = pd.concat([fingerprint.draw_pairs(table, EACH, seed=seed) for seed in range(5)])
    assert len(pairs) == 5 * 3 * EACH
    merged = pairs.merge(table, left_on="carrier", right_on="path", suffixes=("", "_photo"))
    assert (merged["group_photo"] != merged["group"]).all() and (merged["carrier_group"] == merged["group_photo"]).all()
    assert (merged["label_photo"] == "RealPhotos").all() and (merged["split"] == "test").all()
    assert merged["carrier"].nunique() == EACH
    known = fingerprint.draw_pairs(table.assign(source=table["path"] + " its"), EACH)
    assert (known["source"] == known["path"] + " its").all()
    with pytest.raises(ValueError, match="no photo outside group"):
        fingerprint.draw_pairs(table[table["is_fake"] | (table["group"] == "g08")], EACH)
    with pytest.raises(ValueError, match="no fake"):
        fingerprint.draw_pairs(table[~table["is_fake"]], EACH)


def test_transfer_repeats_under_its_seed_and_leaves_strange_generators_out(stage, table):
    one = fingerprint.carry(stage, table, 3, seed=1)
    pd.testing.assert_frame_equal(one, fingerprint.carry(stage, table, 3, seed=1))
    assert one["carrier"].tolist() != fingerprint.carry(stage, table, 3, seed=2)["carrier"].tolist()
    strange = fingerprint.carry(stage, table.replace({"label": {"ProGAN": "New"}}), 3)
    assert set(strange["label"]) == {"BigGAN", "StyleGAN2"}


@pytest.mark.parametrize("quality", [None, 60])
def test_names_are_of_carrier_and_clipped_sum_behind_the_codec_and_psnr_is_before_it(table, quality, monkeypatch):
    stage = tiny_stage(quality)
    monkeypatch.setattr(stage_module, "BATCH", 4)
    pairs = fingerprint.carry(stage, table, 2)
    assert pairs["named"].nunique() > 1 and (pairs["named"] != pairs["alone"]).any()
    for row in pairs.itertuples():
        c, x = (np.asarray(Image.open(f"{table.attrs['root']}/{path}"))[2:-2, 2:-2] for path in (row.carrier, row.path))
        if quality:
            Image.fromarray(x).save(buffer := io.BytesIO(), "JPEG", quality=quality, subsampling="4:2:0")
            x = np.asarray(Image.open(buffer))
        with torch.no_grad():
            r = stage.model.generator(torch.from_numpy(x / 255).permute(2, 0, 1)[None].float())
        summed = np.clip(c / 255 + r[0].permute(1, 2, 0).numpy(), 0, 1)
        for name, image in ((row.alone, c / 255), (row.named, summed)):
            image = torch.from_numpy(image).permute(2, 0, 1)[None].float()
            with torch.no_grad():
                logits = stage.model(jpeg(image, quality) if quality else image)
            assert name == LABELS[logits.argmax()]
        assert row.psnr == pytest.approx(-10 * np.log10(np.mean((summed - c / 255) ** 2)), abs=1e-3)
        assert 0 < row.ssim < 1


def test_zero_residual_leaves_the_carrier_as_it_is(table, monkeypatch):
    stage = tiny_stage(quality=60)
    monkeypatch.setattr(stage.model.generator, "forward", torch.zeros_like)
    pairs = fingerprint.carry(stage, table, 2)
    assert np.isposinf(pairs["psnr"]).all() and (pairs["ssim"] == 1).all()
    assert pairs["alone"].equals(pairs["named"])
    metrics = fingerprint.summary(pairs)
    assert metrics["psnr"] == {"value": None, "low": None, "high": None} and metrics["ssim"]["value"] == 1
    _, carriers, _, sums = fingerprint.put_on(stage, table, pairs)
    assert torch.equal(sums, carriers)


class NearestPattern(nn.Module):
    """A judge that knows the planted patterns."""

    def __init__(self, generator):
        super().__init__()
        self.generator = generator
        cut = np.stack(list(patterns().values()))[:, 2:-2, 2:-2].transpose(0, 3, 1, 2)
        self.own = backbones.high_pass(torch.from_numpy(cut).float()).flatten(1)  # (3, 3 * S * S)

    def forward(self, images):
        return self.generator(images).flatten(1) @ self.own.T


def test_a_judge_names_what_is_carried_and_lets_go_of_what_is_removed(table, monkeypatch):
    """It knows the planted patterns; the stage's residual is the high-pass part, which holds half of them."""
    stage, judge = tiny_stage(), tiny_stage()
    monkeypatch.setattr(stage.model.generator, "forward", backbones.high_pass)
    judge.model = NearestPattern(backbones.high_pass)
    metrics = fingerprint.summary(fingerprint.carry(stage, table, EACH, judge=judge))
    assert metrics["judge_fake"]["value"] == metrics["judge_named"]["value"] == 1
    assert metrics["judge_alone"]["value"] < 0.7
    monkeypatch.setattr(stage.model.generator, "forward", lambda images: images - 0.5)
    removed = fingerprint.summary(fingerprint.carry(stage, table, EACH, judge=judge))["judge_removed"]
    assert removed["value"] == pytest.approx(1 / 3)  # nothing is left: one name for all
    assert not any(name.startswith("judge") for name in fingerprint.summary(fingerprint.carry(stage, table, 2)))


TRANSFERRED = pd.DataFrame(
    [
        ("A", "A", "A", 30.0, 0.9),
        ("A", "B", "A", 40.0, 0.8),
        ("A", "B", "B", np.inf, 1.0),
        ("A", "B", "A", 32.0, 0.7),
        ("B", "B", "B", 34.0, 0.6),
        ("B", "A", "A", 34.0, 0.8),
    ],
    columns=["label", "alone", "named", "psnr", "ssim"],
).assign(group=list("uvwxyz"))


def test_transfer_metrics_by_hand():
    assert fingerprint.summary(TRANSFERRED)["carried"]["low"] is None  # six groups are too few
    more = [TRANSFERRED.assign(group=TRANSFERRED["group"] + str(number)) for number in range(9)]
    assert fingerprint.summary(pd.concat(more[:7]))["carried_anew"]["low"] is None  # seven groups of B's
    metrics = fingerprint.summary(pd.concat(more, ignore_index=True))
    values = {name: one["value"] for name, one in metrics.items()}
    by_hand = {"carried": (3 / 4 + 1 / 2) / 2, "carrier_alone": (1 / 4 + 1 / 2) / 2, "carried_anew": (2 / 3 + 0) / 2}
    assert values == pytest.approx(by_hand | {"psnr": 34.0, "ssim": 0.8})
    assert all(one["low"] < one["value"] < one["high"] for one in metrics.values())
    known = [rows.assign(source=rows["group"], group="one") for rows in more]
    assert fingerprint.summary(pd.concat(known, ignore_index=True)) == metrics
    right = TRANSFERRED.assign(alone=TRANSFERRED["label"])
    assert fingerprint.summary(right)["carried_anew"]["value"] is None


def test_confusion_ends_with_the_carriers_alone():
    shares = fingerprint.confusion(TRANSFERRED, ["A", "B", "C"])
    assert list(shares.index) == ["A", "B", "carrier alone"] and list(shares.columns) == ["A", "B", "C"]
    assert shares.to_numpy().ravel() == pytest.approx([3 / 4, 1 / 4, 0, 1 / 2, 1 / 2, 0, 2 / 6, 4 / 6, 0])
    alone = fingerprint.confusion(TRANSFERRED.assign(alone="C"), ["A", "B", "C"]).loc["carrier alone"]
    assert alone.tolist() == [0, 0, 1]  # a name that no sum got


def test_plot_of_fingerprints_has_a_column_per_generator(stage, table):
    prints = fingerprint.fingerprints(stage, table, 5)
    figure = plots.plot_fingerprints(prints)
    assert len(figure.axes) == 2 * 3 + 1 and figure.axes[-1].get_ylabel() == "log10 power"
    for ax, below, (name, one) in zip(figure.axes[:3], figure.axes[3:6], prints.items(), strict=True):
        assert ax.get_title() == f"{name}\n5 images, ±{3 * 255 * one.mean.std():.2f} of 255"
        expected = np.clip(0.5 + one.mean / one.mean.std() / 6, 0, 1)
        np.testing.assert_allclose(ax.images[0].get_array(), expected, atol=1e-6)
        assert np.array_equal(below.images[0].get_array(), one.spectrum)
        assert below.get_xlabel() == "cycles per pixel"
    assert len({ax.images[0].get_clim() for ax in figure.axes[3:6]}) == 1


@pytest.mark.parametrize(("sources", "shapes"), [(1, 1), (10, 10), (14, 11)])
def test_plot_of_embedding_has_a_colour_per_generator_and_a_shape_for_ten_sources(sources, shapes):
    count = 20 * sources
    source = [f"s{i % sources:02}" for i in range(count)] + ["s00"]
    points = pd.DataFrame({"x": 0.0, "y": np.arange(count + 1), "label": "A", "source": source})
    points.loc[::3, "label"] = "B"
    ax = plots.plot_embedding(points)
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    named = texts[texts.index("source") + 1 :]
    assert texts[: texts.index("source")] == ["generator", "A", "B"]
    assert len(named) == shapes and named[0] == "s00" and ("other" in named) == (sources > 10)
    assert len(ax.collections[0].get_offsets()) == count + 1 and len(set(map(tuple, ax.collections[0].get_fc()))) == 2
    assert len({path.vertices.tobytes() for path in ax.collections[0].get_paths()}) == shapes


def test_legends_have_names_that_begin_with_an_underscore():
    points = pd.DataFrame({"x": 0.0, "y": [1.0, 2.0], "label": ["_A", "B"], "source": ["_s", "t"]})
    texts = [text.get_text().strip("\u200b") for text in plots.plot_embedding(points).get_legend().get_texts()]
    assert sorted(texts) == sorted(["generator", "_A", "B", "source", "_s", "t"])
    table = pd.DataFrame({"label": ["_A", "RealPhotos"], "source": ["s", "t"], "images": 9})
    table = table.assign(**{name + end: 0.5 for name in ("auc", "called_fake") for end in ("", "_low", "_high")})
    (legend,) = plots.plot_sources(table).legends
    assert sorted(text.get_text().strip("\u200b") for text in legend.get_texts()) == ["RealPhotos", "_A"]


def test_ssim_is_that_of_wang_by_hand(stage, table):
    pairs = fingerprint.carry(stage, table, 1)
    _, carriers, _, sums = fingerprint.put_on(stage, table, pairs)
    blur = partial(gaussian_filter, sigma=(0, 1.5, 1.5), truncate=3.5)  # 11 x 11 pixels
    for ssim, c, s in zip(pairs["ssim"], carriers.double().numpy(), sums.double().numpy(), strict=True):
        both, apart = blur(c) * blur(s), blur(c) ** 2 + blur(s) ** 2
        each = (2 * both + 1e-4) * (2 * (blur(c * s) - both) + 9e-4)
        each /= (apart + 1e-4) * (blur(c * c + s * s) - apart + 9e-4)
        assert ssim == pytest.approx(each[:, 5:-5, 5:-5].mean(), abs=1e-4)
