"""Addresses, units of work and the items in them: folders, lists, tables and shards, and what is wrong with them."""

import contextlib
import gzip
import io
import os
import tarfile

import fsspec
import pyarrow as pa
import pytest
from bad_files import encoded, picture
from pyarrow import parquet

from dfd.core import images
from dfd.core.images import ImageError
from dfd.scale import places, units
from dfd.scale.inputs import Inputs
from dfd.scale.units import Files, Item, Shard, load

PNG = [encoded(picture(seed, 20, 16), "PNG") for seed in range(6)]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def memory():
    """fsspec's file system in memory, in place of a remote one."""
    fs = fsspec.filesystem("memory")
    yield fs
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]


def shard(path, members, mode="w"):
    """Write a tar archive of (name, content); a content of None makes a link."""
    with tarfile.open(path, mode) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def answers(inputs, size=4):
    """What becomes of each item: name, and the picture's size or the reason."""
    found = []
    for unit in inputs.checked().units(size):
        for item in unit.items():
            try:
                found.append((item.name, load(item).size))
            except ImageError as error:
                found.append((item.name, str(error)))
    return found


def names(*addresses, size=4, **options):
    return [name for name, _ in answers(Inputs(addresses, **options), size)]


def write(folder, *paths):
    for number, path in enumerate(paths):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(PNG[number % len(PNG)])


def test_a_folder_stands_for_all_images_and_shards_below_it(here):
    write(here, "in/b.png", "in/a/z.JPG", "in/c/d/e.webp", "in/notes.txt", "elsewhere/f.png")
    shard(here / "in/a/s.tar", [("1.png", PNG[0])])
    os.symlink("../elsewhere", here / "in/linked")
    os.symlink("..", here / "in/a/upwards")
    os.symlink("gone.png", here / "in/broken.png")
    expected = {"in/a/z.JPG", "in/a/s.tar/1.png", "in/b.png", "in/broken.png", "in/c/d/e.webp", "in/linked/f.png"}
    assert sorted(names("in")) == sorted(expected)
    assert "cannot be read" in dict(answers(Inputs(("in",))))["in/broken.png"]
    assert names("in") == names("in")


def test_a_folder_that_cannot_be_listed_is_an_item_with_the_reason(here, monkeypatch):
    write(here, "in/a/1.png", "in/b/2.png")
    scandir = os.scandir

    def refused(path):
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    assert answers(Inputs(("in",))) == [("in/a/1.png", (20, 16)), ("in/b", "unreadable folder: Permission denied")]


def test_units_hold_so_many_files_and_are_named_by_them(here):
    write(here, *(f"in/{i}.png" for i in range(10)))
    found = list(Inputs(("in",)).checked().units(4))
    assert [len(unit.files) for unit in found] == [4, 4, 2]
    assert [unit.key() for unit in found] == [unit.key() for unit in Inputs(("in",)).units(4)]
    (here / "in/5.png").rename(here / "in/5a.png")
    again = [unit.key() for unit in Inputs(("in",)).units(4)]
    assert [one == other.key() for one, other in zip(again, found, strict=True)] == [True, False, True]


def test_units_come_as_they_are_listed(here, monkeypatch):
    (here / "list.txt").write_text("".join(f"{i}.png\n" for i in range(100_000)))
    listed, named = [], Inputs._named
    monkeypatch.setattr(Inputs, "_named", lambda self, text: listed.append(text) or named(self, text))
    next(Inputs(("list.txt",)).units(10))
    assert len(listed) == 10


def test_patterns_lists_and_single_images_stand_beside_each_other(here):
    write(here, "in/a.png", "in/b[1].png", "deep/c.png")
    (here / "list.txt").write_text("deep/c.png\n\nmissing.png\r\nin/s.tar\n")
    shard(here / "in/s.tar", [("1.png", PNG[0])])
    assert sorted(names("in/*.png")) == ["in/a.png", "in/b[1].png"]
    assert names("in/b[1].png") == ["in/b[1].png"]
    found = dict(answers(Inputs(("list.txt", f"file://{here}/in/a.png"))))
    assert list(found) == ["in/s.tar/1.png", "deep/c.png", "missing.png", f"{here}/in/a.png"]
    assert found["missing.png"].startswith("cannot be read")
    (here / "below.txt").write_text("c.png\n")
    assert answers(Inputs(("below.txt",), root="deep")) == [("c.png", (20, 16))]


@pytest.mark.parametrize(
    ("address", "error", "text"),
    [
        ("nowhere", FileNotFoundError, "no such file or folder: nowhere"),
        ("nowhere.tar", FileNotFoundError, "no such file or folder: nowhere.tar"),
        ("memory://nowhere", FileNotFoundError, "no such file or folder: memory://nowhere"),
        ("in/*.tiff", FileNotFoundError, "no file matches in/*.tiff"),
        ("empty", FileNotFoundError, "no images and no shards (.tar) below empty"),
        ("foo://x/y", ValueError, "Protocol not known: foo"),
        ("numbers.parquet", ValueError, "has none of the columns path, url"),
        ("text.parquet", OSError, "text.parquet cannot be used: Parquet magic bytes not found"),
    ],
)
def test_what_cannot_be_used_is_one_clear_line(address, error, text, here):
    (here / "empty").mkdir()
    (here / "text.parquet").write_text("this is no table, whatever its name may say")
    parquet.write_table(pa.table({"number": [1], "other": [2]}), here / "numbers.parquet")
    with pytest.raises(error) as caught:
        Inputs((address,)).checked()
    assert text in str(caught.value) and "\n" not in str(caught.value)


def test_a_wrong_column_is_named_with_those_that_are_there(here):
    parquet.write_table(pa.table({"number": [1], "path": ["a.png"]}), here / "t.parquet")
    with pytest.raises(ValueError, match="no column 'file'; it has number, path"):
        Inputs(("t.parquet",), column="file").checked()
    with pytest.raises(ValueError, match="no column 'id'; it has number, path"):
        Inputs(("t.parquet",), names="id").checked()
    with pytest.raises(ValueError, match="'number' of t.parquet holds int64, neither paths nor bytes"):
        Inputs(("t.parquet",), column="number").checked()


def test_a_table_of_paths(here):
    write(here, "in/a.png", "in/b.png")
    texts = pa.array(["in/a.png", None, "in/b.png"])
    for column in (texts, texts.dictionary_encode(), texts.cast(pa.large_string())):
        parquet.write_table(pa.table({"other": [1, 2, 3], "path": column}), here / "t.parquet")
        expected = [("in/a.png", (20, 16)), ("t.parquet/1", "no address in this row"), ("in/b.png", (20, 16))]
        assert answers(Inputs(("t.parquet",))) == expected


def test_a_table_of_bytes_is_cut_into_row_groups(here):
    table = pa.table({"id": list("abcde"), "bytes": [*PNG[:3], None, b"<svg/>"]})
    parquet.write_table(table, here / "t.parquet", row_group_size=2)
    found = list(Inputs(("t.parquet",)).checked().units(3))
    assert [(unit.groups, unit.first) for unit in found] == [((0, 1), 0), ((2,), 4)]
    reasons = ["no bytes in this row", "not an image: an SVG drawing"]
    expected = [(f"t.parquet/{i}", answer) for i, answer in enumerate([(20, 16)] * 3 + reasons)]
    assert answers(Inputs(("t.parquet",)), 3) == expected
    assert names("t.parquet", names="id", column="bytes") == list("abcde")
    parts = pa.array([{"bytes": one, "path": "x.png"} for one in PNG[:2]])  # as Hugging Face's data sets have it
    parquet.write_table(pa.table({"image": parts}), here / "h.parquet")
    assert answers(Inputs(("h.parquet",))) == [("h.parquet/0", (20, 16)), ("h.parquet/1", (20, 16))]


def test_a_table_that_breaks_off_says_from_where(here):
    parquet.write_table(pa.table({"bytes": PNG[:4]}), here / "t.parquet", row_group_size=2, compression="none")
    data = bytearray((here / "t.parquet").read_bytes())
    start = parquet.ParquetFile(here / "t.parquet").metadata.row_group(1).column(0).dictionary_page_offset
    data[start : start + 40] = bytes(40)
    (here / "t.parquet").write_bytes(data)
    *good, (name, reason) = answers(Inputs(("t.parquet",)), 2)
    assert [answer for _, answer in good] == [(20, 16)] * 2
    assert name == "t.parquet" and reason.startswith("cannot be read from row 2 on: ")


@pytest.mark.parametrize(("name", "mode"), [("s.tar", "w"), ("s.tar.gz", "w:gz"), ("s.tar.xz", "w:xz")])
def test_a_shard_gives_its_images_and_passes_over_what_belongs_to_them(name, mode, here):
    members = [("./a.png", PNG[0]), ("a.json", b"{}"), ("deep/b.JPG", PNG[1]), ("c.png", b"<svg/>"), ("d.png", None)]
    shard(here / name, members, mode)
    reasons = ["not an image: an SVG drawing", "not a regular file (a link or device in the archive)"]
    expected = zip(("a.png", "deep/b.JPG", "c.png", "d.png"), [(20, 16), (20, 16), *reasons], strict=True)
    assert answers(Inputs((name,))) == [(f"{name}/{member}", answer) for member, answer in expected]


def damaged_shards():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for number in range(3):
            info = tarfile.TarInfo(f"{number}.png")
            info.size = len(PNG[0])
            archive.addfile(info, io.BytesIO(PNG[0]))
    data = buffer.getvalue()
    step = 512 + -(-len(PNG[0]) // 512) * 512
    huge = tarfile.TarInfo("x" * 300)
    huge = huge.tobuf(tarfile.GNU_FORMAT)
    length = huge[:124] + b"%011o\0" % (2 << 20) + huge[136:]
    length = length[:148] + b"%06o\0 " % (sum(length[:148]) + sum(length[156:512]) + 8 * 32) + length[156:]
    yield "cut within an image", data[: 2 * step + 700], 2, "unexpected end of data"
    yield "cut between images", data[: 2 * step], 2, "without its end mark"
    yield "header overwritten", data[: 2 * step] + b"\xff" * 512 + data[2 * step + 512 :], 2, "bad checksum"
    yield "no tar at all", b"<!doctype html>" * 100, 0, "not a tar archive"
    yield "nothing", b"", 0, "not a tar archive"
    yield "gzip cut", gzip.compress(data)[:-200], None, "damaged"
    yield "no images", data[3 * step :], 0, "no images in this archive"
    yield "a name that fills the memory", data[:step] + length, 1, "a name of 2 MB"


@pytest.mark.parametrize(
    ("data", "good", "reason"), [c[1:] for c in damaged_shards()], ids=[c[0] for c in damaged_shards()]
)
def test_a_damaged_shard_ends_in_an_item_with_the_reason(data, good, reason, here):
    (here / "s.tar").write_bytes(data)
    *before, (name, said) = answers(Inputs(("s.tar",)))
    assert good is None or [answer for _, answer in before] == [(20, 16)] * good
    assert name == "s.tar" and reason in said and "\n" not in said


def test_a_shard_that_is_gone_when_its_turn_comes_is_an_item_too(here):
    (item,) = Shard("s.tar", str(here / "s.tar")).items()
    assert item.reason == "cannot be read from the beginning: no such file"


def test_an_image_too_large_is_refused_unread(here, memory, monkeypatch):
    monkeypatch.setattr(images, "MAX_BYTES", 200)
    monkeypatch.setattr(type(memory), "cat_file", lambda *args, **options: pytest.fail("was read"))
    memory.pipe_file("/in/large.png", bytes(300))
    (item,) = Files((Item("x", "memory://in/large.png"),)).items()
    with pytest.raises(ImageError, match="^oversized"):
        load(item)
    shard(here / "s.tar", [("large.png", bytes(300)), ("b.png", PNG[0][:150])])
    read, extract = [], tarfile.TarFile.extractfile
    monkeypatch.setattr(tarfile.TarFile, "extractfile", lambda *args: read.append(args[1].name) or extract(*args))
    assert [reason.split(":")[0] for _, reason in answers(Inputs(("s.tar",)))] == ["oversized", "damaged or truncated"]
    assert read == ["b.png"]


def test_a_remote_file_of_unknown_size_is_read_to_the_limit_only(memory, monkeypatch):
    memory.pipe_file("/in/a.png", PNG[0])
    monkeypatch.setattr(type(memory), "info", lambda self, path: {"size": None})
    (item,) = Files((Item("x", "memory://in/a.png"),)).items()
    assert item.data is None and load(item).size == (20, 16)
    monkeypatch.setattr(images, "MAX_BYTES", 50)
    monkeypatch.setattr(images, "MAX_BYTES", 50)
    (item,) = Files((Item("x", "memory://in/a.png"),)).items()
    file = io.BytesIO(PNG[0])
    monkeypatch.setattr(type(memory), "open", lambda *args: contextlib.nullcontext(file))
    with pytest.raises(ImageError, match="oversized"):
        load(item)
    assert file.tell() == 51


def test_large_remote_files_wait_for_their_turn_and_small_ones_are_fetched_ahead(memory, monkeypatch):
    monkeypatch.setattr(units, "LARGE", len(PNG[0]))
    memory.pipe_file("/in/a.png", PNG[0])
    memory.pipe_file("/in/b.png", PNG[0] + b"more")
    small, large, gone = Files(tuple(Item(name, f"memory://in/{name}") for name in ("a.png", "b.png", "c.png"))).items()
    assert (small.data, large.data) == (PNG[0], None)
    assert load(large).size == load(small).size == (20, 16)
    assert small.data is large.data is None  # bytes are let go of
    with pytest.raises(ImageError, match="^cannot be read: no such file$"):
        load(gone)


def test_a_remote_folder_pattern_and_list(memory, here):
    for number, name in enumerate(("a.png", "deep/b.png", "deep/er/c.png", "deep/notes.txt")):
        memory.pipe_file(f"/in/{name}", PNG[number])
    expected = ["memory://in/a.png", "memory://in/deep/b.png", "memory://in/deep/er/c.png"]
    assert [name.replace("memory:///", "memory://") for name in names("memory://in")] == expected
    assert [name.replace("memory:///", "memory://") for name in names("memory://in/*.png")] == expected[:1]
    memory.pipe_file("/list.txt", b"a.png\ndeep/b.png\n")
    assert answers(Inputs(("memory://list.txt",), root="memory://in/")) == [
        ("a.png", (20, 16)),
        ("deep/b.png", (20, 16)),
    ]


def test_names_that_are_not_utf8_are_written_as_escapes(here):
    (here / "in").mkdir()
    (here / "in" / os.fsdecode(b"\xe9.png")).write_bytes(PNG[0])
    assert answers(Inputs(("in",))) == [("in/\\xe9.png", (20, 16))]
    unit = next(Inputs(("in",)).units(4))
    assert len(unit.key()) == 8


@pytest.mark.parametrize(
    ("address", "remote"),
    [("s3://b/k", True), ("zip://a.png::s3://b/k.zip", True), ("C:/x", False), ("a:b.png", False), ("a//b", False)],
)
def test_what_counts_as_an_address(address, remote):
    assert places.is_remote(address) == remote
