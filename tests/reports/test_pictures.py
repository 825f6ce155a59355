"""The pictures of a page: what their alternative texts say."""

import base64
import io

import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output
from PIL import Image

from dfd.reports import html


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
    pixels = io.BytesIO()
    Image.new("L", (4, 4)).save(pixels, "PNG")
    own, other = (
        new_output("display_data", data={"image/png": base64.b64encode(pixels.getvalue()).decode()}) for _ in range(2)
    )
    own.metadata["alt"] = "Losses over the epochs"
    nb = new_notebook(cells=[new_code_cell("results.plot_split(table)", outputs=[own, other])])
    html.tidy(nb, {"dfd": {"title": ""}})
    assert [output.metadata["alt"] for output in nb.cells[0].outputs] == [
        "Losses over the epochs",
        "Images per class and split, of a manifest",
    ]
