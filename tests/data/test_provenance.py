"""Test splits that hold out whole sources, named in a provenance table."""

import ast
import os
import re

import nbformat
import pandas as pd
import pytest
from bad_files import picture
from click.testing import CliRunner
from folders import fill, reasons, scan

from dfd import cli, config
from dfd.data import layouts, manifest, provenance, splits
from dfd.reports import runner

SOURCES = {
    "RealPhotos": {"cameras": 20, "phones": 9, "scans": 4},
    "ProGAN": {"official": 14, "other code": 6},
    "BigGAN": {"walks": 15},
}


@pytest.fixture
def data(tmp_path):
    """A folder with 68 PNGs, their sources in the folder above it."""
    rows = []
    for label, sizes in SOURCES.items():
        names = [name for name, size in sizes.items() for _ in range(size)]
        fill(tmp_path / "data" / label, len(names))
        rows += [(f"{label}/{i}.png", name) for i, name in enumerate(names)]
    write(tmp_path, rows)
    return tmp_path / "data"


def write(folder, rows, columns=("file", "source")):
    pd.DataFrame(rows, columns=columns).to_csv(folder / "provenance.csv", index=False)


def rows_of(folder):
    return pd.read_csv(folder / "provenance.csv", keep_default_na=False).to_numpy().tolist()


def held_out(table):
    """The sources that have images in test and nowhere else."""
    return {name for name, part in table.groupby("source") if set(part.split) == {"test"}}


def check(table, held):
    """Whole sources in test, no group in two splits, every class in every split."""
    assert held_out(table) == held
    assert set(table.split[table.source.isin(held)]) == {"test"}
    closed = table.label.isin(table.label[table.source.isin(held)])  # beside the held-out source, nothing goes to test
    assert "test" not in set(table.split[closed & ~table.source.isin(held)])
    again = splits.components(table)
    assert (table.split.groupby(table.group).nunique() == 1).all()
    assert (table.split.groupby(again).nunique() == 1).all()
    assert pd.crosstab(table.label, table.split)[list(splits.SPLITS)].min().min() > 0


# Which images are test


@pytest.mark.parametrize("held", [("phones",), ("cameras",), ("scans", "other code"), ("phones", "scans", "official")])
def test_named_sources_are_test_and_nothing_else_of_their_labels_is(data, held):
    table = scan(data, group_by="source", hold_out=held)
    assert len(table) == 68
    check(table, set(held))
    assert table.source.to_list() == [dict(rows_of(data.parent))[path] for path in table.path]
    other = table[~table.label.isin(table.label[table.source.isin(held)])]
    shares = pd.crosstab(other.label, other.split, normalize="index")
    assert shares["test"].between(0.1, 0.3).all()  # drawn as always
    rest = table[table.split != "test"]
    assert (rest.split == "val").mean() == pytest.approx(0.25, abs=0.06)  # 0.2 of what 0.8 leaves


def test_validation_is_its_share_of_all_images_where_the_test_split_is_bound():
    table = pd.DataFrame({"label": "A", "group": [f"{number:03}" for number in range(300)]})
    table["given"] = table["fixed"] = pd.Series(["test"] * 60 + [None] * 240, dtype=object)
    table.loc[60:, "given"] = "train"
    counts = provenance.assign(table, 0, val_fraction=0.2, test_fraction=0.2).value_counts().to_dict()
    assert counts == {"train": 180, "val": 60, "test": 60}


def test_what_is_held_out_and_what_is_not_is_said(data, capsys):
    scan(data, group_by="source", hold_out=["phones", "other code"])
    why = "BigGAN: no source is held out, so its test images come from sources it is trained on"
    assert why in capsys.readouterr().out.splitlines()


def test_sources_are_counted_by_split(data):
    table = scan(data, group_by="source", hold_out=["phones"])
    counts = provenance.sources(table)
    assert list(counts) == ["images", "train", "val", "test"]
    assert counts.images.to_dict() == {(label, n): size for label, part in SOURCES.items() for n, size in part.items()}
    assert counts.loc[("RealPhotos", "phones")].to_list() == [9, 0, 0, 9]
    assert counts.loc[("RealPhotos", "cameras"), "test"] == 0


# Groups that connect sources


def twin(data, one, other):
    """Two near-duplicates, in the places of two images."""
    photo = picture(7000, 256, 256)
    photo.save(data / one)
    photo.resize((128, 128)).save(data / other)


def test_near_duplicate_of_a_held_out_image_is_left_out_by_name(data):
    twin(data, "RealPhotos/25.png", "RealPhotos/3.png")  # phones and cameras
    before = scan(data, group_by="source", hold_out=["scans"])
    assert reasons(before) == {}
    table = scan(data, group_by="source", hold_out=["phones"])
    text = "near-duplicate of test image RealPhotos/25.png (same group)"
    assert reasons(table) == {"RealPhotos/3.png": text}
    check(table, {"phones"})
    table = scan(data, group_by="source", hold_out=["cameras"])
    assert reasons(table) == {"RealPhotos/25.png": text.replace("25", "3")}


def test_near_duplicate_of_another_label_follows_into_test(data):
    twin(data, "RealPhotos/25.png", "BigGAN/3.png")
    table = scan(data, group_by="source", hold_out=["phones"]).set_index("path")
    assert table.split["BigGAN/3.png"] == "test" and len(table) == 68
    check(table.reset_index(), {"phones"})


def test_tied_photos_and_fakes_stay_together(data, capsys):
    rows = [(f"{label}/{i}.png", f"photo {i}") for label in SOURCES for i in range(15)]
    pd.DataFrame(rows, columns=["path", "group"]).to_csv(data / "groups.csv", index=False)
    table = scan(data, group_by="source", hold_out=["phones"])  # none of the photos that were rebuilt
    assert len(table) == 68 and (table.groupby("group").split.nunique() == 1).all()
    rebuilt = scan(data, group_by="source", hold_out=["cameras"])  # all fakes of its photos are test
    assert held_out(rebuilt) >= {"cameras", "walks"} and "phones" not in held_out(rebuilt)
    assert "warning: no BigGAN in train" in capsys.readouterr().out


# What a scan remembers


def test_plain_and_other_splits_are_not_touched(data, tmp_path, monkeypatch):
    alone = {}
    for name, options in {"plain": {}, "phones": {"hold_out": ["phones"], "group_by": "source"}}.items():
        monkeypatch.setenv("DFD_CACHE", str(tmp_path / name))
        alone[name] = scan(data, **options)
    monkeypatch.setenv("DFD_CACHE", str(tmp_path / "one"))
    for _ in range(2):
        pd.testing.assert_frame_equal(scan(data, group_by="source", hold_out=["phones"]), alone["phones"])
        pd.testing.assert_frame_equal(scan(data), alone["plain"])
    assert list(alone["plain"]) == manifest.COLUMNS
    assert alone["plain"].source.to_list() == [dict(rows_of(data.parent))[path] for path in alone["plain"].path]


def test_a_manifest_names_sources_where_all_are_known(data, capsys):
    rows = rows_of(data.parent)
    write(data.parent, rows[1:])
    assert "source" not in scan(data)
    write(data.parent, rows, ("file", "camera"))
    assert "source" not in scan(data) and "Until then no image has a source" in capsys.readouterr().out
    (data.parent / "provenance.csv").unlink()
    assert "source" not in scan(data)
    (data.parent / "provenance.csv").mkdir()  # read by none that does not ask for it
    assert "source" not in scan(data) and "provenance.csv must be a CSV file" in capsys.readouterr().out
    with pytest.raises(layouts.ManifestError, match="must be a CSV file"):
        scan(data, group_by="source", hold_out=["phones"])


def test_corrected_table_wins_over_what_was_drawn_before(data):
    first = scan(data, group_by="source", hold_out=["phones"]).set_index("path")
    rows = rows_of(data.parent)
    moved = {"RealPhotos/0.png": "phones", "RealPhotos/25.png": "cameras"}
    write(data.parent, [(path, moved.get(path, name)) for path, name in rows])
    second = scan(data, group_by="source", hold_out=["phones"])
    check(second, {"phones"})
    split = second.set_index("path").split
    assert split["RealPhotos/0.png"] == "test" and split["RealPhotos/25.png"] != "test"
    same = split.index.difference(list(moved))
    assert (split[same] == first.split[same]).all()


def test_added_images_move_no_old_one(data):
    old = scan(data, group_by="source", hold_out=["phones", "other code"]).set_index("path").split
    fill(data / "ProGAN", 10, start=20)
    fill(data / "RealPhotos", 10, start=33)
    fill(data / "BigGAN", 10, start=15)  # of which no source is held out: what was drawn stays as well
    more = [(f"ProGAN/{i}.png", "new") for i in range(20, 30)] + [(f"BigGAN/{i}.png", "new") for i in range(15, 25)]
    more += [(f"RealPhotos/{i}.png", "phones" if i < 38 else "scans") for i in range(33, 43)]
    write(data.parent, rows_of(data.parent) + more)
    table = scan(data, group_by="source", hold_out=["other code", "phones"])  # in any order
    check(table, {"phones", "other code"})
    assert (table.set_index("path").split[old.index] == old).all()


def test_an_image_that_is_tied_to_an_old_test_image_of_another_label_is_not_in_test_by_that(data):
    old = scan(data, group_by="source", hold_out=["phones", "other code"]).set_index("path").split
    fake = old.index[old.eq("test") & old.index.str.startswith("BigGAN")][0]  # no source of which is held out
    fill(data / "RealPhotos", 1, start=33)
    write(data.parent, [*rows_of(data.parent), ("RealPhotos/33.png", "cameras")])
    (data / "groups.csv").write_text(f"path,group\n{fake},pair\nRealPhotos/33.png,pair\n")
    table = scan(data, group_by="source", hold_out=["phones", "other code"])
    check(table, {"phones", "other code"})
    split = table.set_index("path").split
    assert split[fake] == split["RealPhotos/33.png"] != "test"
    assert (split[old.index.drop(fake)] == old.drop(fake)).all()


# Tables that do not fit


def test_table_in_the_data_folder_comes_first(data):
    rows = [(path, "inside" if "/1" in path else "too") for path, _ in rows_of(data.parent)]
    write(data, rows, ("file", "camera"))
    table = scan(data, group_by="camera", hold_out=["inside"])
    assert dict(zip(table.path, table.source, strict=True)) == dict(rows)
    assert reasons(table) == {}


@pytest.mark.parametrize(
    ("change", "options", "text"),
    [
        (
            lambda rows: rows,
            {"group_by": "camera"},
            "must be a CSV file with the columns file and camera (it has file, source)",
        ),
        (lambda rows: rows, {"hold_out": ["phones"]}, "hold_out needs group_by"),
        (
            lambda rows: rows,
            {"hold_out": ["phone"], "group_by": "source"},
            "group_by source has no phone; the test split can hold out: cameras, official, other code, phones, scans",
        ),
        (
            lambda rows: rows,
            {"group_by": "source"},
            "group_by source needs hold_out; the test split can hold out: cameras, official, other code, phones, scans",
        ),
        (
            lambda rows: rows,
            {"hold_out": ["phones", "cameras", "scans"], "group_by": "source"},
            "takes every image of RealPhotos; leave it one source",
        ),
        (
            lambda rows: [row for row in rows if row[0] not in ("ProGAN/5.png", "ProGAN/7.png")],
            {"group_by": "source"},
            "provenance.csv has no source for 2 of 68 images, the first is ProGAN/5.png; add a row",
        ),
        (
            lambda rows: [(path, "" if path == "BigGAN/2.png" else name) for path, name in rows],
            {"group_by": "source"},
            ": BigGAN/2.png has no source",
        ),
        (
            lambda rows: [*rows, ("ProGAN/3.png", "elsewhere")],
            {"group_by": "source"},
            "provenance.csv, line 70, gives ProGAN/3.png more than one source",
        ),
    ],
)
def test_what_does_not_fit_is_named(data, tmp_path, change, options, text):
    write(tmp_path, change(rows_of(tmp_path)))
    with pytest.raises(layouts.ManifestError, match=re.escape(text)):
        scan(data, **options)


def test_missing_or_unreadable_table_is_named(data, tmp_path):
    table = tmp_path / "provenance.csv"
    for content, text in (
        ("name,source\nProGAN/0.png,x\n", "must be a CSV file with the columns file and source"),
        ("", "must be a CSV file with the columns file and source"),
    ):
        table.write_text(content)
        with pytest.raises(layouts.ManifestError, match=f"{re.escape(str(table))}.*{text}"):
            scan(data, group_by="source")
    table.unlink()
    with pytest.raises(
        layouts.ManifestError, match=re.escape(f"needs provenance.csv in {data} or {tmp_path}: a table")
    ):
        scan(data, group_by="source")


def test_images_without_a_source_are_counted_where_others_have_one(data, capsys):
    write(data.parent, rows_of(data.parent)[:-1])
    assert "source" not in scan(data)
    assert "1 of 68 images have no source, such as BigGAN/14.png" in capsys.readouterr().out.replace("\n", " ")


def test_rejected_files_need_no_source(data):
    (data / "ProGAN" / "broken.png").write_bytes(b"no image")
    assert list(reasons(scan(data, group_by="source", hold_out=["phones"]))) == ["ProGAN/broken.png"]


def test_folders_with_splits_are_refused(tmp_path):
    rows = []
    for split in ("train", "test"):
        for label in ("RealPhotos", "ProGAN"):
            fill(tmp_path / "data" / split / label, 3)
            rows += [(f"{split}/{label}/{i}.png", f"{i % 2}") for i in range(3)]
    write(tmp_path, rows)
    with pytest.raises(layouts.ManifestError, match="folders already give splits"):
        scan(tmp_path / "data", group_by="source")


def test_a_folder_of_objects_called_train_is_no_split(tmp_path):
    """As in CNNDetection's training set, whose objects are airplane to tvmonitor, train among them."""
    rows = []
    for label, count in (("0_real", 12), ("1_fake", 12)):
        for thing in ("cat", "train"):
            fill(tmp_path / "data" / "progan" / thing / label, count)
            rows += [(f"progan/{thing}/{label}/{i}.png", f"{label} {i % 3}") for i in range(count)]
    write(tmp_path, rows)
    table = scan(tmp_path / "data", group_by="source", hold_out=["0_real 0", "1_fake 0"])
    assert held_out(table) == {"0_real 0", "1_fake 0"} and set(table["label"]) == {"RealPhotos", "progan"}


# From the command line to the reports


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("phones", ("phones",)),
        ("phones, other code", ("phones", "other code")),
        ('["a, b", "(c)"]', ("a, b", "(c)")),
        ("(c),d", ("(c)", "d")),
        ("", ()),
    ],
)
def test_names_of_the_command_line_reach_the_notebook(text, names):
    words = {"group_by": "source", "hold_out": text}
    given = runner.plan(["00_eda"], config.NOTEBOOKS, {"data": "d", "out": "o"}, "demo", words)["00_eda"]
    assert given["hold_out"] == names
    cell = nbformat.read(config.ROOT / "notebooks/00_eda.ipynb", as_version=4).cells[1].source
    written = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(cell).body}
    cfg = config.from_notebook(config.Eda, written | given | {"hold_out": list(names)})  # papermill writes lists
    assert (cfg.group_by, cfg.hold_out) == ("source", names)


def test_a_table_with_backslashes_is_read_on_windows_too(data, monkeypatch):
    """There a name with them is found as it stands; the manifest's have slashes."""
    rows, is_there = rows_of(data.parent), os.path.lexists
    write(data.parent, [(path.replace("/", "\\"), name) for path, name in rows])
    monkeypatch.setattr(os, "sep", "\\")
    monkeypatch.setattr(os.path, "lexists", lambda path: is_there(str(path).replace("\\", "/")))
    assert provenance.read(data, "source").to_dict() == dict(rows)


def test_a_list_that_does_not_end_is_named():
    with pytest.raises(config.ConfigError, match="hold_out Unterminated string"):
        runner.plan(["00_eda"], config.NOTEBOOKS, {}, "demo", {"group_by": "source", "hold_out": '["a'})


def test_scan_counts_the_sources(data, tmp_path):
    words = ["scan", str(data), "--group-by", "source", "--hold-out", "phones", "--hold-out", "scans"]
    result = CliRunner().invoke(cli.main, [*words, "--out", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["phones", "9", "0", "0", "9"] in lines and ["scans", "4", "0", "0", "4"] in lines
    assert held_out(manifest.load(tmp_path / "run")) == {"phones", "scans"}
    plain = CliRunner().invoke(cli.main, ["scan", str(data)])
    assert plain.exit_code == 0 and re.search(r"phones +9 +[1-9]", plain.stdout)  # in train too
    (data.parent / "provenance.csv").unlink()
    assert "phones" not in CliRunner().invoke(cli.main, ["scan", str(data)]).stdout
