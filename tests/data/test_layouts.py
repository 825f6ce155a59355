"""Recognising the layout of a data folder."""

import pytest
from bad_files import encoded, picture
from folders import classes, fill, reasons, scan

from dfd.data import layouts


@pytest.fixture
def data(tmp_path):
    return tmp_path / "data"


def test_layout_forensynths(data, capsys):
    for generator in ("progan/cat", "progan/dog", "stylegan"):
        fill(data / generator / "0_real", 3)
        fill(data / generator / "1_fake", 3)
    (data / "progan" / "stray.png").write_bytes(encoded(picture(0), "PNG"))
    table = scan(data)
    assert table.label.value_counts().to_dict() == {"RealPhotos": 9, "progan": 6, "stylegan": 3}
    assert reasons(table) == {"progan/stray.png": "outside every class folder"}
    assert "layout: CNNDetection / ForenSynths" in capsys.readouterr().out


def test_layout_genimage_keeps_its_split_and_carves_the_missing_one(data, capsys):
    for generator in ("ADM", "Midjourney/imagenet_midjourney"):
        for split, count in (("train", 20), ("val", 5)):
            fill(data / generator / split / "nature", count)
            fill(data / generator / split / "ai", count)
    table = scan(data)
    assert set(table.label) == {"RealPhotos", "ADM", "Midjourney"}
    in_val = table.path.str.contains("/val/")
    assert (table.split[in_val] == "val").all()
    assert set(table.split[~in_val]) == {"train", "test"}
    assert (table.split == "test").sum() == 20  # a fifth of 100
    assert "layout: GenImage" in capsys.readouterr().out


@pytest.mark.parametrize(("train", "valid"), [("train", "val"), ("training", "valid"), ("Train", "validation")])
def test_split_folders_are_kept(data, train, valid, capsys):
    for split in (train, valid, "testing"):
        classes(data / split, 3)
    table = scan(data)
    assert set(table.label) == {"RealPhotos", "ProGAN", "BigGAN"}
    folder = table.path.str.split("/").str[0].map({train: "train", valid: "val", "testing": "test"})
    assert (table.split == folder).all()
    assert f"below {', '.join(sorted(('testing', train, valid)))}" in capsys.readouterr().out


def test_split_folders_inside_the_class_folders_are_kept_too(data):
    for label in ("RealPhotos", "ProGAN", "BigGAN"):
        for number, split in enumerate(("train", "valid", "test")):
            fill(data / label / split, 3, start=10 * number)
    table = scan(data)
    folder = table.path.str.split("/").str[1].replace("valid", "val")
    assert len(table) == 27 and (table.split == folder).all()


def test_split_folders_at_any_depth_of_the_class_folders_are_kept(data):
    for label in ("RealPhotos/flickr", "ProGAN/faces", "BigGAN/a/b"):
        for number, split in enumerate(("train", "val", "test")):
            fill(data / label / split, 3, start=10 * number)
    table = scan(data)
    assert len(table) == 27 and (table.split == table.path.str.split("/").str[-2]).all()
    assert set(table.label) == {"RealPhotos", "ProGAN", "BigGAN"}


@pytest.mark.parametrize(
    ("photos", "fakes"), [("0_real", "1_fake"), ("train/nature", "train/ai"), ("real", "fake"), ("cars/real", "cars")]
)
def test_photos_within_a_generators_folder_are_photos_beside_realphotos_too(data, photos, fakes):
    fill(data / "RealPhotos" / "mine", 4)
    fill(data / "progan" / photos, 4, start=10)
    fill(data / "progan" / fakes, 4, start=20)
    fill(data / "BigGAN", 4, start=30)
    fill(data / "real", 2, start=40)
    table = scan(data)
    assert table.label.value_counts().to_dict() == {"RealPhotos": 10, "progan": 4, "BigGAN": 4}
    assert not table.is_fake[table.path.str.startswith((f"progan/{photos}/", "real/", "RealPhotos"))].any()
    assert not table.attrs["rejected"]


@pytest.mark.parametrize("beside", ["RealPhotos/mine", None])
def test_two_downloads_and_a_subject_called_nature_lie_beside_one_another(data, beside):
    folders = ["ADM/train/nature", "ADM/train/ai", "progan/0_real", "progan/1_fake"]
    subjects = ["SDXL/nature", "SDXL/cars", beside] if beside else ["progan/nature/0_real", "progan/nature/1_fake"]
    for number, folder in enumerate(folders + subjects):
        fill(data / folder, 4, start=10 * number)
    table = scan(data)
    photos = set(table.path[~table.is_fake].str.rpartition("/")[0])
    assert photos == {"ADM/train/nature", "progan/0_real", beside or "progan/nature/0_real"}
    assert set(table.label) == {"RealPhotos", "ADM", "progan", *(["SDXL"] if beside else [])} and not reasons(table)


def test_split_folders_hold_other_layouts_too(data):
    for split in ("train", "test"):
        fill(data / split / "progan" / "0_real", 10)
        fill(data / split / "progan" / "1_fake", 10)
    table = scan(data)
    assert table.groupby("label").split.value_counts().unstack().loc["progan"].to_dict() == {
        "test": 10,
        "train": 6,
        "val": 4,
    }


@pytest.mark.parametrize("pair", [("real", "fake"), ("REAL", "FAKE"), ("Real", "Fake")])
@pytest.mark.parametrize("split", [False, True])
def test_real_and_fake_are_two_classes_in_any_case(data, pair, split):
    for folder in [f"{part}/{name}" for part in ("train", "valid", "test") for name in pair] if split else pair:
        fill(data / folder, 12)
    table = scan(data)
    assert set(table["label"]) == {"RealPhotos", pair[1]} and (table["is_fake"] == (table["label"] == pair[1])).all()
    assert not reasons(table) and table["split"].nunique() == 3


def test_a_class_is_one_whatever_the_case_of_its_letters_in_each_split(data):
    for folder in ("train/real", "val/real", "test/real", "train/fake", "val/Fake", "test/FAKE"):
        fill(data / folder, 6)
    table = scan(data)
    assert set(table["label"]) == {"RealPhotos", "FAKE"} and table["split"].nunique() == 3


def test_a_class_is_one_in_either_unicode_form(data):
    for split, name in (("train", "Z\u00fcrich"), ("val", "Z\u00fcrich"), ("test", "Zu\u0308rich")):  # packed on macOS
        fill(data / split / "RealPhotos")
        fill(data / split / name)
    table = scan(data)
    assert table["label"].nunique() == 2 and table.groupby("label")["split"].nunique().eq(3).all()


def test_a_generator_may_be_called_nearly_as_a_licence(data):
    for name in ("RealPhotos", "LicensePlateGAN", "ReadmeGAN"):
        fill(data / name)
    assert set(scan(data)["label"]) == {"RealPhotos", "LicensePlateGAN", "ReadmeGAN"}


def test_files_beside_the_class_folders(data):
    classes(data)
    (data / "LICENCES").mkdir()
    (data / "README_files").mkdir()  # figures that nbconvert and knitr write beside it
    for name in ("README.md", "LICENSE", "provenance.csv", "LICENCES/photos.txt", "README_files/a.png", "todo.txt"):
        (data / name).write_text("text")
    assert reasons(scan(data)) == {"todo.txt": "outside every class folder"}


@pytest.mark.parametrize(
    ("folders", "text"),
    [
        ([], "found: no folders"),
        (["cats", "dogs"], r"no known layout (?s:.*)RealPhotos/ and one folder per generator(?s:.*)found: cats, dogs"),
        (["RealPhotos"], "no generator"),
        (["set/RealPhotos", "set/ProGAN"], "one level too high, give set below it"),
        (["set/REAL", "set/fake"], "one level too high, give set below it"),
        (["0", "1"], "rename the folder of the photos, 0 or 1, to RealPhotos"),
        (["Real Photos", "ProGAN"], "rename 'Real Photos' to RealPhotos"),
        (["real", "ai"], "rename 'real' to RealPhotos"),
        (["progan/1_fake", "stylegan/1_fake"], "no known layout"),
        (["train/RealPhotos", "train/ProGAN", "more/ProGAN"], r"split folders \(train\) beside others \(more\)"),
    ],
)
def test_folder_that_is_no_layout_says_what_is_expected(data, folders, text):
    data.mkdir()
    for folder in folders:
        fill(data / folder, 2)
    with pytest.raises(layouts.ManifestError, match=text):
        scan(data)


def test_missing_folder(data):
    with pytest.raises(layouts.ManifestError, match="data is missing; expected one of"):
        scan(data)


def test_class_without_a_readable_image_stops_with_the_first_reasons(data):
    classes(data)
    (data / "StyleGAN2").mkdir()
    with pytest.raises(layouts.ManifestError, match=r"class StyleGAN2 has no readable image \(it is empty\)"):
        scan(data)
    (data / "StyleGAN2" / "a.jpg").write_bytes(b"")
    with pytest.raises(layouts.ManifestError, match=r"class StyleGAN2 .*\n  StyleGAN2/a.jpg: empty file"):
        scan(data)
