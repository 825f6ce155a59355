"""Linear heads on the feature bank: the discriminant, joint hold-outs, and a stage fitted, calibrated and shipped."""

import errno
import json
import os
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from bad_files import picture
from folders import scan
from PIL import Image
from ship_detector import named, ship
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from tune_clip import pooled

from dfd import config, train
from dfd.config import CHECKPOINTS, SHIPPED, SUMS
from dfd.core import io
from dfd.core.runs import Interrupted
from dfd.data import manifest
from dfd.data.crops import Seeded
from dfd.evaluate import holdouts, scores
from dfd.inference import Detector, Stage, decide
from dfd.models import clip
from dfd.train import bank, checkpoint, fit, heads
from dfd.train.checkpoint import Checkpoint


@pytest.fixture
def features():
    """Two classes of three sources each, 24 images of 3 views: source means scatter most in the first direction."""
    rng = np.random.default_rng(0)
    classes, sources = np.repeat([0, 1], 72), np.repeat(["a", "b", "c", "d", "e", "f"], 24)
    shift = dict(zip("abcdef", rng.normal(size=(6, 5)) * [2, 0.3, 0.3, 0.3, 0.3], strict=True))
    x = rng.normal(size=(144, 3, 5)) + np.stack([shift[source] for source in sources])[:, None]
    return (x + classes[:, None, None] * [0, 2, 0, 0, 1]).astype(np.float16), classes, sources


def test_the_discriminant_is_fishers_and_a_class_scores_the_mean_of_its_sources(features):
    x, classes, sources = features
    weight, bias = pooled(*heads.Discriminants(x, classes, sources, shrinkage=1e-6).fit())
    flat = x.astype(float).reshape(-1, 5)
    expected = LinearDiscriminantAnalysis(solver="lsqr", priors=[0.5, 0.5]).fit(flat, classes.repeat(3))
    assert np.allclose(weight[1] - weight[0], expected.coef_[0], rtol=0.02, atol=0.02)
    means = np.stack([flat[sources.repeat(3) == source].mean(0) for source in "abcdef"])
    directions = np.linalg.solve(expected.covariance_, means.T)
    of_sources = flat @ directions - (means * directions.T).sum(1) / 2  # the log-likelihood of each, but for a constant
    difference = of_sources[:, 3:].mean(1) - of_sources[:, :3].mean(1)
    assert np.allclose(flat @ (weight[1] - weight[0]) + bias[1] - bias[0], difference, rtol=0.02, atol=0.02)
    assert np.abs(difference - expected.decision_function(flat)).mean() > 0.05  # which takes a class for one point


def test_shrinkage_is_added_to_the_covariance_of_standardised_features(features):
    x, classes, sources = features
    weight, _ = pooled(*heads.Discriminants(x, classes, sources, shrinkage=5.0).fit())
    flat, of_row = x.astype(float).reshape(-1, 5), classes.repeat(3)
    flat = (flat - flat.mean(0)) / (scale := flat.std(0) + 1e-3)
    means = np.stack([flat[of_row == number].mean(0) for number in (0, 1)])
    within = np.mean([np.cov(flat[of_row == number].T, bias=True) for number in (0, 1)], axis=0)
    direction = np.linalg.solve(within + 5 * np.eye(5), means[1] - means[0]) / scale
    assert np.allclose(weight[1] - weight[0], direction, rtol=0.02, atol=0.005)


def test_logits_of_heads_on_several_kinds_of_features_add_up():
    """As of discriminants whose covariance between kinds is 0; a class with nothing left stays out of all."""
    rng = np.random.default_rng(3)
    classes, sources = np.repeat([0, 1, 2], 40), np.tile(np.repeat(["a", "b"], 20), 3)
    x = (rng.normal(size=(120, 2, 7)) + classes[:, None, None]).astype(np.float16)
    joint = heads.Joint(x, [4], classes, sources, 0.5)
    for without in ((), {"a"}, {1}):
        head = joint.head(torch.nn.Linear(7, 3), without)
        weight, bias = head.weight.detach().numpy(), head.bias.detach().numpy()
        logits = x @ weight.T + bias
        parts = [heads.Discriminants(part, classes, sources, 0.5) for part in (x[..., :4], x[..., 4:])]
        fitted = [pooled(*part.fit(without)) for part in parts]
        alone = [part.features @ weight.T + bias for part, (weight, bias) in zip(parts, fitted, strict=True)]
        np.testing.assert_allclose(logits, sum(alone), rtol=1e-4, atol=1e-4)
        assert weight.shape == (3, 7) and np.isneginf(bias).tolist() == [False, 1 in without, False]
    only = heads.Joint(x, (), classes, sources, 0.5).head(torch.nn.Linear(7, 3))
    theirs = pooled(*heads.Discriminants(x, classes, sources, 0.5).fit())
    np.testing.assert_allclose(only.weight.detach(), theirs[0], rtol=1e-6)
    np.testing.assert_allclose(only.bias.detach(), theirs[1], rtol=1e-6)


def test_sources_of_like_subjects_count_more_in_a_name():
    """As written out image by image, from the discriminants of each source and from the means of their subjects."""
    rng, place = np.random.default_rng(4), slice(2, 5)
    order = rng.permutation(150)
    classes, sources = np.repeat([0, 1, 2], 50)[order], np.tile(np.repeat([*"dbace"], 10), 3)[order]
    x = (rng.normal(size=(150, 2, 7)) + 0.7 * classes[:, None, None]).astype(np.float16)
    x[..., place] += (rng.normal(size=(5, 3)) * 3)[np.searchsorted([*"abcde"], sources)][:, None].astype(np.float16)
    joint = heads.Joint(x, [5], classes, sources, 0.5)
    for without in ((), {"a", "d"}, {1, "b"}):
        head = joint.head(clip.SourceHead(7, 3, place), without)
        parts = [heads.Discriminants(part, classes, sources, 0.5) for part in (x[..., :5], x[..., 5:])]
        cells = [cell for cell in sorted({*zip(classes, sources, strict=True)}) if set(without).isdisjoint(cell)]
        new, fitted = rng.normal(size=(4, 7)).astype(np.float32), [part.fit(without) for part in parts]
        weight, bias = np.hstack([fitted[0][0], fitted[1][0]]), fitted[0][1] + fitted[1][1]
        centre = parts[0].mean[place]
        for image, logits in zip(new, heads.logits_of(head, new), strict=True):
            sums, totals = np.zeros(3), np.zeros(3)
            for (number, source), direction, offset in zip(cells, weight, bias, strict=True):
                own = x[(classes == number) & (sources == source)][..., place] - centre
                mean = (own / np.linalg.norm(own, axis=-1, keepdims=True)).mean((0, 1))
                subject = (image[place] - centre) / np.linalg.norm(image[place] - centre)
                counts = np.exp(subject @ mean / clip.LIKE)  # each source has as many images
                sums[number] += counts * (direction @ image + offset)
                totals[number] += counts
            left_out = totals == 0
            np.testing.assert_allclose(logits[~left_out], (sums / totals.clip(1e-9))[~left_out], rtol=1e-3, atol=1e-3)
            assert np.isnan(logits[left_out]).all() and left_out.tolist() == [False, 1 in without, False]


def test_a_head_of_sources_takes_as_many_as_its_checkpoint_has_and_no_other_shapes():
    few, many = clip.SourceHead(6, 2, slice(0, 3)), clip.SourceHead(6, 2, slice(0, 3))
    state = {"weight": torch.rand(5, 6), "bias": torch.rand(5), "subjects": torch.rand(5, 3), "centre": torch.rand(3)}
    few.load_state_dict(state | {"shares": torch.rand(5, 2)})
    many.load_state_dict(few.state_dict())
    x = torch.rand(4, 6)
    assert few(x).shape == (4, 2) and torch.equal(few(x), many(x))
    for name, wrong in (("shares", torch.rand(5, 3)), ("subjects", torch.rand(4, 3)), ("weight", torch.rand(5, 7))):
        with pytest.raises(RuntimeError, match=f"size mismatch for {name}"):
            many.load_state_dict(few.state_dict() | {name: wrong})
    with pytest.raises(RuntimeError, match="Missing key"):
        many.load_state_dict({"weight": torch.rand(2, 6)})


def test_sources_are_taken_off_in_one_order_whatever_python_hashes_them_to(monkeypatch):
    x, sources = np.random.default_rng(0).normal(size=(40, 2, 3)).astype(np.float16), np.repeat([*"abcdefghij"], 4)
    table, taken = heads.Discriminants(x, np.zeros(40, int), sources, 0.1), []
    moments = table._moments
    monkeypatch.setattr(table, "_moments", lambda rows: taken.append(sources[rows[0]]) or moments(rows))
    table.fit(without={*"bcdefghi"})
    assert taken == [*"bcdefghi"]  # float32 sums differ by their order


def test_leaving_a_source_out_is_as_if_it_had_never_been_there(features):
    x, classes, sources = features
    weight, bias = pooled(*heads.Discriminants(x, classes, sources, 1e-6).fit(without={"b", "f"}))
    rest = ~np.isin(sources, ["b", "f"])
    fresh, fresh_bias = pooled(*heads.Discriminants(x[rest], classes[rest], sources[rest], 1e-6).fit())
    assert np.allclose(weight[1] - weight[0], fresh[1] - fresh[0], rtol=0.01, atol=0.01)
    assert bias[1] - bias[0] == pytest.approx(fresh_bias[1] - fresh_bias[0], abs=0.02)
    whole, _ = pooled(*heads.Discriminants(x, classes, sources, 1e-6).fit())
    assert np.abs(whole - weight).max() > 0.1


def test_a_source_weighs_by_the_root_of_its_size(features):
    x, classes, sources = features
    often = np.r_[np.arange(144), np.repeat(np.flatnonzero(sources == "a"), 3)]  # source a four times as large
    weight, bias = pooled(*heads.Discriminants(x[often], classes[often], sources[often], 1e-6).fit())
    flat, shares = {source: x[sources == source].astype(float).reshape(-1, 5) for source in "abcdef"}, {"a": 2.0}
    scatter, means, terms = np.zeros((5, 5)), [], []
    for names in ("abc", "def"):
        share = np.array([shares.get(name, 1.0) for name in names]) / sum(shares.get(name, 1.0) for name in names)
        own = np.stack([flat[name].mean(0) for name in names])
        within = np.tensordot(share, [np.cov(flat[name].T, bias=True) for name in names], 1)
        scatter += (within + np.cov(own.T, aweights=share, ddof=0)) / 2
        means.append(share @ own)
        terms.append((share, own))
    direction = np.linalg.solve(scatter, means[1] - means[0])
    assert np.allclose(weight[1] - weight[0], direction, rtol=0.02, atol=0.02)
    first, second = (share @ (own * np.linalg.solve(scatter, own.T).T).sum(1) / 2 for share, own in terms)
    assert bias[1] - bias[0] == pytest.approx(first - second, abs=0.01)


def test_hold_outs_leave_a_source_out_of_every_label():
    labels = np.array(["RealPhotos"] * 3 + ["ProGAN"] * 3 + ["BigGAN"] * 2)
    sources = np.array(["x", "y", "both", "both", "z", "w", "only", "only"])
    draws = list(heads.joint_hold_outs(labels, sources, 40, seed=0))
    assert len(draws) == len({tuple(draw.values()) for draw in draws}) == 9
    assert {draw["RealPhotos"] for draw in draws[:3]} == {"x", "y", "both"}  # each in its turn
    assert all(set(draw) == {"RealPhotos", "ProGAN"} for draw in draws)  # BigGAN has one source, which stays
    assert not list(heads.joint_hold_outs(labels[2:], sources[2:], 40, seed=0))  # photos of one source
    shared = list(heads.joint_hold_outs(np.repeat(labels[[0, 3, 6]], [2, 2, 1]), np.array([*"ABABA"]), 40, seed=0))
    assert [set(draw.values()) for draw in shared] == [{"B"}]  # a benchmark's: each label keeps something to learn from


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run folder with both heads beside its images: 4 sources a class, 3 images a source, on a small trunk."""
    folder, rows = tmp_path_factory.mktemp("heads"), []
    for place, label in enumerate(("RealPhotos", "ProGAN", "BigGAN", "StyleGAN2")):
        (folder / "data" / label).mkdir(parents=True)
        for number in range(12):
            name = f"{label}/{number}.png"
            pixels = np.asarray(picture(100 * place + number, 72, 64)).astype(int)
            pixels[:: place + 1] += 40 * (place > 0)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "data" / name)
            rows.append({"file": name, "source": f"{label} {number % 4}"})
    pd.DataFrame(rows).to_csv(folder / "data" / "provenance.csv", index=False)
    (folder / "run").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clip, "NAME", "vit_tiny_patch16_224")
        patch.setattr(clip, "SIDE", 32)
        patch.setenv("DFD_CACHE", str(folder / "cache"))
        clip.shared_trunk.cache_clear()
        table = scan(folder / "data", folder / "run")
        for cfg in configs(folder).values():
            fit(table, cfg)
    clip.shared_trunk.cache_clear()
    return folder


def configs(folder):
    options = {"backbone": "clip", "pretrained": False, "crop_size": 32, "hold_outs": 6, "equalise": False}
    options |= {"workers": 0, "track": "none", "data": str(folder / "data"), "out": str(folder / "run")}
    return {"stage1": config.Stage1(**options), "stage2": config.Stage2(**options)}


@pytest.fixture
def trained(made, tmp_path, monkeypatch):
    """The manifest, the configs and the run folder of a copy of what is made."""
    monkeypatch.setattr(clip, "NAME", "vit_tiny_patch16_224")
    monkeypatch.setattr(clip, "SIDE", 32)
    clip.shared_trunk.cache_clear()
    for name in ("data", "run"):
        shutil.copytree(made / name, tmp_path / name)
    table = manifest.load(tmp_path / "run")
    table.attrs["root"] = str(tmp_path / "data")
    yield table, configs(tmp_path), tmp_path / "run"
    clip.shared_trunk.cache_clear()


def test_a_stage_is_fitted_judged_by_unseen_sources_and_shipped(trained, tmp_path, monkeypatch, capsys):
    table, cfgs, out = trained
    judged = holdouts.load(out, Stage.load(out / CHECKPOINTS["stage1"]))
    assert set(judged["degradation"]) == {"none", "jpeg"} and set(judged["level"]) == {0, 95, 75, 50}
    test = set(table["path"][table["split"] == "test"])
    assert not test & set(judged["path"])
    assert judged.groupby("draw")["source"].nunique().eq(4).all()
    stage = Stage.load(out / CHECKPOINTS["stage1"])
    assert stage.is_held_out and stage.band[0] <= stage.threshold <= stage.band[1]
    views = np.load(out / bank.FILE)[table["path"].tolist().index(stage.neighbour_names[0][2]), 0].astype(np.float32)
    mean, basis = stage.feature_bank.mean, stage.feature_bank.basis
    assert np.allclose((views - mean) @ basis.T, stage.neighbours[0], atol=0.05)  # its own place, by its name
    learns = table["split"].ne("test").to_numpy()
    assert {path for *_, path in stage.neighbour_names} == set(table["path"][learns])  # train and val
    learnt = np.load(out / bank.FILE)[learns][:, [0, -1]].astype(np.float32)
    assert np.allclose(mean, learnt.mean((0, 1)), atol=2e-3)  # as they are, and degraded
    before = stage.temperature
    val = scores.score(stage, table[table["split"] == "val"])
    scores.calibrate(stage, val, out)  # keeps what unseen sources chose
    assert Stage.load(out / CHECKPOINTS["stage1"]).temperature == before
    told = holdouts.headlines(judged)["hold_outs"]
    assert told["jpeg 75"]["auc"]["draws"] == 6 and told["as it is"]["auc"]["worst"] <= told["as it is"]["auc"]["value"]
    summary = holdouts.summary(judged)
    assert list(summary.index) == ["as it is", "jpeg 95", "jpeg 75", "jpeg 50"] and (summary["draws"] == 6).all()
    second = Stage.load(out / CHECKPOINTS["stage2"])
    assert set(holdouts.by_source(holdouts.load(out, second), second)["label"]) == {"ProGAN", "BigGAN", "StyleGAN2"}
    assert 0 <= torch.load(out / CHECKPOINTS["stage2"], weights_only=True)["history"][0]["val_unknown_auroc"] <= 1
    photos, view = np.flatnonzero(~table["is_fake"]), {"as it is": 0, "jpeg 95": 1, "jpeg 75": 2, "jpeg 50": 3}
    second.ood_threshold = float(
        -np.median(heads.logits_of(second.backbone.head, np.load(out / bank.FILE)[photos, 0]).max(1))
    )
    shares = named(out, table, second).set_index("condition")["named"]
    of_sources = table.iloc[photos].groupby("source").indices
    for condition, number in view.items():
        logits = heads.logits_of(second.backbone.head, np.load(out / bank.FILE)[photos, number])
        has_name = -logits.max(1) <= second.ood_threshold
        assert shares[condition] == pytest.approx(np.mean([has_name[rows].mean() for rows in of_sources.values()]))
    assert 0.2 < shares["as it is"] < 0.8

    ship(out, tmp_path / "detector")
    assert sum((tmp_path / "detector" / name).stat().st_size for name in SHIPPED.values()) < 10e6
    image = tmp_path / "data" / table["path"].iloc[0]
    shipped, run = Detector.load(tmp_path / "detector"), Detector.load(out)
    assert shipped(image) == run(image) and shipped(image).verdict in ("fake", "real", "unsure")
    path = tmp_path / "detector" / SHIPPED["stage1"]
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=f"stage1.safetensors is not the file that {SUMS} names"):
        Detector.load(tmp_path / "detector")
    capsys.readouterr()
    history = fit(table, cfgs["stage1"].model_copy(update={"crops": 3}))
    assert "already trained" in capsys.readouterr().out and len(history) == 1
    kept = Stage.load(out / CHECKPOINTS["stage1"])
    assert kept.crops == 3 and kept.operating_points == stage.operating_points  # which are of hold-outs
    (out / "hold_outs_stage1.parquet").unlink()
    fit(table, cfgs["stage1"])
    assert holdouts.load(out, stage).equals(judged)


def test_what_has_a_twin_in_another_source_is_not_judged():
    """Features are noise, which only a head that knows an image's copy can name."""
    rng, rows = np.random.default_rng(0), []
    for label in ("RealPhotos", "ProGAN"):
        for source in ("a", "b", "c"):
            groups = [f"{label} {'c' if source == 'c' else 'twins'} {number}" for number in range(40)]
            rows += [{"label": label, "source": f"{label} {source}", "group": group, "path": f"{source} {group}"}
                     for group in groups]  # fmt: skip
            rows[-1]["group"] += source  # one of each source is alone
    images = pd.DataFrame(rows)
    of_group = {group: rng.normal(size=64) for group in images["group"].unique()}
    features = np.repeat(np.stack([of_group[group] for group in images["group"]])[:, None], 4, axis=1)
    is_fake, sources = (images["label"] == "ProGAN").to_numpy(), images["source"].to_numpy()
    table = heads.Joint(features, (), is_fake.astype(int), sources, 0.1)
    draws = list(heads.joint_hold_outs(images["label"].to_numpy(), sources, 9, 0))
    judged = heads.judge_unseen(table, torch.nn.Linear(64, 1), images.assign(draw=0), ["real", "fake"], draws)
    counts = judged.groupby("source")["path"].nunique()
    assert {name: count for name, count in counts.items() if name.endswith("c")} == {"ProGAN c": 40, "RealPhotos c": 40}
    assert set(counts[~counts.index.str.endswith("c")]) == {1}


def test_hold_outs_are_of_sources_that_heads_may_learn_from(trained, tmp_path):
    """Two of four sources of photos lie in the test split alone, where no head judges them."""
    table, cfgs, _ = trained
    sources = heads.sources_of(table)
    of_test = np.isin(sources, ["RealPhotos 0", "RealPhotos 1"])
    table.loc[np.isin(sources, ["RealPhotos 2", "RealPhotos 3"]) & table["split"].eq("test"), "split"] = "train"
    table.loc[of_test, "split"] = "test"
    (tmp_path / "other").mkdir()
    history = fit(table, cfgs["stage1"].model_copy(update={"out": str(tmp_path / "other")}))
    stage = Stage.load(tmp_path / "other" / CHECKPOINTS["stage1"])
    draws = decide.by_draw(judged := holdouts.load(tmp_path / "other", stage))
    assert set(draws["RealPhotos"]) == {"RealPhotos 2", "RealPhotos 3"} and draws.notna().all(axis=None)
    summary = holdouts.summary(judged)["auc"]
    assert history["val_auc"][0] == pytest.approx(summary["as it is"])
    assert history["val_auc_jpeg_75"][0] == pytest.approx(summary["jpeg 75"])


@pytest.mark.parametrize(("stage", "metric"), [("stage1", "val_auc"), ("stage2", "val_balanced_accuracy")])
def test_the_history_of_a_head_is_of_its_hold_outs_whose_sources_weigh_alike(stage, metric, trained):
    _, _, out = trained
    row = torch.load(out / CHECKPOINTS[stage], weights_only=True)["history"][0]
    judged = holdouts.load(out, Stage.load(out / CHECKPOINTS[stage]))
    told = holdouts.summary(judged).iloc[:, 0]
    scores = [told["as it is"], told["jpeg 75"], (told["as it is"] + told["jpeg 75"]) / 2]
    assert [row[name] for name in (metric, f"{metric}_jpeg_75", "score")] == pytest.approx(scores)
    clean = judged[judged["degradation"] == "none"]
    p, truth = decide.probabilities(clean, 1.0), decide.true_class(clean).map(decide.class_names(clean).index)
    assert row["val_loss"] == pytest.approx(-np.log(p[np.arange(len(p)), truth].clip(2**-52)).mean())


def test_a_name_that_no_hold_out_judges_gives_no_warning_to_the_history():
    """scikit-learn warned, on the notebook's page, of a generator of one source that an image was called."""
    images = pd.DataFrame({"path": list("abc"), "label": list("AAB"), "source": list("123"), "draw": 0})
    features = np.repeat(np.eye(3)[:, None], 4, axis=1)
    judged = heads.judgements(features, images, lambda x: x[:, [0, 2, 1]], list("ABC"))
    assert judged["prediction"][:3].tolist() == list("ACB")
    assert heads.history_of(judged, judged, "stage2")["val_balanced_accuracy"] == 0.75


def test_the_score_of_a_generator_that_is_called_real_is_its_own():
    features = np.random.default_rng(0).normal(size=(6, 4, 3))
    images = pd.DataFrame({"path": "x", "label": "real", "source": "s", "draw": 0}, index=range(6))
    two, one = lambda x: x.sum(1, keepdim=True) + torch.tensor([1.0, -1.0]), lambda x: x.sum(1, keepdim=True)
    for classes, head, least in ((["real", "gan"], two, -np.inf), (["real", "fake"], one, 0)):
        judged = heads.judgements(features, images, head, classes)
        logits = judged.filter(like="logit_").max(axis=1)
        assert (logits >= least).all() and (logits < 0).any() == (least < 0)
        assert judged["ood_score"].tolist() == (-logits).tolist()


def test_the_bank_goes_on_where_it_was_stopped(trained, monkeypatch, capsys):
    table, cfgs, out = trained
    whole = np.load(out / bank.FILE)
    state = json.loads((out / "features.json").read_text())
    assert state["done"] == len(table) and whole.shape[:2] == (48, len(bank.CONDITIONS) + 1)
    backbone = clip.ClipBackbone(1, pretrained=False)
    seen, moved = [], []
    monkeypatch.setattr(backbone, "to", moved.append)
    monkeypatch.setattr(
        backbone, "forward_features", lambda views: seen.append(len(views)) or torch.zeros(len(views), 2496)
    )
    bank.build(table, cfgs["stage1"], backbone)
    assert not seen and moved == [torch.device("cuda" if torch.cuda.is_available() else "cpu")]  # where views go
    (out / "features.json").write_text(json.dumps(state | {"done": 24}))
    again = bank.build(table, cfgs["stage1"], backbone)
    assert sum(seen) == 24 * whole.shape[1] and np.array_equal(again[:24], whole[:24]) and not again[24:].any()
    assert "going on after 24 of 48" in capsys.readouterr().out
    bank.build(table, cfgs["stage1"].model_copy(update={"seed": 1}), backbone)
    assert sum(seen) == (24 + 48) * whole.shape[1]
    with open(out / bank.FILE, "r+b") as file:
        file.truncate(1000)  # by a copy that failed
    bank.build(table, cfgs["stage1"].model_copy(update={"seed": 1}), backbone)
    assert sum(seen) == (24 + 48 + 48) * whole.shape[1]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # killed once it has begun anew
        patch.setattr(bank, "build_loader", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        bank.build(table, cfgs["stage1"], backbone)
    bank.build(table, cfgs["stage1"].model_copy(update={"seed": 1}), backbone)
    assert sum(seen) == (24 + 48 + 48 + 48) * whole.shape[1]


def test_a_run_beside_it_lends_its_bank(trained, monkeypatch):
    table, cfgs, out = trained
    backbone, cfg = clip.ClipBackbone(1, pretrained=False), cfgs["stage1"].model_copy(update={"seed": 2})
    passed = []
    monkeypatch.setattr(
        backbone, "forward_features", lambda views: passed.append(len(views)) or torch.rand(len(views), 2496)
    )
    banks = []
    for name, changes in (("a", {}), ("b", {"shrinkage": 2.0}), ("c", {"crop_size": 64})):
        (out / "sweep" / name).mkdir(parents=True)
        own = cfg.model_copy(update={"out": str(out / "sweep" / name), **changes})
        banks.append((bank.build(table, own, backbone), sum(passed)))
    (one, first), (two, second), (_, third) = banks
    assert np.array_equal(one, two) and first == second == one.shape[0] * one.shape[1] and third == 2 * first


def test_of_several_processes_one_fits_the_head(trained, monkeypatch):
    table, cfgs, out = trained
    (out / CHECKPOINTS["stage1"]).unlink()
    monkeypatch.setattr(train, "is_main_process", lambda: False)
    assert fit(table, cfgs["stage1"]).empty and not (out / CHECKPOINTS["stage1"]).exists()


def test_a_full_disk_is_told_before_a_page_of_the_bank_cannot_be_written(trained, monkeypatch):
    table, cfgs, out = trained
    sizes = []

    def full(file, start, size):
        sizes.append(size)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="disk full; free some space"):
        bank.build(table, cfgs["stage1"], clip.ClipBackbone(1, pretrained=False))
    assert sizes == [(out / bank.FILE).stat().st_size]


def test_a_bank_without_degradation_has_clean_views(trained, monkeypatch):
    table, cfgs, out = trained
    degraded = []
    monkeypatch.setattr(bank.RandomDegrade, "__call__", lambda self, image: degraded.append(1) or image)
    for degrade in (True, False):
        degraded.clear()
        bank.Views(table, cfgs["stage1"].model_copy(update={"degrade": degrade}))[0]
        assert bool(degraded) == degrade
    whole = json.loads((out / "features.json").read_text())["key"]
    backbone = clip.ClipBackbone(1, pretrained=False)
    bank.build(table, cfgs["stage1"].model_copy(update={"degrade": False}), backbone)
    assert json.loads((out / "features.json").read_text())["key"] != whole


def test_another_adapter_makes_banks_and_heads_stale(trained, tmp_path, monkeypatch):
    table, cfgs, out = trained
    tuned, keys = cfgs["stage1"].model_copy(update={"backbone": "clip-tuned", "out": str(tmp_path)}), set()
    monkeypatch.setattr(bank.config, "ADAPTER", tmp_path / "adapter")
    monkeypatch.setattr(bank, "build_loader", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    for content in (b"one", b"other"):
        (tmp_path / "adapter").write_bytes(content)
        keys.add(Checkpoint("stage1", table, tuned, ["real", "fake"]).key)
        with pytest.raises(KeyboardInterrupt):
            bank.build(table, tuned, clip.ClipBackbone(1, pretrained=False))
        keys.add(json.loads((tmp_path / "features.json").read_text())["key"])
    assert len(keys) == 4
    tied = table.assign(group="one")  # what its numbers rest on changes with the near-duplicates
    assert Checkpoint("stage1", tied, tuned, ["real", "fake"]).key not in keys
    network = tuned.model_copy(update={"backbone": "resnet50"})
    assert len({Checkpoint("stage1", rows, network, ["real", "fake"]).key for rows in (table, tied)}) == 1


def test_other_images_weights_views_and_code_make_banks_and_heads_stale(trained, tmp_path, monkeypatch):
    table, cfgs, _ = trained
    others = table.assign(sha256=table["sha256"].str[::-1])
    monkeypatch.setattr(bank, "build_loader", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    backbone, banks, heads_of = clip.ClipBackbone(1, pretrained=False), set(), set()
    for rows, changes, version in (
        (table, {}, "a"), (others, {}, "a"), (table, {"pretrained": True}, "a"), (table, {"equalise": True}, "a"),
        (table, {}, "b"),
    ):  # fmt: skip
        cfg = cfgs["stage1"].model_copy(update={"out": str(tmp_path), **changes})
        for module in (bank, checkpoint):
            monkeypatch.setattr(module, "code", lambda version=version: version)
        with pytest.raises(KeyboardInterrupt):
            bank.build(rows, cfg, backbone)
        banks.add(json.loads((tmp_path / "features.json").read_text())["key"])
        heads_of.add(Checkpoint("stage1", rows, cfg, ["real", "fake"]).key)
    assert len(banks) == len(heads_of) == 5


def test_a_signal_leaves_the_bank_to_go_on_from(trained, monkeypatch):
    table, cfgs, out = trained
    (out / "features.json").unlink()
    backbone = clip.ClipBackbone(1, pretrained=False)

    def interrupted(views):
        import signal

        signal.raise_signal(signal.SIGTERM)
        return torch.zeros(len(views), 2496)

    monkeypatch.setattr(backbone, "forward_features", interrupted)
    with pytest.raises(Interrupted, match="stopped after 8 of 48 images"):
        bank.build(table, cfgs["stage1"], backbone)
    assert json.loads((out / "features.json").read_text())["done"] == 8


def test_the_codecs_grid_lies_anywhere_in_small_and_large_images(tmp_path):
    """A photo and a tile cut from its middle: steps between blocks of a smooth JPEG 50 begin at any column in both."""
    cfg = config.Stage1(crop_size=32, equalise=False, data="x", out="y")
    ramp = np.linspace(0, 255, 96)
    large = Image.fromarray(np.stack([np.tile(ramp, (96, 1))] * 3, -1).astype(np.uint8))
    (tmp_path / "a").mkdir()
    large.save(tmp_path / "a" / "large.png")
    large.crop((32, 32, 64, 64)).save(tmp_path / "a" / "small.png")
    table = pd.DataFrame({"path": ["a/large.png", "a/small.png"], "is_fake": [False, False]})
    table.attrs["root"] = str(tmp_path)
    views = Seeded(bank.Views(table, cfg))
    for place in (0, 1):
        phases = set()
        for seed in range(60):
            bends = np.abs(np.diff(views[place, seed][3].numpy().mean((0, 1)), n=2))  # none within a block
            phases.add(int(np.argmax([bends[phase::8].mean() for phase in range(8)])))
        assert len(phases) >= 4, place  # one, where the grid starts at the corner of the small one


def test_without_sources_the_head_learns_from_the_train_split_alone(trained, tmp_path):
    table, cfgs, _ = trained
    (tmp_path / "data" / "provenance.csv").unlink()
    table = table.drop(columns="source")
    out = tmp_path / "other"
    out.mkdir()
    history = fit(table, cfgs["stage1"].model_copy(update={"out": str(out)}))
    stage = Stage.load(out / CHECKPOINTS["stage1"])
    assert not stage.is_held_out and stage.band is None and not list(out.glob("hold_outs*"))
    assert holdouts.load(out, stage).empty
    features, learns = np.load(out / bank.FILE), table["split"].eq("train").to_numpy()
    fakes, labels = table["is_fake"].to_numpy(dtype=int), table["label"].to_numpy()
    kinds = zip(np.split(features[learns], [7 * 192], axis=-1), ([0, 7 * 192], [7 * 192, None]), strict=True)
    for part, columns in kinds:  # the heads on class tokens and on the means of patches, side by side
        weight, _ = pooled(*heads.Discriminants(part, fakes[learns], labels[learns], 0.1).fit())
        found = stage.model.backbone.head.weight.detach()[:, slice(*columns)]
        assert np.allclose(found, weight[1] - weight[0], atol=1e-4)
    scores.calibrate(stage, scores.score(stage, table[table["split"] == "val"]), out)
    assert Stage.load(out / CHECKPOINTS["stage1"]).band and len(history) == 1


@pytest.mark.parametrize(
    ("change", "told", "times"),
    [
        (lambda rows: rows[1:], "1 of 48 images have no source, such as RealPhotos/0", 1),
        (lambda rows: [{**rows[0], "source": ""}, *rows[1:]], "line 2: RealPhotos/0.png has no source. Until then", 1),
        (lambda rows: [*rows, {**rows[0], "source": "x"}], "line 50, gives RealPhotos/0.png more than one source", 1),
        (lambda rows: [{"file": row["file"], "camera": "x"} for row in rows], "the columns file and source", 1),
    ],
)
def test_sources_that_do_not_hold_for_all_images_are_told(change, told, times, trained, tmp_path, capsys):
    table, cfgs, out = trained
    path, table = tmp_path / "data" / "provenance.csv", table.drop(columns="source")  # as a scan before it was there
    pd.DataFrame(change(pd.read_csv(path).to_dict("records"))).to_csv(path, index=False)
    io.tell_once.cache_clear()
    manifest.write(table, out)
    for _ in range(2):  # as each stage does; what is wrong with the file is told once
        assert heads.sources_of(manifest.load(out)).tolist() == table["label"].tolist()
    assert capsys.readouterr().out.count(told) == times


def test_a_name_in_another_case_of_letters_has_its_source(trained, tmp_path, capsys):
    table, cfgs, out = trained
    path, before = tmp_path / "data" / "provenance.csv", heads.sources_of(table)
    manifest.write(table.drop(columns="source"), out)  # as a scan before the file was there
    path.write_text(path.read_text().replace("RealPhotos/1.png", "realphotos/1.PNG"))
    assert heads.sources_of(manifest.load(out)).tolist() == before.tolist() != table["label"].tolist()
    path.write_text(path.read_text().replace("RealPhotos/2.png", "RealPhotos/2.png,RealPhotos 0\nrealphotos/2.png"))
    named = heads.sources_of(manifest.load(out))[table["path"].tolist().index("RealPhotos/2.png")]
    assert named == "RealPhotos 0"  # as it stands
    path.write_text(path.read_text().replace("RealPhotos/2.png,RealPhotos 0\nrealphotos/2.png", "RealPhotos/2.png"))
    path.write_text(re.sub(r"BigGAN \d", "BigGAN 0", path.read_text().replace("RealPhotos 1", "RealPhotos 2")))
    capsys.readouterr()
    fit(manifest.load(out), cfgs["stage1"])  # corrected: judged anew
    said = capsys.readouterr().out
    assert "already trained" not in said and "BigGAN: of one source, which no hold-out leaves out" in said
    assert set(holdouts.load(out, Stage.load(out / CHECKPOINTS["stage1"]))["source"]).isdisjoint({"RealPhotos 1"})


def test_what_is_promised_of_heads_counts_when_they_are_trained_again(trained):
    table, cfgs, out = trained
    fit(table, cfgs["stage2"].model_copy(update={"coverage": 0.6, "accept": 0.5}))
    kept = Stage.load(out / CHECKPOINTS["stage2"])
    judged = holdouts.load(out, kept)
    assert kept.coverage == 0.6
    assert (judged["ood_score"] <= kept.ood_threshold).mean() == pytest.approx(0.5, abs=0.12)


def test_hold_outs_are_the_same_for_all_seeds(trained):
    table, cfgs, out = trained
    before = holdouts.load(out, Stage.load(out / CHECKPOINTS["stage1"]))
    fit(table, cfgs["stage1"].model_copy(update={"seed": 5}))
    after = holdouts.load(out, Stage.load(out / CHECKPOINTS["stage1"]))
    assert after[["draw", "path"]].equals(before[["draw", "path"]]) and not after["logit_fake"].equals(
        before["logit_fake"]
    )


def test_stage_2_says_unknown_in_tables_too_by_what_the_hold_outs_and_the_user_ask(trained):
    table, cfgs, out = trained
    stage, fakes = Stage.load(out / CHECKPOINTS["stage2"]), table[table["is_fake"]]
    scored = scores.score(stage, fakes)
    assert scored["ood_score"].tolist() == pytest.approx((-scored.filter(like="logit_").max(axis=1)).tolist())
    judged = holdouts.load(out, stage)
    for accept in (0.95, 0.5):
        answers = scores.calibrate(stage, scored, out, coverage=0.6, accept=accept)
        kept = Stage.load(out / CHECKPOINTS["stage2"])
        assert kept.coverage == 0.6 and kept.ood_threshold == stage.ood_threshold
        assert (judged["ood_score"] <= kept.ood_threshold).mean() == pytest.approx(accept, abs=0.12)
        assert (answers["prediction"].eq("unknown") == (scored["ood_score"] > kept.ood_threshold)).all()


def test_a_head_has_no_parts_to_leave_out(trained, tmp_path):
    table, cfgs, _ = trained
    for stage, name, value in (
        ("stage1", "ablate", True),
        ("stage1", "representation", "rgb"),
        ("stage2", "extractor", "rgb"),
    ):
        with pytest.raises(config.ConfigError, match=f"^{name}: only networks have it; leave it out with clip"):
            fit(table, cfgs[stage].model_copy(update={"out": str(tmp_path / "new"), name: value}))
    with pytest.raises(ValueError, match="at least two generators"):
        fit(table[table["label"].isin(["RealPhotos", "ProGAN"])], cfgs["stage2"].model_copy(update={"resume": False}))


def test_a_generator_that_is_left_out_is_unknown_where_nothing_speaks_for_another():
    """Each generator lies on an axis of its own; the one left out then speaks for neither of the others."""
    rng = np.random.default_rng(0)
    labels = np.repeat(["A", "B", "C"], 60)
    sources = np.char.add(labels, np.tile(np.repeat(["1", "2", "3"], 20), 3))
    places = {"A": [6, 0, 0], "B": [0, 6, 0], "C": [0, 0, 6]}
    features = rng.normal(size=(180, 2, 3)) + np.array([places[label] for label in labels])[:, None]
    images = pd.DataFrame({"label": labels, "source": sources, "group": range(180)}, index=np.arange(180) + 7)
    table = heads.Joint(features.astype(np.float16), (), table_codes(labels), sources, 0.1)
    draws = [{"RealPhotos": "x", "A": "A1", "B": "B2", "C": "C3"}]
    found = heads.judge_unknown(table, torch.nn.Linear(3, 3), images, draws)
    assert found["unknown"].tolist() == ["A", "B", "C"] and (found["auroc"] > 0.95).all()
    same = heads.Joint(rng.normal(size=(180, 2, 3)).astype(np.float16), (), table_codes(labels), sources, 0.1)
    assert 0.25 < heads.judge_unknown(same, torch.nn.Linear(3, 3), images, draws)["auroc"].mean() < 0.75


def test_near_duplicates_in_two_sources_are_not_new_to_a_head_that_left_one_out(monkeypatch):
    rng, labels, counts = np.random.default_rng(0), np.repeat(["A", "B", "C"], 40), []
    sources, groups = np.char.add(labels, np.tile(np.repeat(["1", "2"], 20), 3)), np.arange(120)
    groups[20:30] = groups[:10]  # ten of A1 are in A2 too
    images = pd.DataFrame({"label": labels, "source": sources, "group": groups})
    table = heads.Joint(rng.normal(size=(120, 2, 3)).astype(np.float16), (), table_codes(labels), sources, 0.1)
    seen = lambda truth, score, sample_weight: counts.append((len(truth), round(sum(sample_weight), 6))) or 0.5  # noqa: E731
    monkeypatch.setattr(heads, "roc_auc_score", seen)
    heads.judge_unknown(table, torch.nn.Linear(3, 3), images, [{"A": "A1", "B": "B1", "C": "C1"}])
    images = [40 + 20 + 20, 40 + 10 + 20, 40 + 10 + 20]  # the unknown generator's, and what is new of the rest
    assert counts == [(count, 4) for count in images]  # of four sources, each of which weighs 1


def table_codes(labels):
    return pd.Categorical(labels).codes.astype(int)
