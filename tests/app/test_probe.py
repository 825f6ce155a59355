"""The probe without a browser: widgets are set as a browser would set them, and jobs run on their thread."""

import hashlib
import io
import threading
from datetime import UTC, datetime

import pytest
from bad_files import png_header
from networks import content, noise

from dfd import config
from dfd.app import case, probe
from dfd.app.evidence import KINDS
from dfd.app.probe import Probe
from dfd.config import CHECKPOINTS
from dfd.data import manifest, sample
from dfd.inference.detector import Detector
from dfd.inference.files import save_checkpoint

HOSTILE = "<img src=x onerror=alert(1)>.png"


@pytest.fixture
def app(run):
    app = Probe(Detector.load(run), [], run / "probe")
    yield app
    app.turn += 1  # drops what still waits
    done(app)
    app.thread.shutdown()


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
    app.thread.submit(int).result(120)  # after all that was begun
    return app.on.status.value


def test_an_upload_gets_the_same_verdict_as_predict_in_words(app):
    data = file(noise(130, 100))
    assert "No image yet" in app.on.status.value and app.on.save.disabled
    upload(app, ("photo.png", data))
    assert "status done" in done(app)
    verdict = Detector(app.detector.stage1, app.detector.stage2)(data)
    assert f"score is {verdict.p_fake:.3f}, from 0" in app.on.answer.value
    assert "It is held against 0.500" in app.on.answer.value
    called = f"Called generated, by {verdict.source}" if verdict.is_fake else "Called a photograph"
    assert f">{called}</p>" in app.on.answer.value
    assert app.on.list.label == f"1. photo.png: {called} ({verdict.p_fake:.2f})"
    assert app.on.number.layout.display == "none"  # of one image there is nothing to choose
    assert app.on.evidence.value.count("<section ") == len(KINDS) + 1 and "not drawn yet" not in app.on.evidence.value
    assert "130 × 100" in app.on.metadata.value and app.on.upload.value == ()
    assert not app.on.save.disabled


def test_a_refused_file_says_why_beside_the_others_answers(app):
    upload(
        app,
        (HOSTILE, b"<svg onload='alert(1)'/>"),
        ("huge.png", png_header(20_000, 20_000)),
        ("ok.png", file(noise(64, 64))),
    )
    status = done(app)
    assert "status failed" in status and "Examined 3 images" in status and "2 refused" in status
    assert "an HTML page or SVG drawing" in status and "oversized: " in status
    assert [item.examination.verdict.error is None for item in app.items] == [False, False, True]
    written = [app.on.status.value, app.on.answer.value, app.on.metadata.value]
    assert not any("<img src=x" in text for text in written) and "&lt;img src=x onerror=" in app.on.answer.value
    app.on.list.index = 2
    assert 'class="headline' in app.on.answer.value and done(app)
    assert app.on.evidence.value.count("<section ") == len(KINDS) + 1 and "not drawn yet" not in app.on.evidence.value


def test_the_image_that_is_looked_at_comes_first_and_nothing_is_done_twice(app, monkeypatch):
    begun, go, seen = threading.Event(), threading.Event(), []
    examine = probe.examine_or_refuse

    def slowly(detector, source, name, **options):
        seen.append(name)
        begun.set()
        assert go.wait(30)
        return examine(detector, source, name, **options)

    monkeypatch.setattr("dfd.app.probe.examine_or_refuse", slowly)
    upload(app, *((f"{number}.png", file(noise(64, 64, number))) for number in range(3)))
    assert begun.wait(30)
    app.on.list.index = 2
    assert app.shown is app.items[2] and "The answer appears here" in app.on.answer.value
    go.set()
    assert "Examined 3 images" in done(app) and seen == ["0.png", "2.png", "1.png"]
    assert "<h2>2.png</h2>" in app.on.answer.value and app.on.list.label.startswith("3. 2.png: Called")
    assert "stability" in app.items[2].examination.pictures and not app.items[0].examination.pictures
    assert (app.on.number.value, app.on.number.max, app.on.number.layout.display) == (3, 3, None)
    app.on.number.value = 1
    assert done(app) and app.shown is app.items[0] is app.on.list.value
    assert "stability" in app.shown.examination.pictures


def test_an_image_that_is_looked_at_has_its_answer_though_saving_comes_in_between(app, monkeypatch):
    begun, go, examine = threading.Event(), threading.Event(), probe.examine_or_refuse

    def slowly(detector, source, name, **options):
        if name == "b.png":
            begun.set()
            assert go.wait(30)
        return examine(detector, source, name, **options)

    monkeypatch.setattr("dfd.app.probe.examine_or_refuse", slowly)
    upload(app, ("a.png", file(noise(64, 64))))
    done(app)
    upload(app, ("b.png", file(noise(64, 64, 1))))
    assert begun.wait(30)
    app.on.save.click()
    go.set()
    assert "Saved" in done(app)
    assert "<h2>b.png</h2>" in app.on.answer.value and app.on.list.label.startswith("2. b.png: Called")


def test_what_the_map_found_is_in_the_answer_and_no_evidence_is_of_another_image(app, monkeypatch):
    drawn, go, really = threading.Event(), threading.Event(), probe.draw

    def slowly(detector, examination, *kinds):
        really(detector, examination, *kinds)
        examination.remarks[:] = ["In part: a remark of the map"]
        drawn.set()
        assert go.wait(30)

    monkeypatch.setattr("dfd.app.probe.draw", slowly)
    upload(app, ("a.png", file(noise(64, 64))), ("b.png", b"no image"))
    assert drawn.wait(30)
    go.set()
    done(app)
    assert "In part: a remark of the map" in app.on.answer.value
    drawn.clear()
    go.clear()
    upload(app, ("c.png", file(noise(64, 64, 2))))
    assert drawn.wait(30)
    app.on.list.index = 1
    go.set()
    done(app)
    assert "<h2>b.png</h2>" in app.on.answer.value and "<section " not in app.on.evidence.value


def test_the_grid_of_stability_comes_last(app, monkeypatch):
    shown = []

    def show():
        examination = app.shown and app.shown.examination
        shown.append(set(examination.pictures) if examination else None)

    monkeypatch.setattr(app, "_show_examination", show)
    upload(app, ("photo.png", file(noise(64, 64))))
    done(app)
    assert shown[-2:] == [set(KINDS), {*KINDS, "stability"}]


def test_saving_writes_a_case_of_all_images(app):
    upload(app, ("../../evil.png", file(noise(130, 100))), (HOSTILE, file(noise(64, 64, 2))), ("bad.png", b"no image"))
    done(app)
    app.on.save.click()
    assert "Saved" in done(app)
    folder, archive = sorted(app.folder.iterdir())  # upload names make no path
    assert folder.name.startswith("case-") and archive.name == folder.name + ".zip"
    assert len(list((folder / "images").iterdir())) == 2 and case.verify(folder) == ([], case.verify(folder)[1])
    text = (folder / "index.html").read_text()
    assert "evil.png" in text and "not an image" in text and "<img src=x" not in text
    pages = "".join(path.read_text() for path in (folder / "images").iterdir())
    assert pages.count("spectrum</h4>") == 2 and "<img src=x" not in pages
    assert app.on.status.value.count("download=") == 1 and "data:application/zip;base64," in app.on.status.value


def test_what_is_saved_while_a_case_is_written_is_a_case_too(app, monkeypatch):
    finish, hold = case.Case.finish, [threading.Event(), threading.Event()]

    def slow(made):
        hold[0].set()
        assert hold[1].wait(60)
        return finish(made)

    class Clock(datetime):
        @classmethod
        def now(cls, zone=None):
            return super().now(zone).replace(second=len(list(app.folder.glob("case-*"))))

    monkeypatch.setattr(probe, "datetime", Clock)
    monkeypatch.setattr(case.Case, "finish", slow)
    upload(app, ("one.png", file(noise(64, 64))))
    done(app)
    app.on.save.click()
    assert hold[0].wait(60)
    upload(app, ("two.png", file(noise(64, 64, 2))))
    app.on.save.click()
    hold[1].set()
    done(app)
    cases = sorted(path for path in app.folder.glob("case-*") if path.is_dir())
    assert [len(case.read_verdicts(path / "verdicts.csv")) for path in cases] == [1, 2]


def test_uploads_are_not_looked_up_beside_the_notebook_and_a_copy_takes_no_page(app, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.png").write_bytes(file(noise(32, 32, 7)))  # of the same name as an upload
    data = file(noise(64, 64))
    upload(app, ("one.png", data), ("a copy.png", data))
    done(app)
    app.on.save.click()
    assert "Saved" in done(app)
    folder = next(path for path in app.folder.iterdir() if path.is_dir())
    wrong, missing = case.verify(folder)
    assert not wrong and len(missing) == 2
    assert {row["sha256"] for row in case.read_json(folder / "case.json")["inputs"]} == {
        hashlib.sha256(data).hexdigest()
    }
    page = next((folder / "images").iterdir()).read_text()
    assert "<title>one.png" in page or ">one.png<" in page
    assert "a copy.png" not in page


def test_a_failure_in_the_background_is_told(app, monkeypatch):
    monkeypatch.setattr("dfd.app.probe.opened", lambda *given: (_ for _ in ()).throw(OSError("disk <full>")))
    upload(app, ("photo.png", file(noise(64, 64))))
    done(app)
    app.on.save.click()
    assert "Failed at saving: OSError: disk &lt;full&gt;" in done(app)


def test_the_gallery_holds_test_images_of_every_class_or_installed_photos(tiny_data, tmp_path):
    cfg = config.Probe(data=str(tiny_data), out=str(tmp_path / "run"), examples=4)
    assert [item.source for item in probe.examples(cfg)] == [photo.path for photo in sample.PHOTOS[:4]]
    table = manifest.scan(tiny_data, out=tmp_path / "run")
    test = set(table.loc[table["split"] == "test", "path"])
    names = [item.name for item in probe.examples(cfg)]
    labels = [name.split("/")[0] for name in names]
    assert set(names) <= test and labels[0] == "RealPhotos" and set(labels) == {"RealPhotos", "BigGAN", "ProGAN"}
    assert len(set(names)) == 4 and probe.examples(cfg.model_copy(update={"examples": 0})) == []
    many = [item.name for item in probe.examples(cfg.model_copy(update={"examples": len(test) + 3}))]
    assert sorted(many) == sorted(test)  # each once


@pytest.mark.parametrize("how", ["parameter", "headless"])
def test_without_widgets_the_examples_are_still_html(how, run, tmp_path, monkeypatch, capsys):
    given = {"static": True, "model": "run"}
    if how == "headless":
        monkeypatch.setenv("DFD_HEADLESS", "1")
        given = {}  # a report is of its own run
    shown = probe.probe(config.Probe(data=str(tmp_path), out=str(run), examples=2, **given)).data
    assert f"Answers come from the run in {run}" in capsys.readouterr().out
    assert shown.count('class="headline') == 2 and shown.count("<h4>Does the answer stand?</h4>") == 2
    assert "Grad-CAM" in shown and "What the file says of itself" in shown and "<script" not in shown


@pytest.mark.parametrize("model", ["auto", "shipped"])
def test_by_hand_the_detector_that_ships_answers(model, run, tmp_path, monkeypatch):
    asked, loaded = [], Detector.load(run)
    monkeypatch.setattr(probe.Detector, "load", lambda *given: asked.append(given) or loaded)
    probe.probe(config.Probe(data=str(tmp_path), out=str(run), examples=0, static=True, model=model))
    assert asked == [()]


def test_the_threshold_can_be_asked_for_by_rate(run, tmp_path):
    save_checkpoint(content(validation={"photos": [0.7] * 10, "fakes": [0.8]}), run / CHECKPOINTS["stage1"])
    cfg = config.Probe(data=str(tmp_path), out=str(run), examples=1, static=True, fpr=0.05, model="run")
    assert "held against 0.750" in probe.probe(cfg).data


def test_a_part_that_fails_leaves_the_others_to_be_done(app, monkeypatch):
    monkeypatch.setattr("dfd.app.probe.draw", lambda *given: (_ for _ in ()).throw(MemoryError("<big>")))
    upload(app, ("photo.png", file(noise(64, 64))), ("other.png", file(noise(64, 64, 1))))
    assert "MemoryError: &lt;big&gt;" in done(app)
    assert "stability" in app.shown.examination.pictures


@pytest.mark.parametrize("part", ["trace", "draw"])
def test_a_part_that_fails_does_not_take_the_case_away(part, app, monkeypatch):
    monkeypatch.setattr(f"dfd.app.probe.{part}", lambda *given: (_ for _ in ()).throw(MemoryError("big")))
    upload(app, ("photo.png", file(noise(64, 64))))
    done(app)
    app.on.save.click()
    assert "MemoryError" in done(app) and [*app.folder.glob("case-*.zip")]


def test_the_oldest_images_go_first(app, monkeypatch):
    monkeypatch.setattr(app, "_begin", lambda: None)
    for start in (0, 30):
        app.add([probe.Item(str(number), b"") for number in range(start, start + 30)])
    assert [item.name for item in app.items] == [str(number) for number in range(10, 60)] and app.shown.name == "30"
