"""Image properties: values that are known beforehand, measured once per content, and words for their bins."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageFilter
from skimage import data

from dfd.analysis import slices
from dfd.data import manifest


@pytest.fixture
def table(tiny_data, tmp_path):
    return manifest.scan(tiny_data, tmp_path, progress=False)


def test_properties_of_known_images():
    grey = slices.describe(Image.new("RGB", (40, 30), (51, 51, 51)))
    assert grey == pytest.approx(dict.fromkeys(slices.MEASURED, 0.0) | {"brightness": 0.2}, abs=1e-6)
    assert slices.describe(Image.new("RGB", (40, 30), (255, 0, 0)))["saturation"] == 1
    board = np.indices((64, 64)).sum(0) % 2 * 255
    checks = slices.describe(Image.fromarray(board.astype(np.uint8)).convert("RGB"))
    assert checks["brightness"] == checks["contrast"] == pytest.approx(0.5)
    assert checks["texture"] == pytest.approx(4, rel=0.05)  # four neighbours, each one away; fewer at the border


def test_sharpness_falls_with_blur_and_not_with_contrast():
    photo = Image.fromarray(data.astronaut()).crop((0, 0, 200, 200))
    pale = photo.point(lambda value: 64 + value // 2)
    first, blurred, faint = (slices.describe(one) for one in (photo, photo.filter(ImageFilter.BoxBlur(2)), pale))
    assert blurred["sharpness"] < 0.5 * first["sharpness"]
    assert faint["sharpness"] == pytest.approx(first["sharpness"], rel=0.1)
    assert faint["texture"] == pytest.approx(first["texture"] / 2, rel=0.1)


def test_large_images_are_measured_in_the_middle():
    image = Image.new("RGB", (slices.WINDOW + 200, slices.WINDOW + 200), "white")
    image.paste("black", (100, 100, slices.WINDOW + 100, slices.WINDOW + 100))
    assert slices.describe(image)["brightness"] == 0


def test_properties_stand_beside_what_the_manifest_says(table):
    found = slices.measure(table.tail(5))
    last = slices.describe(Image.open(f"{table.attrs['root']}/{table['path'].iloc[-1]}").convert("RGB"))
    assert found.index.equals(table.index[-5:]) and found.iloc[-1][list(last)].to_dict() == last
    assert found["size"].equals(table.tail(5)[["width", "height"]].min(axis=1))
    assert list(slices.measure(table.head(0))) == list(found)


def test_sources_come_from_manifest_provenance_or_file_name(table, tiny_data):
    assert slices.sources(table.assign(source="given")).eq("given").all()
    assert slices.sources(table).eq("unknown").all()
    named = table.assign(path=[f"ProGAN/walk_{i}.png" for i in range(len(table))])
    assert slices.sources(named).eq("walk").all()
    few = [f"ProGAN/{'walk' if i > 8 else i}_{i}.png" for i in range(len(table))]
    assert slices.sources(table.assign(path=few)).tolist() == ["other"] * 9 + ["walk"] * (len(table) - 9)
    sheet = tiny_data.parent / "provenance.csv"
    sheet.write_text("file,source\nProGAN/walk_0.png,lab\n")
    try:
        assert slices.sources(named).tolist()[:2] == ["lab", "walk"]
    finally:
        sheet.unlink()


def test_sizes_of_a_thousand_pixels_and_more_are_plain_numbers():
    words = slices.binned(pd.DataFrame({"size": [512, 1020, 1024] * 4}))["size"]
    assert words.cat.categories.tolist() == ["unknown", "512", "1020", "1024"]


def test_bins_are_words_in_the_order_of_the_values():
    rows = pd.DataFrame(
        {
            "label": ["b", "a"] * 6,
            "format": "PNG",
            "brightness": np.linspace(0, 1.1, 12),
            "size": [64, 128] * 6,
            "jpeg_quality": [np.nan] * 6 + [75.0] * 3 + [95.0] * 3,
        }
    )
    found = slices.binned(rows)
    assert list(found) == ["label", "brightness", "size", "jpeg_quality"]  # one format tells nothing
    assert found["brightness"].cat.categories[1:].tolist() == ["0 to 0.3", "0.4 to 0.7", "0.8 to 1.1"]
    assert found["brightness"].value_counts().drop("unknown").eq(4).all()
    assert found["size"].tolist() == ["64", "128"] * 6
    assert found["jpeg_quality"].tolist() == ["no JPEG"] * 6 + ["75"] * 3 + ["95"] * 3
