"""The probe as a person meets it: notebook 05 in JupyterLab and in Voilà, driven with Chromium."""

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from contextlib import contextmanager, suppress

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from networks import content, noise

from dfd import config
from dfd.config import CHECKPOINTS
from dfd.inference.files import save_checkpoint

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
WAIT = 60_000  # milliseconds; on a busy machine a kernel alone takes half of it
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("playwright") is None,
        reason="Playwright is missing: pip install -e '.[dev]' installs it",
    ),
    pytest.mark.skipif(
        CHROMIUM is None,
        reason="no Chromium: apt-get install chromium, or set CHROMIUM to a Chrome or Chromium of yours",
    ),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # playwright's own pipes
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the notebook as it is, but for its paths; a run with small random networks; images to give it."""
    place = tmp_path_factory.mktemp("lab")
    for stage, name in CHECKPOINTS.items():
        save_checkpoint(content(stage), place / name)
    notebook = nbformat.read(config.ROOT / "notebooks" / "05_probe.ipynb", as_version=4)
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    cell.source += f"\nout = {str(place)!r}\ndata = {str(place)!r}\nexamples = 2\nmodel = 'run'"
    nbformat.write(notebook, place / "probe.ipynb")
    noise(150, 120).save(place / "given.png")
    (place / "wrong.png").write_bytes(b"<svg onload='window.hurt = 1'/>")
    return place


@contextmanager
def served(place, *command):
    """Run a server on a free port until the block ends; gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {"HOME": str(place), "JUPYTER_RUNTIME_DIR": str(place / "runtime"), "DFD_CACHE": str(place / "cache")}
    env = {**os.environ, **own, "PYTHONPATH": str(config.ROOT), "OMP_NUM_THREADS": "1"}
    log = place / f"{command[0]}.log"
    with log.open("w") as lines:
        server = subprocess.Popen(
            [sys.executable, "-m", *command, "--no-browser", f"--port={port}"],
            cwd=place, env=env, stdout=lines, stderr=lines,
        )  # fmt: skip
        try:
            for _ in range(300):
                assert server.poll() is None, log.read_text()
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/api", timeout=5).close()
                    break
                except urllib.error.HTTPError as answer:  # it is there, and has no such page
                    answer.close()
                    break
                except OSError:
                    time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(30)


@pytest.fixture(scope="module")
def lab(place):
    """The address of a JupyterLab."""
    options = ("--ServerApp.token=", "--ServerApp.password=", "--allow-root", "--LabApp.news_url=None")
    with served(place, "jupyterlab", *options) as address:
        yield address


@contextmanager
def browser(width):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": width, "height": 900})
        page.set_default_timeout(WAIT)
        dialog = page.locator(".jp-Dialog .jp-mod-accept")  # JupyterLab's, as where a kernel had to start again
        page.add_locator_handler(dialog, lambda accept: accept.click())
        try:
            yield page
        finally:
            chromium.close()


def give(page, path):
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name=re.compile("Choose images")).click()
    chooser.value.set_files(path)


def use(page, place):
    """Upload, read the verdict, see whether it stands, save, open what was saved."""
    page.wait_for_selector(".dfd-probe .status")
    assert page.locator(".dfd-probe .thumb").count() == 2
    give(page, place / "given.png")
    headline = page.locator(".dfd-probe .headline")
    headline.wait_for()
    assert re.match("Called (a photograph|generated, by)", headline.text_content())
    words = page.locator(".dfd-probe .answer").text_content()
    assert re.search(r"score is 0\.\d{3}, from 0 .* It is held against 0\.500", words)
    page.locator(".dfd-probe section.stability p", has_text="cells").wait_for()
    page.locator(".dfd-probe section.stability td.generated, .dfd-probe section.stability td.photo").first.wait_for()

    give(page, place / "wrong.png")
    page.locator(".dfd-probe .status.failed", has_text="SVG drawing").wait_for()
    headline.wait_for(state="detached")
    page.get_by_label("Number", exact=True).focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    headline.wait_for()  # of the first image, without a mouse
    page.get_by_role("button", name="Save case").click()
    link = page.locator(".dfd-probe a.download").first
    link.wait_for()
    with page.expect_download() as download:
        link.click()
    (written,) = (place / "probe").glob("case-*/")
    with zipfile.ZipFile(download.value.path()) as saved:
        assert saved.read("index.html") == (written / "index.html").read_bytes()
    assert page.evaluate("window.hurt") is None
    wide = "document.querySelector('.dfd-probe').scrollWidth <= document.querySelector('.dfd-probe').clientWidth"
    assert page.evaluate(wide)

    page.goto(f"file://{written}/index.html")
    assert page.locator("#images tbody tr").count() == 2 and "an HTML page or SVG drawing" in page.content()
    page.locator("#images tbody a").click()
    assert page.locator("article").count() == 1 and page.locator("article img").count() >= 8
    assert page.locator(".headline").text_content() and page.evaluate("window.hurt") is None
    shutil.rmtree(place / "probe")


def test_the_probe_in_jupyterlab(place, lab):
    with browser(1280) as page:
        page.goto(f"{lab}/lab/tree/probe.ipynb?reset")  # without the notebook of the test before
        run_all(page, page.locator(".dfd-probe").first)
        use(page, place)


def run_all(page, shown):
    """Run all cells until something is there: now and then nothing happens, though the kernel is said to be idle."""
    from playwright.sync_api import TimeoutError

    for patience in (25_000, 25_000, 60_000):
        page.get_by_text(re.compile(r"\| Idle$")).wait_for()
        page.locator(".lm-MenuBar-itemLabel", has_text=re.compile("^Run$")).click()
        page.get_by_text("Run All Cells", exact=True).click()
        with suppress(TimeoutError if patience < 60_000 else ()):
            return shown.wait_for(timeout=patience)


def test_images_are_chosen_by_keyboard_in_jupyterlab(place, lab):
    """The browser of notebooks 00 and 04: every control takes the focus and keys, and pictures follow."""
    from playwright.sync_api import expect

    for label in ("RealPhotos", "ProGAN"):
        (place / label).mkdir()
        for number in range(3):
            noise(40, 40).save(place / label / f"{number}.png")
    code = f"""import pandas as pd
from dfd.app import probe
labels = ["RealPhotos"] * 3 + ["ProGAN"] * 3
rows = pd.DataFrame({{"label": labels, "width": [0, 1, 2] * 2}})
rows["path"] = rows["label"] + "/" + rows["width"].astype(str) + ".png"
rows.attrs["root"] = {str(place)!r}
probe.browse(rows, ["label"], ["width"], shown=4)"""
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new_notebook(cells=[new_code_cell(code)], metadata=kernel), place / "images.ipynb")
    with browser(1280) as page:
        page.goto(f"{lab}/lab/tree/images.ipynb?reset")
        names = page.locator(".dfd-probe figcaption")
        run_all(page, page.locator(".dfd-probe", has_text="6 rows, 1 to 4 are shown"))
        expect(names).to_contain_text(["RealPhotos/0.png", "ProGAN/0.png", "RealPhotos/1.png", "ProGAN/1.png"])
        label, order, number = (page.get_by_label(name, exact=True) for name in ("label", "order", "page"))
        number.focus()
        page.keyboard.press("ArrowUp")
        page.keyboard.press("Enter")
        page.locator(".dfd-probe", has_text="6 rows, 5 to 6 are shown").wait_for()
        label.focus()
        page.keyboard.type("ProGAN")
        page.keyboard.press("Enter")
        page.locator(".dfd-probe", has_text="3 rows").wait_for()
        order.focus()
        page.keyboard.type("width, highest first")
        page.keyboard.press("Tab")
        page.locator(".dfd-probe figcaption").first.get_by_text("ProGAN/2.png").wait_for()
        expect(names).to_have_count(3, timeout=WAIT)
        expect(page.locator(".dfd-probe img")).to_have_count(3, timeout=WAIT)


@pytest.mark.skipif(
    importlib.util.find_spec("voila") is None, reason="Voilà is missing: pip install -e '.[app]' installs it"
)
def test_the_probe_in_voila_shows_no_code(place):
    with served(place, "voila", str(place / "probe.ipynb")) as address, browser(800) as page:
        page.goto(address)
        page.wait_for_selector(".dfd-probe .status")
        assert "from_notebook" not in page.content() and "What can be said of one image?" in page.content()
        use(page, place)
