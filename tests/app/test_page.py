"""The pages of a case: whole, deaf to scripts in names and metadata, and usable by all."""

import html
import json
import re
from base64 import b64encode
from hashlib import sha256
from pathlib import Path

import pytest
from bad_files import encoded
from networks import content, noise
from PIL import Image, PngImagePlugin

from dfd.app import case, evidence
from dfd.app.examine import examine, examine_or_refuse
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
    """A case with hostile text wherever a file or a person can bring it, beside photos that are alike."""
    folder = tmp_path_factory.mktemp("page") / "case"
    detector = Detector(*(Stage(content(stage)) for stage in CHECKPOINTS))
    about = {"title": HOSTILE[0], "examiner": HOSTILE[1], "notes": HOSTILE}
    with case.opened(folder, detector, about) as made:
        for number, text in enumerate(HOSTILE):
            image, exif, kept = noise(130, 100, number), Image.Exif(), PngImagePlugin.PngInfo()
            exif[0x010F] = exif[0x010E] = text
            kept.add_text("parameters", text)
            kept.add_text(text[:70].replace("\n", " "), "value")
            jpeg = encoded(image, "JPEG", exif=exif, comment=text.encode(), quality=97)
            for data in (jpeg, encoded(image, "PNG", pnginfo=kept)):
                examination = examine(detector, data, text)
                if not number:
                    evidence.draw(detector, examination)
                made.add(examination)
            made.add(examine_or_refuse(detector, text, text))
        made.finish()
    return folder


def pages(folder):
    return [folder / "index.html", *sorted((folder / "images").iterdir())]


def test_foreign_text_is_escaped_everywhere(written):
    assert len(pages(written)) == 1 + 2 * len(HOSTILE)
    for path in pages(written):
        text = path.read_text("utf-8")
        assert not any(hostile in text for hostile in HOSTILE[:3])
        assert ("owned" in text or "7 * 7" in text) and "<script>document" not in text
        bare = re.sub(r"<script>.*?</script>", "", text, flags=re.S)  # the index's own, whose hash its policy names
        assert "<script" not in bare and not re.search(r"<[^>]*\son\w+=", re.sub(r'"[^"]*"', '""', bare))
    assert "{{ 7 * 7 }}" in pages(written)[0].read_text("utf-8")


def test_pages_load_nothing_but_thumbnails_and_say_so(written):
    index, *others = (path.read_text("utf-8") for path in pages(written))
    assert set(re.findall(r'src="([^"/]+)/', index)) == {"thumbs"} and 'src="http' not in index
    allowed = b64encode(sha256(re.search("<script>(.*?)</script>", index, re.S)[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{allowed}'" in html.unescape(index) and "default-src 'none'" in index
    for text in others:
        assert set(re.findall(r'src="([a-z]+:)', text)) == {"data:"} and "script-src" not in text
        assert re.findall(r'href="([^"#]+)"', text) == ["../index.html"]


def test_a_page_says_what_the_answer_rests_on(run, tmp_path):
    detector, data = Detector.load(run), encoded(noise(130, 100), "JPEG", quality=80)
    examination = examine(detector, data, "photo.jpg")
    evidence.draw(detector, examination)
    with case.opened(tmp_path / "case", detector, {}) as made:
        made.add(examination)
        made.add(examine_or_refuse(detector, b"", "bad.png"))
        made.finish()
    index, page = (html.unescape(path.read_text("utf-8")) for path in pages(tmp_path / "case"))
    for told in (*examination.sentences, sentence("headline", examination.verdict), examination.metadata.sha256):
        assert told in page
    assert all(picture.caption in page for picture in examination.pictures.values())
    assert "nearest to libjpeg's 80, chroma 4:2:0" in page and "It carries no EXIF" in page
    assert page.count("data:image/png") == 1 + 3 + 5
    assert "empty file (0 bytes)" in index and "1 refused" in re.sub("<[^>]*>", "", index)
    assert sha256(data).hexdigest() == json.loads((tmp_path / "case" / "verdicts.json").read_text())[0]["sha256"]


@pytest.fixture(scope="module")
def browser():
    reason = "needs `pip install playwright` and Chromium (apt install chromium)"
    api = pytest.importorskip("playwright.sync_api", reason=reason)
    if not Path("/usr/bin/chromium").exists():
        pytest.skip(reason)
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (800, "light"), (390, "dark")])
def test_nothing_foreign_runs_nothing_sticks_out_and_axe_finds_nothing(written, browser, width, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said, asked, blocked, tabs = [], [], [], []
    for path in pages(written):  # side by side: each is looked at half a second after its last request
        tabs.append(tab := context.new_page())
        tab.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("console", lambda message: blocked.append(message.text))
        tab.goto(path.as_uri())
    for tab in tabs:
        tab.wait_for_load_state("networkidle")
        assert "owned" != tab.title() and not said and not blocked
        assert tab.evaluate("document.querySelectorAll('svg,[onerror]').length") == 0
        assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert tab.evaluate("[...document.images].every(image => !image.complete || image.naturalWidth > 0)")
        assert tab.evaluate("[...document.images].some(image => image.naturalWidth > 0)")
    context.close()
    here = written.as_uri()
    assert all(url.startswith(("data:", here)) for url in asked)
    options = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}
    for path in pages(written)[:3]:
        context = browser.new_context(bypass_csp=True, viewport={"width": width, "height": 900}, color_scheme=scheme)
        free = context.new_page()  # axe is a script, which the policy keeps out
        free.goto(path.as_uri())
        found = axe.Axe().run(free, options=options).response["violations"]
        assert [(row["id"], row["nodes"][0]["html"]) for row in found] == []
        context.close()


@pytest.mark.slow
def test_the_list_is_sorted_filtered_and_unfolded_by_mouse_and_keyboard(written, browser):
    tab = browser.new_page()
    tab.goto(pages(written)[0].as_uri())
    shown = "[...document.querySelectorAll('#images tbody tr')].filter(row => !row.hidden)"
    count = lambda: tab.evaluate(f"{shown}.length")  # noqa: E731
    refused = len(HOSTILE)
    assert count() == 2 * refused and "of 15 images" in tab.inner_text("#count")  # each JPEG has its PNG folded below
    tab.check("#unfold")
    assert count() == 3 * refused
    tab.select_option("#only", "refused")
    assert count() == refused
    tab.select_option("#only", "")
    tab.fill("#find", "7 * 7")
    assert count() == 3
    tab.fill("#find", "")
    tab.focus("#images thead button[data-column=verdict]")
    tab.keyboard.press("Enter")
    values = tab.evaluate(f"{shown}.map(row => Number(row.dataset.verdict))")
    assert values == sorted(values) and len(set(values)) > 2
    tab.keyboard.press("Enter")
    assert tab.evaluate(f"{shown}.map(row => Number(row.dataset.verdict))") == values[::-1]
    assert tab.get_attribute("#images thead th[aria-sort]", "aria-sort") == "descending"
    tab.click("#images tbody tr:not([hidden]) a")
    assert "images/" in tab.url and tab.locator("article").count() == 1
    tab.close()
