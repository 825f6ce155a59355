"""The probe without a browser: widgets are set as a browser would set them, and jobs run on their thread."""

import io
import json
import threading
from datetime import UTC, datetime

import numpy as np
import pytest
from bad_files import png_header
from networks import content, noise
from PIL import Image

from dfd import config
from dfd.app import page, probe
from dfd.app.evidence import KINDS
from dfd.app.examine import Stability
from dfd.app.probe import SLOTS, Jobs, Probe
from dfd.config import CHECKPOINTS
from dfd.data import manifest, sample
from dfd.inference.detector import Detector
from dfd.inference.stage import save_checkpoint

HOSTILE = "<img src=x onerror=alert(1)>.png"


@pytest.fixture
def app(run):
    app = Probe(Detector.load(run), [], run / "probe")
    yield app
    app.cancel()
    assert app.jobs.wait(60)


def file(image, format="PNG"):
    image.save(buffer := io.BytesIO(), format)
    return buffer.getvalue()


def upload(app, *files):
    now = datetime.now(UTC)
    app.on.upload.value = tuple(
        {"name": name, "type": "", "size": len(data), "content": memoryview(data), "last_modified": now}
        for name, data in files
    )


def done(app):
    assert app.jobs.wait(120)
    return app.on.status.value


def test_an_upload_gets_the_same_verdict_as_predict_in_words(app):
    data = file(noise(130, 100))
    assert "No image yet" in app.on.status.value and app.on.save.disabled
    upload(app, ("photo.png", data))
    assert "status done" in done(app)
    verdict = Detector(app.detector.stage1, app.detector.stage2)(data)
    assert f"is {verdict.p_fake:.3f}. It is held against 0.500" in app.on.answer.value
    called = f"Called generated, by {verdict.source}" if verdict.is_fake else "Called a photograph"
    assert f">{called}</p>" in app.on.answer.value
    assert app.on.list.label == f"1. photo.png: {called} ({verdict.p_fake:.2f})"
    assert app.on.evidence.value.count("<section ") == len(KINDS)
    assert "130 × 100" in app.on.metadata.value and app.on.upload.value == ()
    assert not app.on.save.disabled and app.on.cancel.disabled


def test_a_refused_file_says_why_beside_the_others_answers(app):
    upload(
        app,
        (HOSTILE, b"<svg onload='alert(1)'/>"),
        ("huge.png", png_header(20_000, 20_000)),
        ("ok.png", file(noise(64, 64))),
    )
    status = done(app)
    assert "status failed" in status and "Examined 3 images" in status and "2 refused" in status
    assert "an SVG drawing" in status and "oversized: " in status
    assert [item.examination.verdict.error is None for item in app.items] == [False, False, True]
    written = [app.on.status.value, app.on.answer.value, app.on.metadata.value]
    assert not any("<img src=x" in text for text in written) and "&lt;img src=x onerror=" in app.on.answer.value
    app.on.list.index = 2
    assert 'class="headline' in app.on.answer.value and done(app)
    assert "<img" in app.on.curve.value


def test_a_slider_degrades_the_image_and_the_latest_position_wins(app):
    upload(app, ("photo.png", file(noise(130, 100))))
    done(app)
    before = app.on.curve.value, app.on.preview.value
    for quality in (90.0, 60.0, 30.0):
        app.sliders["jpeg"].value = quality
    done(app)
    assert app.on.said.value.count("After JPEG 30: score") == 1
    levels, verdict = app.shown.stability.now
    assert levels == {"jpeg": 30.0, "blur": 0.0, "rescale": 1.0}
    noise(130, 100).save(buffer := io.BytesIO(), "JPEG", quality=30, subsampling="4:2:0")
    assert verdict.p_fake == pytest.approx(app.detector(buffer.getvalue()).p_fake, abs=1e-3)
    assert app.on.curve.value != before[0] and app.on.preview.value != before[1]
    app.on.reset.click()
    done(app)
    assert "Sliders at rest" in app.on.said.value and app.sliders["jpeg"].value == 100


def test_stop_drops_what_waits_and_keeps_what_is_done(app, monkeypatch):
    reached, go = threading.Event(), threading.Event()

    def slowly(*arguments, **options):
        reached.set()
        assert go.wait(30)
        raise AssertionError("never shown")

    upload(app, *((f"{number}.png", file(noise(64, 64, number))) for number in range(2)))
    assert "Examined 2 images" in done(app)
    monkeypatch.setattr("dfd.app.probe.examine_or_refuse", slowly)
    upload(app, ("late.png", file(noise(64, 64, 9))), ("later.png", file(noise(64, 64, 8))))
    assert reached.wait(30) and not app.on.cancel.disabled
    app.on.cancel.click()
    go.set()
    assert "status stopped" in done(app) and "2 of 4 images wait" in app.on.status.value
    assert [item.examination is None for item in app.items] == [False, False, True, True]
    assert app.on.cancel.disabled
    app.on.empty.click()
    assert "No image yet" in app.on.status.value and app.items == [] and app.on.list.options == ()


def test_saving_writes_a_page_and_json_of_all_images(app):
    upload(app, ("../../evil.png", file(noise(130, 100))), (HOSTILE, file(noise(64, 64, 2))), ("bad.png", b"no image"))
    done(app)
    app.on.save.click()
    assert "Saved" in done(app)
    page, data = (next(app.folder.glob(f"probe-*.{suffix}")) for suffix in ("html", "json"))
    assert len(list(app.folder.iterdir())) == 2  # upload names make no path
    text, found = page.read_text(), json.loads(data.read_text())
    assert text.count("<article") == 3 and "<script" not in text and "<img src=x" not in text
    assert text.count("<h4>Spectrum</h4>") == 2 and text.count("<h4>Does the answer stand?</h4>") == 1
    assert [image["p_fake"] is None for image in found["images"]] == [False, False, True]
    curve = found["images"][0]["under_degradation"]["curve"]
    assert [row["level"] for row in curve["jpeg"]] == [95, 85, 75, 65, 50, 30]
    assert app.on.status.value.count("download=") == 2 and "data:text/html;base64," in app.on.status.value


def test_a_failure_in_the_background_is_told(app, monkeypatch):
    monkeypatch.setattr("dfd.app.page.write_text", lambda *given: (_ for _ in ()).throw(OSError("disk <full>")))
    upload(app, ("photo.png", file(noise(64, 64))))
    done(app)
    app.on.save.click()
    assert "Failed at saving: OSError: disk &lt;full&gt;" in done(app) and app.on.cancel.disabled


def test_large_images_are_degraded_in_the_middle():
    image = Image.fromarray(np.arange(1200 * 1500 * 3, dtype=np.uint8).reshape(1200, 1500, 3))
    stability = Stability(image, 0.5)
    assert stability.is_cut and stability.image.size == (1024, 1024)
    assert stability.image.getpixel((0, 0)) == image.getpixel((238, 88))
    assert not Stability(image.crop((0, 0, 60, 50)), 0.5).is_cut


def test_what_the_sliders_offer_begins_with_no_degradation():
    for axis in Stability.axes:
        assert axis.neutral in axis.steps and set(axis.curve) <= set(axis.steps)


def test_the_gallery_holds_test_images_of_every_class_or_installed_photos(tiny_data, tmp_path):
    cfg = config.Probe(data=str(tiny_data), out=str(tmp_path / "run"), examples=4)
    assert [item.source for item in page.examples(cfg)] == [photo.path for photo in sample.PHOTOS[:4]]
    table = manifest.scan(tiny_data, out=tmp_path / "run")
    test = set(table.loc[table["split"] == "test", "path"])
    names = [item.name for item in page.examples(cfg)]
    assert set(names) <= test and [name.split("/")[0] for name in names[:3]] == ["RealPhotos", "BigGAN", "ProGAN"]


@pytest.mark.parametrize("how", ["parameter", "headless"])
def test_without_widgets_the_examples_are_still_html(how, run, tmp_path, monkeypatch):
    if how == "headless":
        monkeypatch.setenv("DFD_HEADLESS", "1")
    cfg = config.Probe(data=str(tmp_path), out=str(run), examples=2, static=how == "parameter")
    shown = probe.probe(cfg).data
    assert shown.count('class="headline') == 2 and shown.count("<h4>Does the answer stand?</h4>") == 2
    assert "Grad-CAM" in shown and "What the file says of itself" in shown and "<script" not in shown


def test_the_threshold_can_be_asked_for_by_rate(run, tmp_path):
    save_checkpoint(content(validation={"photos": [0.7] * 10, "fakes": [0.8]}), run / CHECKPOINTS["stage1"])
    cfg = config.Probe(data=str(tmp_path), out=str(run), examples=1, static=True, fpr=0.05)
    assert "held against 0.750" in probe.probe(cfg).data


def test_jobs_run_in_order_a_step_at_a_time_and_never_resume_what_was_replaced():
    seen, errors, begun, gate = [], [], threading.Event(), threading.Event()
    jobs = Jobs(("first", "second"), lambda slot, error: errors.append((slot, error and str(error))))

    def steps(name, count, wait=False):
        for number in range(count):
            if wait and number == 0:
                begun.set()
                gate.wait(30)
            seen.append(f"{name}{number}")
            yield
        if name == "bad":
            raise ValueError("broken")

    jobs.start("second", steps("slow", 3, wait=True))
    assert begun.wait(30)
    jobs.start("second", steps("new", 2))
    jobs.start("first", steps("bad", 1))
    gate.set()
    assert jobs.wait(30)
    assert [name for name in seen if name != "slow0"] == ["bad0", "new0", "new1"]
    assert errors == [("first", "broken"), ("second", None)] and not jobs.jobs


def test_titles_of_evidence_that_is_awaited_are_those_it_gets(app):
    upload(app, ("photo.png", file(noise(64, 64))))
    done(app)
    titles = {kind: picture.title for kind, picture in app.shown.examination.pictures.items()}
    assert titles == {kind: title for kind, (title, _) in KINDS.items()}
    assert list(SLOTS)[0] == "live" and "being drawn" in page.fragment("evidence", app.shown.examination, ["Spectrum"])
