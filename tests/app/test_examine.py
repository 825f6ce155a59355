"""The examination of one image: its words follow from the checkpoints' numbers, its pictures from its crops."""

import io
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from bad_files import encoded
from networks import CPU, content, noise
from PIL import Image

from dfd.analysis import fingerprint
from dfd.app import evidence, examine
from dfd.app.metadata import sentence
from dfd.config import CHECKPOINTS
from dfd.core import images as images_module
from dfd.data import crops
from dfd.degrade import compose, to_tensor
from dfd.inference import decide
from dfd.inference.decide import answer, fit_threshold
from dfd.inference.detector import Detector, Verdict
from dfd.inference.files import update_checkpoint
from dfd.inference.stage import Stage
from dfd.models.networks import describe


@pytest.fixture
def image():
    return noise(130, 100)


def said(detector, image):
    return " ".join(examine.examine(detector, image).sentences)


def test_an_examination_holds_what_predict_says(run, image):
    path = run / "x.png"
    image.save(path)
    detector = Detector.load(run)
    examination, (verdict,) = examine.examine(detector, path), detector.predict([path])
    assert examination.verdict.p_fake == pytest.approx(verdict.p_fake, abs=1e-4) and examination.verdict.path == str(
        path
    )
    assert (examination.name, examination.limits, examination.metadata.format) == ("x.png", (0.5, 0.5), "PNG")
    odds = [np.log(p_fake / (1 - p_fake)) for p_fake, _ in examination.crops]
    top, left = examination.crops[0][1]
    assert len(odds) == 5 and 0 <= top - (100 - 32) // 2 < 8 and 0 <= left - (130 - 32) // 2 < 8
    assert 1 / (1 + np.exp(-np.mean(odds))) == pytest.approx(examination.verdict.p_fake, abs=1e-3)
    assert examination.metadata.bytes == path.stat().st_size


@pytest.mark.parametrize("kind", ["path", "bytes", "pil", "array", "tensor"])
def test_all_kinds_of_source_get_one_answer(kind, run, image):
    path = run / "x.png"
    image.save(path)
    pixels = np.asarray(image)
    tensor = torch.from_numpy(pixels / 255).float().permute(2, 0, 1)
    sources = {"path": path, "bytes": path.read_bytes(), "pil": image, "array": pixels, "tensor": tensor}
    detector = Detector.load(run)
    assert detector(sources[kind]).p_fake == detector(image).p_fake
    assert examine.examine(detector, sources[kind]).verdict.p_fake == detector(image).p_fake
    assert [verdict.p_fake for verdict in detector([sources[kind], path])] == [detector(image).p_fake] * 2


def test_batches_of_arrays_and_tensors(run):
    detector, pixels = Detector.load(run), np.stack([np.asarray(noise(40, 40, seed)) for seed in range(3)])
    tensors = torch.from_numpy(pixels / 255).float().permute(0, 3, 1, 2)
    scores = [verdict.p_fake for verdict in detector(pixels)]
    assert len(set(scores)) == 3 and [verdict.p_fake for verdict in detector(tensors)] == scores


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (np.zeros((20, 20, 3), np.float32), ValueError),
        (np.zeros((20, 20, 4), np.uint8), ValueError),
        (np.zeros((4, 20, 3), np.uint8), images_module.ImageError),
        (torch.full((3, 20, 20), 1.5), ValueError),
        (torch.full((3, 20, 20), float("nan")), ValueError),
        (torch.zeros(20, 20, 3), ValueError),
        (Image.new("F", (20, 20)), images_module.ImageError),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", images_module.ImageError),
        ("nowhere.png", images_module.ImageError),
        ("zero\0byte.png", images_module.ImageError),
        (7, TypeError),
        (io.BytesIO(b"an upload"), TypeError),
    ],
)
def test_what_is_no_image_raises(bad, error, run):
    with pytest.raises(error):
        Detector.load(run)(bad)


def test_words_for_the_threshold_come_from_the_validation_photos(run, image):
    p = Detector.load(run)(image).p_fake
    stage1 = run / CHECKPOINTS["stage1"]
    photos = [p - 0.3] * 18 + [p - 0.1, p + 0.001]
    update_checkpoint(stage1, validation={"photos": photos, "fakes": [p + 0.01]}, threshold=p - 0.2)
    text = said(Detector.load(run), image)
    assert f"held against {p - 0.2:.3f}, which it reaches" in text
    assert "calls about 1 in 10 photos of the validation split (2 of 20) generated" in text
    assert "About 1 in 20 photos of the validation split (1 of 20) scored this high" in text
    update_checkpoint(stage1, validation={"photos": photos[:18], "fakes": []}, threshold=p + 0.2)
    text = said(Detector.load(run), image)
    assert "which it does not reach" in text and "None of the 18 photos of the validation split scored" in text


def test_any_rate_works_with_validation_scores():
    photos = list(np.linspace(0, 0.9, 10))
    assert fit_threshold(photos, [0.85], 0.1) == pytest.approx((0.8 + 0.85) / 2)
    for fpr in (0, 0.05, 0.2, 0.55):
        cut = fit_threshold(photos, [0.85], fpr)
        assert sum(score >= cut for score in photos) == int(fpr * 10 + 1e-9)
    with pytest.raises(ValueError, match="share"):
        fit_threshold(photos, [0.85], 1.5)


def test_words_for_unknown_generators_and_candidates(run, image):
    update_checkpoint(run / CHECKPOINTS["stage1"], threshold=0.0)
    stage2 = run / CHECKPOINTS["stage2"]
    told = said(Detector.load(run), image)
    assert "Its limits were never fitted" in told and "too few independent" not in told
    update_checkpoint(stage2, coverage=0.9)
    told = said(Detector.load(run), image)
    assert "too few independent images" in told and "never fitted" not in told
    update_checkpoint(stage2, conformal_quantile=0.0)
    detector = Detector.load(run)
    verdict = detector(image)
    text = said(detector, image)
    assert f"looks most like {verdict.source}" in text
    assert f"stay possible: {verdict.source}; such a list holds the right one 90% of the time" in text
    width = detector.stage2.model.classifier.backbone.num_features
    update_checkpoint(stage2, feature_bank=torch.rand(12, width), ood_threshold=-1.0)
    examination = examine.examine(Detector.load(run), image)
    assert sentence(
        "headline", examination.verdict
    ) == "Called generated, by an unknown generator" and "too unlike all that" in " ".join(examination.sentences)


def test_crops_that_disagree_are_counted(run, image):
    detector = Detector.load(run)
    examination = examine.examine(detector, image)
    middle = float(np.median([p_fake for p_fake, _ in examination.crops]))
    update_checkpoint(run / CHECKPOINTS["stage1"], threshold=middle)
    text = said(Detector.load(run), image)
    agree = 3 if examination.verdict.p_fake >= middle else 2
    assert f"{agree} of its 5 crops agree with the answer" in text
    assert "no second view" in " ".join(examine.examine(detector, image, crops=1).sentences)


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_crops_that_agree_and_crops_that_were_too_many_are_told(run, image, threshold):
    update_checkpoint(run / CHECKPOINTS["stage1"], threshold=threshold)
    detector = Detector.load(run)
    assert "Its crops agree: all 5 give the same answer by themselves" in said(detector, image)
    large = image.resize((400, 300))
    few, many = (examine.examine(detector, large, crops=crops, mode="grid").sentences for crops in (4, 200))
    few, many = " ".join(few), " ".join(many)
    assert re.search(r"It was scored on 4 of \d\d+ crops, the limit for one image", few)
    assert "limit for one image" not in many


def test_the_grid_starts_at_the_answer_and_goes_on_where_it_was_left(run, image):
    detector = Detector.load(run)
    examination = examine.examine(detector, image)
    cells, steps = len(evidence.FACTORS) * len(evidence.QUALITIES), evidence.trace(detector, examination)
    assert [next(steps) for _ in range(3)] == [False] * 3 and "stability" not in examination.pictures
    first = examination.stability[1.0, 95]
    assert [*evidence.trace(detector, examination)] == [False] * (cells - 4) + [True]
    known = examination.stability
    assert len(known) == cells and known[1.0, 95] is first
    assert known[1.0, None].p_fake == examination.verdict.p_fake
    image.save(buffer := io.BytesIO(), "JPEG", quality=40, subsampling="4:2:0")
    assert known[1.0, 40].p_fake == pytest.approx(detector(buffer.getvalue()).p_fake, abs=1e-3)
    half = compose(to_tensor(image), [("rescale", 0.5, {}), ("jpeg", 60, {})])
    assert known[0.5, 60].p_fake == pytest.approx(detector(half[0]).p_fake, abs=1e-3)
    caption = examination.pictures["stability"].caption
    assert "middle" not in caption and [*evidence.trace(detector, examination)] == []
    changed = "fake" if known[1.0, None].verdict == "real" else "real"
    for key, verdict in known.items():
        known[key] = replace(verdict, verdict=changed if key == (0.5, 60) else known[1.0, None].verdict)
    assert f"It stands in {cells - 1} of {cells} cells" in sentence("caption_stability", known, first.verdict, False)
    assert f"It stands in 1 of {cells} cells" in sentence("caption_stability", known, changed, False)


def test_a_cell_saved_below_all_that_was_measured_is_unsure_as_its_file_would_be(run, image):
    told = {"photos": 60, "fakes": 70, "sources": 5, "false_alarms": 0.0, "misses": 0.1, "unsure": 0.0}
    bins = [{"side": (0, 100_000), "quality": quality, "worst_photos": None, "worst_fakes": None} | told
            for quality in ((50, 101), (0, 102))]  # fmt: skip
    update_checkpoint(run / CHECKPOINTS["stage1"], rates=bins, is_held_out=True)
    detector = Detector.load(run)
    examination = examine.examine(detector, encoded(image, "JPEG", quality=75))
    list(evidence.trace(detector, examination))
    outside = {key for key, verdict in examination.stability.items() if verdict.outside}
    assert outside == {(factor, 40) for factor in evidence.FACTORS}
    text = " ".join(examination.sentences)
    assert "none of 60 photos were called generated, and 10 in 100 of 70 fakes photographs; all got an answer." in text


def test_of_a_large_image_the_middle_is_degraded_and_held_against_the_answer_on_all(run):
    detector, large = Detector.load(run), noise(1224, 1124)
    examination = examine.examine(detector, large)
    next(evidence.trace(detector, examination))
    middle = detector(large.crop((100, 50, 1124, 1074)))
    assert examination.stability[1.0, None].p_fake == middle.p_fake
    other = replace(middle, verdict="fake" if examination.verdict.verdict == "real" else "real")
    cells = [(factor, quality) for factor in evidence.FACTORS for quality in evidence.QUALITIES]
    examination.stability.update(dict.fromkeys(cells[:-1], other))
    list(evidence.trace(detector, examination))
    assert re.search(f"It stands in [01] of {len(cells)} cells", examination.pictures["stability"].caption)
    assert "Judged on the middle" in examination.pictures["stability"].caption


def test_evidence_is_drawn_kind_by_kind(run, image):
    detector = Detector.load(run)
    examination = examine.examine(detector, image)
    evidence.draw(detector, examination, "residual")
    assert list(examination.pictures) == ["residual"]
    evidence.draw(detector, examination)
    assert list(examination.pictures) == ["residual", "map", "nearest", "gradcam"]
    labels = ["middle of the image", "its residual", "its spectrum"]
    assert [label for label, _ in examination.pictures["residual"].tiles] == labels
    assert len(examination.pictures["gradcam"].tiles) == 5
    assert not examination.pictures["nearest"].tiles and "None to compare" in examination.pictures["nearest"].caption
    for picture in examination.pictures.values():
        assert picture.caption and all(tile.mode == "RGB" for _, tile in picture.tiles)


def test_the_map_covers_the_image_and_says_what_it_left_out(run, monkeypatch):
    detector, side = Detector.load(run), 800
    examination = examine.examine(detector, noise(side, side), crops=1)
    assert len(examination.crops) == 1
    evidence.draw(detector, examination, "map")
    picture = examination.pictures["map"]
    assert picture.tiles[0][1].size == (768, 768) and "400 were judged" in picture.caption  # of 25 x 25
    assert "625 windows" in picture.caption and "not looked at" in picture.caption
    assert re.search("and 3[4-7] % of the image, not coloured", picture.caption)  # all but 20 x 20 windows of 32 pixels
    monkeypatch.setattr(evidence, "MAX_WINDOWS", 900)
    for stride, windows in ((None, 625), (32, 625), (160, 36), (64, 169)):
        examination = replace(examine.examine(detector, noise(side, side), crops=1), stride=stride)
        evidence.draw(detector, examination, "map")
        assert examination.pictures["map"].caption.count(f"{windows} windows, one each {stride or 32} pixels") == 1


def test_a_small_image_has_a_dense_map(run):
    detector = Detector.load(run)
    examination = examine.examine(detector, noise(96, 64))
    evidence.draw(detector, examination, "map")
    assert "15 windows, one each 16 pixels" in examination.pictures["map"].caption


def test_the_map_shows_each_window_by_its_own_score(run):
    detector, image = Detector.load(run), noise(64, 96)
    examination = replace(examine.examine(detector, image), stride=32)
    evidence.draw(detector, examination, "map")
    tinted = np.asarray(examination.pictures["map"].tiles[0][1], dtype=float)
    pixels = np.asarray(image.resize((512, 768)), dtype=float)
    scale, found, expected = 768 // 96, [], []
    for top in (0, 32, 64):
        for left in (0, 32):
            part = np.s_[top * scale + 8 : (top + 32) * scale - 8, left * scale + 8 : (left + 32) * scale - 8]
            found.append((tinted[part] - 0.55 * pixels[part]).mean((0, 1)))
            crop = detector.stage1.cut_out(image, crops.Plan([(top, left)], 1))
            (scored,) = detector.stage1.score([crop])
            p = decide.decide(scored.logits[None].numpy(), detector.stage1).probabilities[0, 1]
            blend = evidence.REAL_COLOUR + (evidence.FAKE_COLOUR - evidence.REAL_COLOUR) * p
            expected.append(0.45 * 255 * blend)
    np.testing.assert_allclose(found, expected, atol=1.5)


def test_a_patch_is_found_where_its_windows_agree_and_nowhere_else():
    corners = [(top, left) for top in range(0, 320, 32) for left in range(0, 320, 32)]
    p, seen = np.full(100, 0.1), evidence.Examination("x", Verdict("x", verdict="real"), (0.3, 0.7))
    assert evidence.in_part(p, corners, 32, seen) is None
    p[34] = 0.99
    assert evidence.in_part(p, corners, 32, seen) is None  # one window alone
    p[[35, 44, 45]] = 0.8
    assert evidence.in_part(p, corners, 32, seen) == (96, 128, 64)
    wide = [(top // 4, left) for top, left in corners]  # rows overlap, columns do not: the square is within the windows
    assert evidence.in_part(p, wide, 32, seen) == (24, 128, 40)
    assert evidence.in_part(p, corners, 32, replace(seen, limits=(0.3, 0.85))) is None  # of a threshold asked for
    for verdict in (Verdict("x", verdict="fake"), Verdict("x", verdict="unsure", outside="it shows nothing")):
        assert evidence.in_part(p, corners, 32, replace(seen, verdict=verdict)) is None
    assert evidence.in_part(np.maximum(p, 0.5), corners, 32, seen) is None  # all of it is in doubt
    assert evidence.in_part(p[:4], corners[:4], 32, seen) is None


def test_mean_spectra_stand_beside_the_images_where_the_run_has_them(run, image):
    prints = {name: fingerprint.Fingerprint(None, np.random.rand(32, 32), 3) for name in ("ProGAN", "BigGAN")}
    fingerprint.save_spectra(prints, run)
    detector = Detector.load(run)
    examination = examine.examine(detector, image)
    evidence.draw(detector, examination, "residual")
    labels = ["its spectrum", "BigGAN", "ProGAN"]
    assert [label for label, _ in examination.pictures["residual"].tiles[2:]] == labels
    with (run / fingerprint.SPECTRA).open("wb") as file:  # as earlier versions named them
        np.savez(file, **{name: own.spectrum for name, own in prints.items()})
    evidence.draw(detector, examination, "residual")
    assert [label for label, _ in examination.pictures["residual"].tiles[2:]] == labels
    assert "What stage 2 extracts" in examination.pictures["residual"].caption
    (run / CHECKPOINTS["stage2"]).unlink()
    (run / "spectra.npz").unlink()
    alone = Detector.load(run)
    examination = examine.examine(alone, image)
    evidence.draw(alone, examination, "residual")
    caption = examination.pictures["residual"].caption
    assert "The high-pass part of the middle" in caption and "compare with." in caption and "stage 2" not in caption


def test_the_spectrum_of_a_generator_of_any_name_is_kept(tmp_path):
    prints = {name: fingerprint.Fingerprint(None, np.random.rand(4, 4), 3) for name in ("file", "allow_pickle", "a b")}
    fingerprint.save_spectra(prints, tmp_path)
    with np.load(tmp_path / fingerprint.SPECTRA) as kept:
        assert {name: kept[name].mean() for name in kept} == {
            f"{name} spectrum": pytest.approx(own.spectrum.mean()) for name, own in prints.items()
        }


def test_a_file_that_is_changed_while_it_is_read_gets_no_answer(run, image, tmp_path, monkeypatch):
    image.save(path := tmp_path / "x.png")
    read = examine.read_metadata

    def changing(source):
        noise(130, 100, seed=1).save(path)
        return read(source)

    monkeypatch.setattr(examine, "read_metadata", changing)
    refused = examine.examine_or_refuse(Detector.load(run), path, "x.png")
    assert refused.verdict.error == "it was changed while it was read" and refused.image is None


def test_names_and_bytes_of_strangers_stay_on_one_line(run, image):
    examination = examine.examine(Detector.load(run), encoded(image, "PNG"), name="../../etc/pass\nwd\u202egnp.exe")
    assert examination.name == r"../../etc/pass\nwd\u202egnp.exe" and examination.verdict.path is None


def test_the_nearest_training_image_of_each_class_is_named(run, image):
    stage = Detector.load(run).stage1
    width = stage.model.backbone.num_features
    with torch.inference_mode():
        crop = stage.cut_out(image, crops.Plan([((100 - 32) // 2, (130 - 32) // 2)], 1)).windows / 255
        own = describe(stage.model, crop)[1]
    mean, basis = torch.zeros(width), torch.eye(width)[:3]
    places = own[:, :3] + torch.tensor([[0.0, 3, 4], [0, 0, 1], [0, 0, 2], [0, 0, 0.5]])
    names = [
        ["RealPhotos", "s", "a/1.png"],
        ["RealPhotos", "s", "a/2.png"],
        ["ProGAN", "t", "b/3.png"],
        ["X", "<u>", "4"],
    ]
    space = {"feature_bank": torch.vstack([mean, basis]), "neighbours": places, "neighbour_names": names}
    update_checkpoint(run / CHECKPOINTS["stage1"], **space, ood_threshold=1e9)
    detector = Detector.load(run)
    examination = examine.examine(detector, image)
    evidence.draw(detector, examination, "nearest")
    caption = examination.pictures["nearest"].caption
    for told in ("RealPhotos at 1.0 (2.png of s)", "ProGAN at 2.0 (3.png of t)", "X at 0.5 (4 of <u>)"):
        assert told in caption
    assert "1.png" not in caption and examination.verdict.outside is None
    update_checkpoint(run / CHECKPOINTS["stage1"], ood_threshold=0.0)
    examination = examine.examine(Detector.load(run), image)
    assert examination.verdict.verdict == "unsure" and "unlike all images" in examination.verdict.outside
    assert "Nothing that was measured says how to take this score: it is unlike" in " ".join(examination.sentences)
    assert sentence("headline", examination.verdict) == "Unsure: nothing like it was measured"
    update_checkpoint(run / CHECKPOINTS["stage1"], band=[0.2, 0.8])  # what the mark on the page is between
    text = said(Detector.load(run), image)
    assert "Below 0.200 it would be called a photograph, from 0.800 on generated" in text
    assert "It is held against" not in text


def test_the_tables_last_column_says_why_there_is_no_answer():
    verdict = Verdict("a", True, "unsure", 0.5, "ProGAN", outside="it is unlike all images")
    assert sentence("source", verdict) == "it is unlike all images"
    assert sentence("source", replace(verdict, outside=None)) == "if it were fake: ProGAN"
    assert sentence("source", replace(verdict, outside=None, verdict="fake")) == "ProGAN"
    assert sentence("source", replace(verdict, outside=None, verdict="fake", source=None)) == "not told: no stage 2"
    both = {"ProGAN": 0.7, "BigGAN": 0.3}
    assert sentence("source", replace(verdict, p_source=both, candidates=())) == "it is unlike all images"


def test_large_images_are_of_no_upper_size():
    of_large = sentence("kind", {"side": (384, 100_000), "quality": (0, 102)})
    assert of_large == "384 px or more on the shorter side, saved as JPEG or not"


def test_a_score_is_called_calibrated_where_it_is(run, image):
    scores = Detector.load(run).stage1.validation
    for validation, words in (
        ({}, "Its score is 0."),
        (scores or {"photos": [0.1], "fakes": [0.9]}, "Its calibrated score is 0."),
    ):
        update_checkpoint(run / CHECKPOINTS["stage1"], validation=validation)
        assert words in said(Detector.load(run), image)


def test_a_threshold_asked_for_that_is_the_detectors_own_leaves_no_gap(run):
    scores = {"photos": [0.1] * 19 + [0.4], "fakes": [0.5, 0.9]}
    update_checkpoint(run / CHECKPOINTS["stage1"], validation=scores, band=[0.2, 0.8])
    update_checkpoint(run / CHECKPOINTS["stage1"], threshold=Detector.load(run).at_fpr(0.01).threshold)
    asked = Detector.load(run).at_fpr(0.01)
    assert answer(0.6, asked.stage1, asked.threshold) == "fake"  # as above and below such a threshold
    assert answer(0.6, asked.stage1, asked.stage1.threshold) == "unsure"


def test_a_quality_below_all_that_was_measured_is_unsure(run, image):
    bins = [{"side": (0, 192), "quality": (50, 75)}, {"side": (0, 100_000), "quality": (0, 102)}]
    told = {"photos": 60, "fakes": 70, "sources": 5, "false_alarms": 0.02, "misses": 0.1, "unsure": 0.3}
    bins = [bin | told | {"worst_photos": ("s", 0.1), "worst_fakes": ("t", 0.25)} for bin in bins]
    update_checkpoint(run / CHECKPOINTS["stage1"], rates=bins, is_held_out=True)
    detector = Detector.load(run)
    for quality, is_outside in ((30, True), (44, True), (46, False), (90, False)):
        verdict = detector(encoded(image, "JPEG", quality=quality))
        assert (verdict.outside is not None) == is_outside and (verdict.verdict == "unsure") == is_outside
    assert detector(image).outside is None
    text = " ".join(examine.examine(detector, encoded(image, "JPEG", quality=60)).sentences)
    assert "On images 0 to 191 px on the shorter side, of JPEG quality 50 to 74, from 5 sources" in text
    assert "2 in 100 of 60 photos were called generated, and 10 in 100 of 70 fakes photographs" in text
    assert "The worst source of photos had 10 in 100 (s), the worst of fakes 25 in 100 (t)." in text
    update_checkpoint(run / CHECKPOINTS["stage1"], is_held_out=False)  # as it is, of the run's own validation split
    assert Detector.load(run)(encoded(image, "JPEG", quality=30)).outside is None


def test_a_threshold_that_was_asked_for_takes_no_credit_for_the_detectors_own_limits(run, image):
    p = Detector.load(run)(image).p_fake
    told = {"photos": 60, "fakes": 70, "sources": 5, "false_alarms": 0.02, "misses": 0.1, "unsure": 0.3}
    bins = [{"side": (0, 100_000), "quality": (0, 102), "worst_photos": None, "worst_fakes": None} | told]
    scores = {"photos": [0.0] * 19 + [p + 0.02], "fakes": [p + 0.04]}
    stage1 = run / CHECKPOINTS["stage1"]
    update_checkpoint(stage1, rates=bins, threshold=p, band=[p - 0.02, p + 0.01], validation=scores)
    own, asked = said(Detector.load(run), image), said(Detector.load(run).at_fpr(0.01), image)
    assert f"from {p + 0.01:.3f} on generated; in between one answer or the other would be wrong for more than" in own
    assert f"from {p + 0.03:.3f} on generated; in between it gives no answer, by that threshold." in asked
    assert "At the detector's own limits" not in own and "At the detector's own limits, not at the thr" in asked
    for text in (own, asked):  # unsure: no name, and nothing that crops could agree with
        assert "By themselves its 5 crops score from 0." in text and "agree" not in text
        assert "Were it generated," in text and "looks most like" not in text
    for detector, high in ((Detector.load(run), p + 0.01), (Detector.load(run).at_fpr(0.01), p + 0.03)):
        bar = examine.fragment("answer", examine.examine(detector, image))
        assert re.findall(r'class="mark" style="left: ([\d.]+)%', bar) == [f"{100 * x:.1f}" for x in (p - 0.02, high)]
        assert f"unsure from {p - 0.02:.3f} to {high:.3f}" in bar and "between the lines: unsure" in bar
    update_checkpoint(stage1, band=None)
    assert "line: threshold" in examine.fragment("answer", examine.examine(Detector.load(run), image))


@pytest.mark.parametrize(
    ("lr", "words"),
    [
        (0.1, "no support either way: such a score is about 1.3 times more common among fakes than among photos"),
        (0.0, "as common among fakes as among photos"),
        (0.8, "weak support that it was generated: such a score is about 6.3 times"),
        (-1.5, "moderate support that it was photographed: such a score is about 32 times more common among photos"),
        (2.5, "moderately strong support"), (2.99, "moderately strong support"), (3.01, "strong support"),
        (3.5, "strong support"), (4.01, "very strong support"), (-4.5, "very strong support that it was photo"),
    ],
)  # fmt: skip
def test_evidence_in_words(lr, words):
    assert sentence("support", lr).startswith(words) or lr == 0 and words in sentence("support", lr)


def test_evidence_speaks_for_what_scores_high(run, image):
    fitted = {"x": [-20.0, 20.0], "log10_lr": [-10.0, 10.0], "photos": 5, "fakes": 5, "groups": [5, 5]}
    update_checkpoint(run / CHECKPOINTS["stage1"], likelihood=fitted, temperature=2.0)
    verdict = Detector.load(run)(image)
    odds = np.log(verdict.p_fake / (1 - verdict.p_fake))
    assert abs(odds) > 1e-3 and verdict.log10_lr == pytest.approx(2 * odds / 2, abs=1e-4)


def test_evidence_is_said_with_its_limit(run, image):
    x, y = [-100.0, 100.0], [1.699, 1.699]
    fitted = {"x": x, "log10_lr": y, "photos": 150, "fakes": 140, "kind": "logistic", "cllr": 0.5, "cllr_min": 0.4}
    update_checkpoint(run / CHECKPOINTS["stage1"], likelihood=fitted)
    detector = Detector.load(run)
    assert detector(image).log10_lr == 1.699
    text = said(detector, image)
    assert "moderate support that it was generated: such a score is about 50 times" in text
    assert "More than that cannot be said from the 150 photos and 140 fakes" in text  # of an earlier version


@pytest.mark.parametrize(
    ("ends", "words"),
    [
        ([-2.7, 2.7], "no support either way: such a score is as common among fakes as among photos (log10 likelihood"),
        ([0.477, 2.7], "+0.48). More than that cannot be said from 9 independent groups of photos and 8 of fakes that"),
        ([-0.426, 2.7], "−0.43). More than that cannot be said from 9 independent groups of photos and 8 of fakes"),
        ([0.4, 2.7], "about 2.5 times more common among fakes than among photos (log10 likelihood ratio +0.40). "),
        ([0, 0], "for no score could be shown to say more by 9 independent groups of photos and 8 of fakes that it"),
    ],
)  # fmt: skip
def test_the_limit_of_evidence_is_told_in_groups(run, image, ends, words):
    x = [-1e5, 1e5] if ends[0] == -2.7 else [1e5, 2e5]
    fitted = {"x": x, "log10_lr": ends, "photos": 150, "fakes": 140, "groups": [9, 8], "kind": "logistic"}
    update_checkpoint(run / CHECKPOINTS["stage1"], likelihood=fitted)
    text = said(Detector.load(run), image)
    assert words in text and ("More than" in text) == (ends[0] in (0.477, -0.426))
    update_checkpoint(run / CHECKPOINTS["stage1"], likelihood=fitted | {"unit": "source"})
    assert words.replace("groups", "sources") in said(Detector.load(run), image)


def test_the_map_says_its_scores_in_words_too():
    text = sentence("caption_map", 64, 32, [0.25, 0.9, 0.5, 0.1], 4, 1.0, 0.5)
    assert "Their scores lie between 0.10 and 0.90, those of 2 of them at 0.500 or above" in text
    assert "Its score is 0.25; from 0.500 on an image is called generated." in sentence(
        "caption_map", 64, 32, [0.25], 1, 1.0, 0.5
    )
    apart = sentence("caption_map", 64, 160, [0.25] * 4, 4, 0.35, 0.5)
    assert "4 windows, one each 160 pixels or less; 65 % of the image, between them" in apart
    assert "was not looked at" not in sentence("caption_map", 64, 64, [0.25] * 4, 4, 0.97, 0.5)  # rounded


@pytest.mark.parametrize(("count", "tenths"), [(54, 5), (59, 6), (89, 9), (99, 9)])
def test_shares_are_the_nearest_tenth(count, tenths):
    text = sentence("share", 0.5, [0.6] * count + [0.1] * (100 - count), "photos")
    assert text == f"about {tenths} in 10 photos ({count} of 100)"


def test_cells_that_were_not_judged_are_counted_with_the_reason():
    answers = {i: Verdict("", verdict="real" if i else "unsure", outside=None if i else "small") for i in range(3)}
    text = sentence("caption_stability", answers, "real", False)
    assert "It stands in 2 of 3 cells." in text and "1 is unsure because nothing like it was measured" in text


@pytest.mark.parametrize(("is_held_out", "is_said"), [(True, False), (False, True)])
def test_a_name_of_heads_that_saw_no_source_is_the_nearest_and_no_more(is_held_out, is_said):
    second = Stage(content("stage2", ood_threshold=9.0, is_held_out=is_held_out), CPU)
    detector = Detector(Stage(content(threshold=0.0), CPU), second, threshold=0.0)
    text = said(detector, noise(90, 60))
    assert "Of the known generators it looks most like" in text and ("enough to be named so" in text) == is_said


@pytest.mark.parametrize(("smallest", "is_outside"), [(60, False), (61, True), (None, False)])
def test_an_image_smaller_than_what_it_learnt_from_is_unsure(smallest, is_outside):
    detector = Detector(Stage(content(**{"smallest": smallest} if smallest else {}), CPU))
    pixels = noise(90, 60)
    for image in (pixels, np.asarray(pixels), torch.from_numpy(np.array(pixels) / 255).permute(2, 0, 1)):
        verdict = detector(image)
        assert (verdict.verdict == "unsure") == is_outside
        assert verdict.outside == ("its shorter side has 60 px, and hardly a photo below 61 was learnt from"
                                   if is_outside else None)  # fmt: skip


def test_what_lies_outside_is_told_and_has_no_evidence(run):
    fitted = {"x": [-20.0, 20.0], "log10_lr": [-1.0, 1.0], "photos": 5, "fakes": 5, "groups": [5, 5]}
    update_checkpoint(run / CHECKPOINTS["stage1"], likelihood=fitted)
    verdict = Detector.load(run)(Image.new("RGB", (100, 80)))
    assert verdict.verdict == "unsure" and "its crops show nothing" in verdict.outside and verdict.log10_lr is None


def test_a_patch_is_told_and_framed(run, monkeypatch):
    monkeypatch.setattr(evidence, "in_part", lambda *_: (32, 0, 32))
    detector = Detector.load(run)
    examination = examine.examine(detector, noise(96, 64))
    evidence.draw(detector, examination, "map")
    assert "the square of 32 pixels whose upper left corner lies at 0, 32" in examination.remarks[0]
    rows, columns = np.nonzero((np.asarray(examination.pictures["map"].tiles[0][1]) == 255).all(2))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (256, 511, 0, 256)  # 8 times as large


def test_grad_cam_is_of_fake_on_the_crops_that_score_highest(run, image, monkeypatch):
    asked, detector = [], Detector.load(run)
    heat = lambda stage, crops, name: asked.append(name) or np.zeros((len(crops), 32, 32))  # noqa: E731
    monkeypatch.setattr(evidence.explain, "grad_cam", heat)
    examination = examine.examine(detector, image, crops=9)
    evidence.draw(detector, examination, "gradcam")
    highest = sorted((p for p, _ in examination.crops), reverse=True)[:5]
    labels = [label for label, _ in examination.pictures["gradcam"].tiles]
    assert asked == ["fake"] and labels == [f"score {p:.2f}" for p in highest]


def test_rates_are_those_of_the_shorter_side(run):
    told = {"photos": 60, "fakes": 70, "sources": 5, "false_alarms": 0.0, "misses": 0.1, "unsure": 0.3}
    told |= {"quality": (0, 102), "worst_photos": None, "worst_fakes": None}
    update_checkpoint(run / CHECKPOINTS["stage1"], rates=[told | {"side": (0, 192)}, told | {"side": (0, 100_000)}])
    assert "On images 0 to 191 px on the shorter side" in said(Detector.load(run), noise(300, 100))


def test_a_threshold_asked_for_leaves_the_run_known(run):
    update_checkpoint(run / CHECKPOINTS["stage1"], validation={"photos": [0.1] * 20, "fakes": [0.9]})
    assert Detector.load(run).at_fpr(0.05).run == run


def test_the_cell_of_the_file_as_it_is_lies_outside_where_the_answer_does(run, image):
    bins = [{"side": (0, 100_000), "quality": quality} for quality in ((50, 101), (0, 102))]
    told = {"photos": 60, "fakes": 70, "sources": 5, "false_alarms": 0.0, "misses": 0.1, "unsure": 0.0}
    bins = [bin | told | {"worst_photos": None, "worst_fakes": None} for bin in bins]
    update_checkpoint(run / CHECKPOINTS["stage1"], rates=bins, is_held_out=True)
    detector = Detector.load(run)
    examination = examine.examine(detector, encoded(image, "JPEG", quality=30))
    next(evidence.trace(detector, examination))
    assert examination.stability[1.0, None].outside == examination.verdict.outside is not None


def test_low_is_blue_and_high_orange_as_the_caption_says():
    for colour, (most, least) in ((evidence.REAL_COLOUR, (2, 0)), (evidence.FAKE_COLOUR, (0, 2))):
        assert colour[most] > colour[1] > colour[least]
