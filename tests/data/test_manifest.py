"""Scanning a data folder."""

import errno
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
from bad_files import GOOD, make, picture
from filelock import FileLock
from folders import classes, fill, reasons, scan
from PIL import Image

from dfd.core import images, runs
from dfd.data import layouts, manifest

CONTRACT = "path label is_fake group split width height format jpeg_quality sha256".split()


@pytest.fixture
def data(tmp_path):
    return tmp_path / "data"


# What a scan gives


def test_table_keeps_the_contract(data):
    fill(data / "RealPhotos", 2)
    fill(data / "ProGAN" / "faces" / "nested", 2)
    picture(99).save(data / "ProGAN" / "last.jpg", quality=80)
    table = scan(data)
    assert list(table)[: len(CONTRACT)] == CONTRACT
    assert list(table.path) == [
        "ProGAN/faces/nested/0.png",
        "ProGAN/faces/nested/1.png",
        "ProGAN/last.jpg",
        "RealPhotos/0.png",
        "RealPhotos/1.png",
    ]
    assert list(table.is_fake) == [True, True, True, False, False]
    assert (table.width[0], table.height[0]) == (32, 24)
    assert table.jpeg_quality.dropna().to_dict() == {2: 80.0}
    assert table.attrs["root"] == str(data)
    assert table.attrs["rejected"] == []


def test_written_manifest_is_read_back_equal(data, tmp_path):
    classes(data)
    (data / "ProGAN" / "bad.png").write_bytes(b"")
    table = scan(data, tmp_path / "out")
    loaded = manifest.load(tmp_path / "out")
    pd.testing.assert_frame_equal(loaded, table)
    assert loaded.attrs == table.attrs
    written = [name for name in os.listdir(tmp_path / "out") if name != runs.LOCK]
    assert sorted(written) == ["manifest.csv", "manifest.parquet", "rejected.csv"]
    listed = [{name: row[name] for name in ("path", "reason")} for row in table.attrs["rejected"]]
    assert pd.read_csv(tmp_path / "out" / "rejected.csv").to_dict("records") == listed


def test_every_kind_of_file_is_accepted_or_listed(data, tmp_path, capsys):
    fill(data / "ProGAN")
    fill(data / "RealPhotos")
    expected = make(data / "RealPhotos" / "mixed")
    table = scan(data, tmp_path / "out")
    inside = [path.removeprefix("RealPhotos/mixed/") for path in table.path if "/mixed/" in path]
    listed = {path.removeprefix("RealPhotos/mixed/"): reason for path, reason in reasons(table).items()}
    assert set(inside) == {name for name, reason in expected.items() if reason is GOOD}
    assert set(listed) == {name for name, reason in expected.items() if reason is not GOOD}
    assert len(inside) + len(listed) == len(os.listdir(data / "RealPhotos" / "mixed"))
    for name, reason in listed.items():
        assert expected[name].lower() in reason.lower(), name
    assert sum(reason is not GOOD for reason in expected.values()) >= 20
    assert f"{len(listed)} rejected" in capsys.readouterr().out
    for name in ("manifest", "rejected"):  # odd names survive both files
        paths = pd.read_csv(tmp_path / "out" / f"{name}.csv", keep_default_na=False).path
        assert list(paths) == (list(table.path) if name == "manifest" else list(reasons(table)))


def test_data_folder_is_never_written_to(data, tmp_path):
    classes(data)
    before = {path: path.stat().st_mtime_ns for path in [data, *data.rglob("*")]}
    scan(data, tmp_path / "out")
    assert {path: path.stat().st_mtime_ns for path in [data, *data.rglob("*")]} == before
    with pytest.raises(layouts.ManifestError, match="never written"):
        scan(data, data / "reports")
    assert not (data / "reports").exists()


def test_a_run_folder_in_use_is_not_written_to(data, tmp_path):
    classes(data)
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / runs.LOCK), pytest.raises(runs.InUse, match="out is in use"):
        scan(data, tmp_path / "out")
    assert not list((tmp_path / "out").glob("manifest.*"))
    with runs.run_lock(tmp_path / "out"):
        scan(data, tmp_path / "out")
    assert (tmp_path / "out" / "manifest.csv").exists()


def test_unreadable_folder_is_a_row(data, monkeypatch):
    classes(data)
    fill(data / "ProGAN" / "locked")
    original = os.scandir

    def scandir(path):
        if Path(path).name == "locked":
            raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
        return original(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert reasons(scan(data)) == {"ProGAN/locked": "unreadable folder: Permission denied"}
    with pytest.raises(layouts.ManifestError, match="locked: unreadable folder: Permission denied"):
        scan(data / "ProGAN" / "locked")


def test_unreadable_file_is_a_row_until_it_becomes_readable(data, monkeypatch):
    classes(data)

    def locked(path, mode):
        if Path(path) == data / "ProGAN" / "3.png":
            raise PermissionError(errno.EACCES, "Permission denied")
        return open(path, mode)

    with monkeypatch.context() as patch:
        patch.setattr(images, "open", locked, raising=False)
        assert reasons(scan(data)) == {"ProGAN/3.png": "cannot be read: Permission denied"}
    assert reasons(scan(data)) == {}


def test_a_file_that_memory_was_too_short_for_is_read_another_time(data, monkeypatch):
    classes(data)

    content, decode = (data / "ProGAN" / "3.png").read_bytes(), images._decode

    def short_to_read(path, mode):
        if Path(path) == data / "ProGAN" / "3.png":
            raise MemoryError
        return open(path, mode)

    def short_to_decode(source, draft):
        if source.getvalue() == content:
            raise images.ImageError("damaged or truncated: MemoryError") from MemoryError()
        return decode(source, draft)

    for name, short, what in (("open", short_to_read, "cannot be read"), ("_decode", short_to_decode, "damaged")):
        with monkeypatch.context() as patch:
            patch.setattr(images, name, short, raising=False)
            assert [*reasons(scan(data))] == ["ProGAN/3.png"] and what in reasons(scan(data))["ProGAN/3.png"]
    assert reasons(scan(data)) == {}


def test_linked_class_folder_is_followed(data, tmp_path):
    fill(tmp_path / "elsewhere")
    classes(data, names=("RealPhotos",))
    os.symlink(tmp_path / "elsewhere", data / "ProGAN")
    assert (scan(data).label == "ProGAN").sum() == 6


def test_links_between_neighbours_end_where_they_come_round(data):
    classes(data)
    for one, other in ("xy", "yx"):
        fill(data / "ProGAN" / one, 2)
        os.symlink(data / "ProGAN" / other, data / "ProGAN" / one / other)
    table = scan(data)
    assert reasons(table) == {f"ProGAN/{path}": layouts.LOOP for path in ("x/y/x", "y/x/y")}
    assert table.path.str.startswith("ProGAN/x/y/").sum() == 2


# Splits


def test_same_seed_same_splits_without_a_cache(data, tmp_path, monkeypatch):
    classes(data, 20)
    first = scan(data).split
    monkeypatch.setenv("DFD_CACHE", str(tmp_path / "another"))
    assert list(scan(data).split) == list(first)
    assert list(scan(data, seed=1).split) != list(first)


def test_adding_images_moves_no_old_one(data):
    classes(data, 10)
    old = scan(data).set_index("sha256").split
    classes(data, 15, start=10)
    (data / "ProGAN" / "0.png").rename(data / "ProGAN" / "renamed.png")
    new = scan(data).set_index("sha256").split
    assert len(new) == 75
    assert (new[old.index] == old).all()
    assert new.value_counts().to_dict() == {"train": 45, "val": 15, "test": 15}


def test_copies_stay_together_across_classes_and_formats(data):
    classes(data, 20)
    for i in range(10):
        photo = picture(7000 + i, 256, 256, 24)  # as much detail as photos have
        photo.save(data / "RealPhotos" / f"photo{i}.png")
        photo.save(data / "ProGAN" / f"photo{i}.jpg", quality=40)
        photo.resize((100, 100), Image.Resampling.BICUBIC).save(data / "BigGAN" / f"photo{i}.webp")
    table = scan(data)
    photos = table[table.path.str.contains("photo[0-9]")]
    assert (photos.groupby(photos.path.str.extract(r"(photo\d)")[0]).group.nunique() == 1).all()
    assert (table.groupby("group").split.nunique() == 1).all()
    assert table.group.nunique() == 70


def test_near_duplicate_of_a_given_test_image_is_listed(data):
    for split in ("train", "val", "test"):
        classes(data / split, 3)
    photo = picture(7000, 256, 256)
    photo.save(data / "test" / "RealPhotos" / "photo.png")
    photo.save(data / "train" / "ProGAN" / "copy.jpg", quality=60)
    table = scan(data)
    assert reasons(table) == {
        "train/ProGAN/copy.jpg": "near-duplicate of test image test/RealPhotos/photo.png (same group)"
    }
    assert "test/RealPhotos/photo.png" in set(table.path)


def test_sidecar_groups_are_honoured(data, capsys):
    labels = ("RealPhotos", "ProGAN", "StyleGAN2", "BigGAN")
    classes(data, 15, names=labels)
    rows = [(f"{label}/{i}.png", f"photo {i}") for label in labels for i in range(15)]
    whole = scan(data)
    pd.DataFrame(rows, columns=["path", "group"]).to_csv(data / "groups.csv", index=False)
    table = scan(data)
    assert len(table) == len(whole) == 60  # nothing goes for what lay in several splits before it was tied
    assert table.group.nunique() == 15
    assert (table.groupby(table.path.str.split("/").str[1]).group.nunique() == 1).all()
    assert pd.crosstab(table.label, table.split).min().min() >= 2
    (data / "groups.csv").write_text("path,group\nProGAN/0.png,x\nProGAN/gone.png,x\n")
    with pytest.raises(
        layouts.ManifestError, match=r"1 files that are not in the data folder, the first is ProGAN/gone"
    ):
        scan(data)
    (data / "groups.csv").write_text("file,group\nProGAN/0.png,x\n")
    with pytest.raises(layouts.ManifestError, match="columns path and group"):
        scan(data)


WRITTEN = {
    "backslashes": lambda rows: "path,group\n" + rows.replace("/", "\\"),
    "./ in front": lambda rows: "path,group\n./" + rows.rstrip("\n").replace("\n", "\n./"),
    "twice the slash": lambda rows: "path,group\n" + rows.replace("/", "//"),
    "a dot between": lambda rows: "path,group\n" + rows.replace("/", "/./"),
    "another case": lambda rows: "path,group\n" + rows.replace(".png", ".PNG"),
    "semicolons": lambda rows: "path;group\n" + rows.replace(",", ";"),
    "spaces": lambda rows: "path, group\n" + rows.replace(",", ", "),
    "line ends": lambda rows: "\ufeffpath,group\r\n" + rows.replace("\n", "\r\n"),
    "UTF-16": lambda rows: ("path,group\n" + rows).encode("utf-16"),
}


@pytest.mark.parametrize("how", [*WRITTEN, "absolute"])
def test_a_sidecar_is_read_as_other_tools_write_it(how, data):
    classes(data, 15, names=("RealPhotos", "ProGAN"))
    rows = "".join(f"{label}/{i}.png,photo {i}\n" for label in ("RealPhotos", "ProGAN") for i in range(15))
    absolute = "path,group\n" + "".join(f"{data}/{row}\n" for row in rows.splitlines())
    text = absolute if how == "absolute" else WRITTEN[how](rows)
    (data / "groups.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert scan(data).group.nunique() == 15


def test_a_line_of_a_sidecar_that_came_later_leaves_out_no_image_that_has_a_copy_beside_it(data):
    for seed, label in enumerate(("RealPhotos", "ProGAN")):
        (data / label).mkdir(parents=True)
        for i in range(8):
            (image := picture(7000 + 8 * seed + i, 96, 96)).save(data / label / f"{i}.png")
            image.save(data / label / f"{i}.jpg", quality=90)  # a copy, which the sidecar does not name
    split = scan(data).set_index("path")["split"]
    photo = next(path for path in split.index if "Real" in path and split[path] == "train")
    fake = next(path for path in split.index if "ProGAN" in path and split[path] != "train")
    (data / "groups.csv").write_text(f"path,group\n{photo},x\n{fake},x\n")
    table = scan(data)
    assert not table.attrs["rejected"] and len(table) == 32
    number = dict(zip(table.path, table.group, strict=True))
    whole = [path for path in split.index if number[path] == number[photo]]
    assert {Path(path).with_suffix("").as_posix() for path in whole} == {photo[:-4], fake[:-4]} and len(whole) == 4
    rest = split.index.difference(whole)
    assert table.set_index("path")["split"][rest].equals(split[rest])  # and nothing else is drawn anew


def test_a_sidecar_that_names_an_image_by_a_link_is_refused_or_read_and_never_left_aside(data, tmp_path):
    classes(data)
    (tmp_path / "link").symlink_to(data)
    (data / "groups.csv").write_text(f"path,group\n{tmp_path}/link/ProGAN/0.png,x\n")
    with pytest.raises(layouts.ManifestError, match="1 files that are not in the data folder"):
        scan(data)


def test_files_that_are_not_as_scanned_are_known(data, tmp_path):
    classes(data)
    (data / "ProGAN" / "bad.png").write_bytes(b"no image")
    scan(data, tmp_path / "out")
    assert manifest.changed(manifest.load(tmp_path / "out")) == []
    fill(data / "StyleGAN2", 1)
    (data / "BigGAN" / "0.png").unlink()
    picture(5, 48, 40).save(data / "ProGAN" / "0.png")
    assert manifest.changed(manifest.load(tmp_path / "out")) == ["BigGAN/0.png", "ProGAN/0.png", "StyleGAN2/0.png"]


def test_a_refused_file_that_is_mended_has_changed(data, tmp_path):
    classes(data)
    (data / "ProGAN" / "bad.png").write_bytes(b"no picture")
    (data / "ProGAN" / "lost.png").symlink_to(tmp_path / "disk.png")
    (data / "notes.txt").write_text("a")
    table = scan(data, tmp_path / "out")
    assert len(table.attrs["rejected"]) == 3 and manifest.changed(manifest.load(tmp_path / "out")) == []
    (data / "notes.txt").write_text("a b")
    picture(6, 48, 40).save(data / "ProGAN" / "bad.png")
    picture(7, 48, 40).save(tmp_path / "disk.png")
    assert manifest.changed(manifest.load(tmp_path / "out")) == ["ProGAN/bad.png", "ProGAN/lost.png"]
    (data / "ProGAN" / "bad.png").unlink()
    (data / "ProGAN" / "lost.png").unlink()
    assert manifest.changed(manifest.load(tmp_path / "out")) == []


@pytest.mark.skipif(os.path.exists(__file__.upper()), reason="the file system does not tell cases of letters apart")
def test_a_sidecar_of_another_name_is_not_read_and_told(data):
    classes(data)
    for name in ("Groups.csv", "provenance.csv.bak", "ReadMe.md", "LICENSE"):
        (data / name).write_text("path,group\nProGAN/0.png,x\nProGAN/1.png,x\n")
    assert reasons(scan(data)) == dict.fromkeys(["Groups.csv", "provenance.csv.bak"], "outside every class folder")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (",x", "line 3: a line without a file has no path"),
        ("ProGAN/0.png,", "line 3: ProGAN/0.png has no group"),
        ("ProGAN/1.png,y", "line 3, gives ProGAN/1.png more than"),
    ],
)
def test_a_line_of_a_sidecar_that_says_nothing_or_too_much_is_named(line, reason, data):
    classes(data)
    (data / "groups.csv").write_text(f"path,group\nProGAN/1.png,x\n{line}\n")
    with pytest.raises(layouts.ManifestError, match=reason):
        scan(data)


def test_fractions_must_leave_room(data):
    with pytest.raises(layouts.ManifestError, match="leave room to train"):
        scan(classes(data), val_fraction=0.5, test_fraction=0.5)


# What is made of the table


def test_summary_counts_and_names_the_imbalance(data, capsys):
    fill(data / "RealPhotos", 12)
    fill(data / "ProGAN", 4)
    table = scan(data)
    result = manifest.summary(table)
    assert list(result.index) == ["RealPhotos", "ProGAN"]
    assert list(result.images) == [12, 4]
    assert result[["train", "val", "test"]].sum(axis=1).tolist() == [12, 4]
    assert result.loc["ProGAN", "formats"] == "PNG 4"
    assert result.loc["ProGAN", "median size"] == "32 x 24"
    assert list(result.imbalance) == [1, 3]
    assert "imbalance: RealPhotos has 3.0 times the images of ProGAN" in capsys.readouterr().out


def test_small_class_is_warned_of(data, capsys):
    fill(data / "RealPhotos", 12)
    fill(data / "ProGAN", 1)
    scan(data)
    assert capsys.readouterr().out.count("warning: no ProGAN in ") == 2


def test_same_file_in_two_classes_is_warned_of(data, capsys):
    classes(data)
    (data / "ProGAN" / "copy.png").write_bytes((data / "RealPhotos" / "0.png").read_bytes())
    scan(data)
    assert "warning: 1 images lie byte for byte in more than one class" in capsys.readouterr().out


def test_digest_follows_content_and_not_order(data):
    table = scan(classes(data))
    assert manifest.digest(table) == manifest.digest(table.sample(frac=1, random_state=0))
    for column in ("path", "label", "split", "sha256"):
        changed = table.copy()
        changed.loc[0, column] = "other"
        assert manifest.digest(changed) != manifest.digest(table)


@pytest.mark.parametrize("count, text", [(1, "no BigGAN in val, no BigGAN in test, "), (2, "no .* in"), (3, "")])
def test_a_run_needs_each_class_in_each_split(count, text, tmp_path):
    classes(tmp_path / "data", count)
    table = scan(tmp_path / "data")
    if not text:
        manifest.check(table)
        return
    with pytest.raises(layouts.ManifestError, match=text + ".*images of three groups at least"):
        manifest.check(table)


def test_load_says_how_to_get_a_manifest(tmp_path):
    with pytest.raises(FileNotFoundError, match="run notebook 00_eda or `python -m dfd run` first"):
        manifest.load(tmp_path)


def test_data_that_moved_are_known_by_names_and_sizes(tiny_data, tmp_path, capsys):
    old, new = tmp_path / "old", tmp_path / "disk2" / "new"
    shutil.copytree(tiny_data, old)
    before = manifest.scan(old, tmp_path / "run", progress=False)
    shutil.copytree(old, new)
    with pytest.raises(layouts.ManifestError, match="is about .* not"):  # two folders, the old one among them
        manifest.load(tmp_path / "run", new)
    shutil.rmtree(old)
    table = manifest.load(tmp_path / "run", new)
    assert table.attrs["root"] == str(new) and table.path.equals(before.path)
    assert f"have moved from {old} to {new}" in capsys.readouterr().out
    with (new / table.path[7]).open("ab") as file:
        file.write(b"x")
    with pytest.raises(layouts.ManifestError, match="is about .* not"):
        manifest.load(tmp_path / "run", new)


def test_manifest_of_another_folder_is_refused(tiny_data, tmp_path):
    manifest.scan(tiny_data, tmp_path / "run", progress=False)
    assert len(manifest.load(tmp_path / "run", tiny_data)) == 36
    with pytest.raises(layouts.ManifestError, match="is about .* not"):
        manifest.load(tmp_path / "run", tmp_path)


@pytest.mark.parametrize("split", ["val", "test"])
def test_other_fractions_draw_anew(data, split):
    scan(classes(data, 20))
    assert (scan(data, **{f"{split}_fraction": 0.4}).split == split).sum() == 24


def test_summary_counts_groups(data):
    classes(data, 3)
    (data / "groups.csv").write_text("path,group\n" + "".join(f"ProGAN/{i}.png,x\n" for i in range(3)))
    assert manifest.summary(scan(data)).groups.to_dict() == {"RealPhotos": 3, "BigGAN": 3, "ProGAN": 1}


def test_side_files_of_a_system_change_nothing(data, tmp_path):
    classes(data)
    scan(data, tmp_path / "out")
    before = layouts.fingerprint(data)
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (data / "ProGAN" / name).write_bytes(b"of a file browser")
    assert manifest.changed(manifest.load(tmp_path / "out")) == [] and layouts.fingerprint(data) == before
    assert set(reasons(scan(data)).values()) == {layouts.SIDE_FILE}


def test_a_name_in_another_unicode_form_is_that_file(data):
    classes(data)
    (data / "ProGAN" / "0.png").rename(data / "ProGAN" / "Zu\u0308rich.png")  # as macOS decomposes it
    (data / "groups.csv").write_text("path,group\nProGAN/Z\u00fcrich.png,x\nBigGAN/0.png,x\n")
    table = scan(data).set_index("path")
    assert table.group["ProGAN/Zu\u0308rich.png"] == table.group["BigGAN/0.png"]
