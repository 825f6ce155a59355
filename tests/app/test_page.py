"""The page of examinations: whole, self-contained, and deaf to scripts in names and metadata."""

import html
import json
import re
from pathlib import Path

import pytest
from bad_files import encoded
from networks import content, noise
from PIL import Image, PngImagePlugin

from dfd.app import evidence
from dfd.app.examine import examine, examine_or_refuse, page
from dfd.app.metadata import sentence
from dfd.config import CHECKPOINTS
from dfd.inference.detector import Detector
from dfd.inference.stage import Stage

HOSTILE = (
    "<script>document.title = 'owned'</script>",
    '"><img src=x onerror="document.title=\'owned\'">',
    "</style></title><svg onload=\"document.title='owned'\">",
    "javascript:document.title='owned'",
    "{{ 7 * 7 }}<!--",
)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A page with hostile text wherever a file can bring it."""
    detector = Detector(*(Stage(content(stage)) for stage in CHECKPOINTS))
    image, made = noise(130, 100), []
    for text in HOSTILE:
        exif, kept = Image.Exif(), PngImagePlugin.PngInfo()
        exif[0x010F] = exif[0x010E] = text
        kept.add_text("parameters", text)
        kept.add_text(text[:70].replace("\n", " "), "value")
        jpeg = encoded(image, "JPEG", exif=exif, comment=text.encode())
        made += [examine(detector, data, text) for data in (jpeg, encoded(image, "PNG", pnginfo=kept))]
    evidence.draw(detector, made[0])
    made += [examine_or_refuse(detector, text, text) for text in HOSTILE]
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(page(made, title=HOSTILE[0], model=HOSTILE[1]), "utf-8")
    return path


def test_foreign_text_is_escaped_everywhere(written):
    text = written.read_text("utf-8")
    for hostile in HOSTILE[:3]:
        assert (
            hostile not in text and html.escape(hostile).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in text
        )
    assert "{{ 7 * 7 }}" in text
    assert "<script" not in text and not re.search(r"<[^>]*\son\w+=", re.sub(r'"[^"]*"', '""', text))


def test_a_page_loads_nothing_and_says_so(written):
    text = written.read_text("utf-8")
    assert set(re.findall(r'src="([a-z]+:)', text)) == {"data:"} and 'src="http' not in text
    assert not re.findall(r'href="(?!#image\d+")', text)
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in text


def test_a_page_says_what_the_answer_rests_on():
    detector = Detector(*(Stage(content(stage)) for stage in CHECKPOINTS))
    examination = examine(detector, encoded(noise(130, 100), "JPEG", quality=80), "photo.jpg")
    evidence.draw(detector, examination)
    text = html.unescape(page([examination, examine_or_refuse(detector, b"", "bad.png")], model="reports/mine"))
    for told in (
        *examination.sentences,
        sentence("headline", examination.verdict),
        "No answer: empty file (0 bytes)",
        examination.metadata.sha256,
    ):
        assert told in text
    assert all(picture.caption in text for picture in examination.pictures.values())
    assert "nearest to libjpeg's 80, chroma 4:2:0" in text
    assert text.count("<article") == 2 and text.count("data:image/png") == 1 + 3 + 5


def test_a_page_holds_one_image_at_a_time():
    detector = Detector(*(Stage(content(stage)) for stage in CHECKPOINTS))
    import weakref

    alive = []

    def one_by_one():
        for seed in range(3):
            examination = examine(detector, noise(64, 64, seed))
            alive.append(weakref.ref(examination.image))
            yield examination
            del examination
            assert sum(image() is not None for image in alive) <= 1

    page(one_by_one())


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_nothing_runs_in_a_browser_and_nothing_sticks_out(written, width, scheme):
    reason = "needs `pip install playwright` and Chromium (apt install chromium)"
    api = pytest.importorskip("playwright.sync_api", reason=reason)
    if not Path("/usr/bin/chromium").exists():
        pytest.skip(reason)
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        said, asked, blocked = [], [], []
        tab.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("console", lambda message: blocked.append(message.text))
        tab.goto(written.as_uri())
        tab.wait_for_load_state("networkidle")
        title = tab.title()
        tags = json.loads(tab.evaluate("JSON.stringify([...document.querySelectorAll('script,svg,[onerror]')].length)"))
        fits = tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        shown = tab.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        browser.close()
    assert title == f"{HOSTILE[0]} · dfd" and not said and tags == 0 and not blocked
    assert [url for url in asked if not url.startswith("data:")] == [written.as_uri()]
    assert fits and shown
