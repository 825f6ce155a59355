"""The pictures of a page: what their alternative texts say, and that they stay small."""

import base64
import io

import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_output
from PIL import Image

from dfd.reports import html


def shown(width, height, seed=0, mode="RGB"):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, len(mode)), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels, mode).save(file, "PNG")
    return new_output("display_data", data={"image/png": base64.b64encode(file.getvalue()).decode()})


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("results.plot_split(table);", "Splits: Images per class and split, of a manifest"),
        ("a = 1\nresults.plot_split(\n    table)", "Splits: Images per class and split, of a manifest"),
        ("plots.plot_nothing(table)", "Splits: figure 2"),
        ("training.fit(table)", "Splits: figure 2"),
    ],
)
def test_a_picture_is_described_by_its_section_and_the_function_that_drew_it(source, text):
    assert html.describe(new_code_cell(source, metadata={"section": "Splits"}), 2) == text


def test_a_picture_that_brings_its_own_text_keeps_it():
    output = shown(4, 4)
    output.metadata["alt"] = "Losses over the epochs"
    nb = {"cells": [new_code_cell("results.plot_split(table)", outputs=[output, shown(4, 4)])]}
    resources = {"dfd": {}}
    html.picture_texts(html.NotebookNode(nb), resources)
    assert [one.metadata["alt"] for one in nb["cells"][0].outputs] == [
        "Losses over the epochs",
        "Images per class and split, of a manifest",
    ]
    assert resources["dfd"]["compressed"] is False


def test_the_largest_pictures_become_jpegs_until_all_fit():
    outputs = [shown(200, 200), shown(20, 20, 1), shown(100, 100, 2)]
    before = [len(output.data["image/png"]) for output in outputs]
    assert not html.compress(outputs, sum(before))
    assert all(set(output.data) == {"image/png"} for output in outputs)
    assert html.compress(outputs, sum(before) - 1000)
    assert [set(output.data) for output in outputs] == [{"image/jpeg"}, {"image/png"}, {"image/png"}]
    assert len(outputs[0].data["image/jpeg"]) < before[0]
    seen = np.asarray(html.open_picture(outputs[0]), dtype=float)
    assert seen.shape == (200, 200, 3)


def test_pictures_that_are_far_too_large_are_made_smaller_too():
    outputs = [shown(1500, 1500)]
    assert html.compress(outputs, 700_000)
    assert html.open_picture(outputs[0]).size == (900, 900) and len(outputs[0].data["image/jpeg"]) <= 700_000


def test_what_is_transparent_becomes_white():
    output = shown(64, 64, mode="RGBA")
    clear = Image.new("RGBA", (64, 64), (200, 0, 0, 0))
    assert clear.getpixel((0, 0))[3] == 0
    file = io.BytesIO()
    clear.save(file, "PNG", compress_level=0)
    output.data["image/png"] = base64.b64encode(file.getvalue()).decode()
    assert html.compress([output], 2000)
    assert html.open_picture(output).getpixel((32, 32)) == (255, 255, 255)
