"""The browser of images: what it shows after each choice, and that nothing of a name becomes a part of the page."""

import os

import pandas as pd
import pytest
from PIL import Image

from dfd.app import probe
from dfd.core import HEADLESS


@pytest.fixture
def rows(tmp_path):
    """Ten photos and three fakes, one of them with a hostile name, and a file that was refused."""
    names = [f"RealPhotos/{n}.png" for n in range(10)] + ["ProGAN/a.png", "ProGAN/b.png", "ProGAN/<b>c.png"]
    for number, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (32 + number, 40), (number * 20, 0, 0)).save(tmp_path / name)
    table = pd.DataFrame({"path": names, "label": [name.split("/")[0] for name in names], "split": "test"})
    table["width"] = range(32, 32 + len(names))
    refused = {"path": "ProGAN/x.png", "label": "ProGAN", "reason": "not an image"}
    table = pd.concat([table, pd.DataFrame([refused])], ignore_index=True)
    table.attrs["root"] = str(tmp_path)
    return table


def controls(view):
    row, page = view.children
    return {control.description: control for control in row.children}, page


def names(page):
    return [text.split("<")[0] for text in page.value.split("<figcaption>")[1:]]


def test_filters_order_and_pages_show_what_they_say(rows):
    found, page = controls(probe.browse(rows, ["label", "split", "nothing"], ["width"], shown=4))
    assert list(found) == ["label", "order", "page"]  # one split, and no column `nothing`
    assert names(page) == ["RealPhotos/0.png", "ProGAN/a.png", "RealPhotos/1.png", "ProGAN/b.png"]
    assert found["page"].max == 4 and "14 rows, 1 to 4 are shown" in page.value
    found["page"].value = 4
    assert names(page) == ["RealPhotos/8.png", "RealPhotos/9.png"]
    found["label"].value = "RealPhotos"
    assert (found["page"].value, found["page"].max) == (1, 3) and "10 rows" in page.value
    found["order"].value = "width, highest first"
    assert names(page) == [f"RealPhotos/{n}.png" for n in (9, 8, 7, 6)] and "width 41" in page.value


def test_a_choice_can_be_taken_back(rows):
    """In JupyterLab an emptied box sends its value only where the empty one is among its options."""
    found, page = controls(probe.browse(rows, ["label"], ["width"], shown=4))
    before = page.value
    for name in ("label", "order"):
        assert found[name].options[0] == ""
        found[name].value = found[name].options[1]
        assert page.value != before
        found[name].value = ""
        assert page.value == before


def test_a_file_that_was_moved_since_is_said_to_be_gone(rows):
    os.remove(f"{rows.attrs['root']}/ProGAN/a.png")
    found, page = controls(probe.browse(rows, ["label"]))
    found["label"].value = "ProGAN"
    assert page.value.count("<img") == 2 and "it cannot be read, or is here no longer" in page.value


def test_a_refused_file_has_its_reason_and_no_picture(rows):
    found, page = controls(probe.browse(rows, ["label"]))
    found["label"].value = "ProGAN"
    assert page.value.count("<img") == 3 and "no picture" in page.value and ">not an image<" in page.value


def test_a_file_that_was_refused_for_what_it_is_not_made_of_keeps_its_reason(rows, tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "ProGAN" / "x.png")  # that can be read
    found, page = controls(probe.browse(rows, ["label"]))
    found["label"].value = "ProGAN"
    assert ">not an image<" in page.value


def test_names_of_files_are_text(rows):
    found, page = controls(probe.browse(rows, ["label"]))
    assert "ProGAN/&lt;b&gt;c.png" in page.value and "<b>c" not in page.value


def test_a_report_has_the_first_page_without_widgets(rows, monkeypatch):
    monkeypatch.setenv(HEADLESS, "1")
    still = probe.browse(rows, ["label"], shown=6)
    assert still.data.count("<figure>") == 6 and "dfd-probe static" in still.data
