"""`python -m dfd score`: with Ray, as a person calls it, and without, by a Judge in this process."""

import io
import json
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from codecs import BOM_UTF8
from functools import partial

import bad_files
import fsspec
import pandas as pd
import psutil
import pyarrow as pa
import pytest
import ray
import s3fs
from bad_files import encoded, picture
from click.testing import CliRunner
from moto.server import ThreadedMotoServer
from networks import checkpoint
from pyarrow import parquet

from benchmarks import measure, predicting, scoring
from dfd import cli
from dfd.config import CHECKPOINTS
from dfd.data.layouts import printable
from dfd.inference.detector import Detector
from dfd.inference.files import save_checkpoint, update_checkpoint
from dfd.scale import score as scale

AWS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")  # Ray's servers
SLOW = ("--crop-mode", "grid", "--part-size", "4")  # work that takes long enough to be interrupted


@pytest.fixture(scope="module")
def ray_here():
    """One Ray for all tests, for it takes many seconds to start, and an S3 server that its workers know."""
    server = ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "98,99")  # workers as beside two GPUs, of which torch knows nothing
        for name, value in {**AWS, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}.items():
            patch.setenv(name, value)
        for attempt in range(4):
            try:
                ray.init("local", num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False)
                break
            except Exception:  # Ray gives itself half a minute, which a busy machine may need for Python alone
                ray.shutdown()
                assert attempt < 3
        yield ray.get_runtime_context().gcs_address
        ray.shutdown()
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    for stage, name in CHECKPOINTS.items():
        save_checkpoint(checkpoint(stage, crop_size=32, crops=2), folder / name)
    fitted = {"x": [-9.0, 9.0], "log10_lr": [-1.0, 1.0], "photos": 30, "fakes": 30}
    update_checkpoint(folder / CHECKPOINTS["stage1"], likelihood=fitted)
    return folder


@pytest.fixture
def score(model, tmp_path, monkeypatch):
    """The command, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(cli.main, ["score", "--model", str(model), "--workers", "2", *words])


@pytest.fixture
def without_ray(monkeypatch):
    """Judge in this process; gives the names that were to be judged."""
    judged = []

    def judge(names, shared, options):
        judged.extend(names)
        assert not any(name.startswith("in/") for name in shared[2])  # of what was judged, a worker gets shards' rows
        monkeypatch.setattr(ray, "get", lambda content: content)
        worker = scale.Judge([shared], options, None)
        for start in range(0, len(names), options.part_size):
            for part in worker({"names": [pickle.dumps(names[start : start + options.part_size])]}):
                yield from map(pickle.loads, part["part"])

    monkeypatch.setattr(scale, "judged", judge)
    return judged


def fill(folder, count, size=(60, 50)):
    folder.mkdir()
    for number in range(count):
        picture(number, *size).save(folder / f"{number:03}.png")
    return folder


def pngs(count):
    return [(f"{number}.png", encoded(picture(number, 60, 50), "PNG")) for number in range(count)]


def shard(path, members, mode="w"):
    """Write a tar archive of (name, content); a content of None makes a link."""
    with tarfile.open(path, mode) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            else:
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content or b""))
    return path


def rows(folder):
    table = pd.read_parquet(folder)
    assert table.path.is_unique
    return table.set_index("path").sort_index()


SVG = "not an image: an HTML page or SVG drawing; supported are JPEG, PNG, WEBP, BMP, TIFF, GIF, AVIF, HEIF"


def errors(folder):
    return rows(folder).error.dropna().to_dict()


def parts(folder):
    return {path.name for path in folder.glob("part-*.parquet")}


def assert_as_predicted(table, model, folder, prefix="", **options):
    """Rows of images are what `predict` says of the files of the same name in a folder."""
    paths = sorted(folder.iterdir())
    for path, verdict in zip(paths, Detector.load(model).predict(paths, report=lambda _: None, **options), strict=True):
        row = table.loc[f"{prefix}{path.name}"]
        assert row.p_fake == pytest.approx(verdict.p_fake, abs=1e-5) and row.crops == verdict.crops
        assert row.source == verdict.source and row["p_source.ProGAN"] == pytest.approx(
            verdict.p_source["ProGAN"], abs=1e-5
        )
        assert tuple(row.candidates) == verdict.candidates and len(row.sha256) == 64
        assert row.log10_lr == pytest.approx(verdict.log10_lr, abs=1e-5) and pd.isna(row.outside)


def wait_for(what, seconds=240):
    end = time.monotonic() + seconds
    while not (result := what()):
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)
    return result


# With Ray


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_shards_images_and_lists_on_s3_become_parquet_there(score, model, tmp_path):
    pictures = fill(tmp_path / "in", 7)
    data = [path.read_bytes() for path in sorted(pictures.iterdir())]
    s3 = s3fs.S3FileSystem()
    s3.mkdir("bucket")
    for number in range(3):
        s3.pipe_file(f"bucket/images/deep/{number:03}.png", data[number])
    s3.pipe_file("bucket/images/bad.png", b"<svg/>")
    shard(tmp_path / "s.tar", [(f"{number:03}.png", data[number]) for number in range(3, 6)])
    s3.put_file(str(tmp_path / "s.tar"), "bucket/shards/good.tar")
    s3.pipe_file("bucket/shards/broken.tar", (tmp_path / "s.tar").read_bytes()[:600])
    s3.pipe_file("bucket/list.txt", b"s3://bucket/listed/006.png\ns3://bucket/listed/gone.png\n")
    s3.pipe_file("bucket/listed/006.png", data[6])
    inputs = [f"s3://bucket/{name}" for name in ("images", "shards/*.tar", "list.txt")]
    words = [*inputs, "--out", "s3://bucket/scores", "--part-size", "2", "--workers", "1"]

    result = score(*words)
    assert result.exit_code == 1 and "10 images in s3://bucket/scores; 3 were refused" in result.stderr, result.output
    table = rows("s3://bucket/scores")
    reasons = table.error.dropna().to_dict()
    assert reasons.pop("s3://bucket/images/bad.png") == SVG
    assert reasons.pop("s3://bucket/listed/gone.png").startswith("cannot be read: ")
    assert reasons == {"s3://bucket/shards/broken.tar": "cannot be read after 0 images: unexpected end of data"}
    table.index = table.index.str.rpartition("/").get_level_values(2)
    assert_as_predicted(table, model, pictures)
    s3.put_file(str(tmp_path / "s.tar"), "bucket/shards/broken.tar")  # what was not to be had is asked for again
    s3.pipe_file("bucket/listed/gone.png", data[0])
    assert "12 images in s3://bucket/scores, 8 of them before; 1 were refused" in score(*words).stderr
    assert list(rows("s3://bucket/scores").error.dropna().index) == ["s3://bucket/images/bad.png"]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_each_image_has_one_row_after_a_worker_is_killed_at_work(score, model, tmp_path):
    pictures, out, seen = fill(tmp_path / "in", 28, (200, 200)), tmp_path / "out", {}

    def kill():
        wait_for(lambda: len(parts(out)) >= 2)
        children = psutil.Process().children(recursive=True)
        next(child for child in children if "MapWorker" in " ".join(child.cmdline())).kill()
        seen["done"] = parts(out)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    result = score("in", "--out", "out", *SLOW)
    thread.join(60)
    assert result.exit_code == 0, result.output
    assert 2 <= len(seen["done"]) < 7  # killed in the middle
    table = rows("out")
    assert len(table) == 28 and table.error.isna().all()
    assert_as_predicted(table, model, pictures, "in/", mode="grid")


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_a_part_is_one_file_whatever_its_size(score, tmp_path):
    fill(tmp_path / "in", 150, (40, 40))
    result = score("in", "--out", "out", "--part-size", "100", "--workers", "1")
    assert result.exit_code == 0, result.output
    sizes = [parquet.read_metadata(path).num_rows for path in (tmp_path / "out").glob("part-*.parquet")]
    assert sorted(sizes) == [50, 100]  # Ray would cut 100 rows in two


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_what_goes_wrong_in_a_worker_ends_the_run_in_one_line(score, tmp_path, monkeypatch):
    fill(tmp_path / "in", 2)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(scale, "Judge", Broken)
    result = score("in", "--out", "out", "--workers", "1")
    assert result.exit_code == 2 and "No space left on device" in result.stderr.splitlines()[-1], result.output
    assert isinstance(result.exception, SystemExit)


class Broken:
    """A worker on a full disk."""

    def __init__(self, *args):
        pass

    def __call__(self, batch):
        raise OSError(28, "No space left on device")


@pytest.mark.slow
def test_a_killed_run_goes_on_a_signal_ends_one_in_one_line_and_ray_is_started_and_quiet(
    score, ray_here, model, tmp_path
):
    pictures, out = fill(tmp_path / "in", 20, (200, 200)), tmp_path / "out"
    command = [sys.executable, "-m", "dfd", "score", "--model", str(model), "in", "--out", "out", "--workers", "1"]
    own = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}  # so that it starts Ray itself
    (tmp_path / "lazy_loader.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")  # no code
    for number, code, words in ((signal.SIGKILL, -9, ("--address", ray_here)), (signal.SIGTERM, 143, ())):
        before = {name: (out / name).stat().st_mtime_ns for name in parts(out)}
        with subprocess.Popen(
            [*command, *SLOW, *words], cwd=tmp_path, env=own, stderr=subprocess.PIPE, text=True
        ) as process:
            wait_for(lambda: len(parts(out)) > len(before) or process.poll() is not None)  # noqa: B023
            process.send_signal(number)
            said = process.stderr.read().splitlines()
        assert process.returncode == code, said
        assert len(before) < len(parts(out)) < 5, said
        assert all((out / name).stat().st_mtime_ns == stamp for name, stamp in before.items())
    first, *of_ray, last = said
    assert first == f"model: {model}" and len(of_ray) <= 1, said  # that it logs no more
    assert last.endswith("interrupted; the parts that are written stay, and the same command goes on")
    result = score("in", "--out", "out", *SLOW)
    assert (result.exit_code, result.stdout) == (0, ""), result.output
    assert re.fullmatch(r"20 images in out, \d+ of them before; 0 were refused", result.stderr.splitlines()[-1])
    table = rows(out)
    assert len(table) == 20 and table.error.isna().all() and not (tmp_path / "ran").exists()
    assert_as_predicted(table, model, pictures, "in/", mode="grid")


# Without


@pytest.mark.usefixtures("without_ray")
def test_the_rows_are_what_predict_says_of_good_and_bad_files(score, model, tmp_path):
    bad_files.make(tmp_path / "in")
    result = score("in", "--out", "out")
    table = rows("out")
    assert result.exit_code == 1 and len(table) > 40 and table.error.notna().sum() > 20
    paths = list(scale.listed("in"))
    for path, verdict in zip(paths, Detector.load(model).predict(paths), strict=True):
        row = table.loc[printable(path)]
        assert (None if pd.isna(row.error) else row.error) == verdict.error
        if verdict.error:
            assert row.drop(["error", "candidates"]).isna().all() and row.candidates is None
        else:
            assert row[["p_fake", "crop_std"]].tolist() == pytest.approx([verdict.p_fake, verdict.crop_std], abs=1e-5)
            assert (row.is_fake, row.source, row.crops) == (verdict.is_fake, verdict.source, verdict.crops)


@pytest.mark.usefixtures("without_ray")
def test_neither_order_nor_parts_nor_batches_change_a_row(score, tmp_path):
    fill(tmp_path / "a", 4)
    fill(tmp_path / "b", 3, (90, 70))
    shard(tmp_path / "s.tar", pngs(3))
    score("a", "b", "s.tar", "--out", "one")
    score("s.tar", "b", "a", "--out", "two", "--part-size", "2", "--batch-size", "3")
    pd.testing.assert_frame_equal(
        rows("one").drop(columns="candidates"), rows("two").drop(columns="candidates"), atol=1e-5
    )


def test_what_has_a_row_is_left_out_also_within_a_shard_and_other_inputs_are_added(score, without_ray, tmp_path):
    fill(tmp_path / "in", 5)
    shard(tmp_path / "s.tar", pngs(3))
    assert score("in/00[01].png", "s.tar", "--out", "out").exit_code == 0
    first = rows("out")
    for path in (tmp_path / "out").glob("part-*"):  # as if it had been killed before the end of the shard
        table = parquet.read_table(path)
        parquet.write_table(table.filter([not name.endswith("2.png") for name in table["path"].to_pylist()]), path)
    without_ray.clear()
    result = score("in", "in/000.png", "s.tar", "--out", "out")
    assert "8 images in out, 4 of them before; 0 were refused" in result.stderr
    assert without_ray == ["in/002.png", "in/003.png", "in/004.png", "s.tar"]
    pd.testing.assert_series_equal(rows("out").p_fake[first.index], first.p_fake)


@pytest.mark.usefixtures("without_ray")
def test_names_that_look_like_patterns_are_names(score, tmp_path):
    fill(tmp_path / "in", 2)
    (tmp_path / "in/000.png").rename(tmp_path / "in/a[1].png")
    (tmp_path / "in/._b.png").write_bytes(b"\0\5\x16\7")
    for _ in range(2):
        result = score(f"file://{tmp_path}/in/*.png", "--out", f"file://{tmp_path}/out [1]")
        assert result.exit_code == 0 and f"2 images in file://{tmp_path}/out [1]" in result.stderr, result.output
    assert len(rows(tmp_path / "out [1]")) == 2


def test_a_refused_image_has_its_row(score, without_ray, tmp_path):
    fill(tmp_path / "in", 3)
    (tmp_path / "in/bad.png").write_bytes(b"<svg/>")
    assert score("in", "--out", "out").exit_code == 1
    without_ray.clear()
    assert "4 images in out, 4 of them before; 1 were refused" in score("in", "--out", "out").stderr
    assert without_ray == []
    assert errors("out") == {"in/bad.png": SVG}


@pytest.mark.usefixtures("without_ray")
def test_folders_patterns_and_lists(score, tmp_path):
    fill(tmp_path / "in", 2)
    (tmp_path / "in/deep").mkdir()
    (tmp_path / "elsewhere").mkdir()
    for name in ("in/deep/z.JPG", "elsewhere/f.png", os.fsdecode(b"in/\xe9.png")):
        picture(4).save(tmp_path / name, "PNG")
    (tmp_path / "in/notes.txt").write_text("no image")
    os.symlink("../elsewhere", tmp_path / "in/linked")
    os.symlink("../..", tmp_path / "in/deep/upwards")
    os.symlink("gone.png", tmp_path / "in/broken.png")
    (tmp_path / "list.txt").write_text("elsewhere/f.png\r\n\nelsewhere/missing.png\n")
    assert score("in", "--out", "folder").exit_code == 1
    images = {"000.png", "001.png", "\\xe9.png", "broken.png", "deep/z.JPG", "linked/f.png"}
    assert set(rows("folder").index) == {f"in/{name}" for name in images}
    assert list(errors("folder")) == ["in/broken.png"]
    score("in/00*.png", "list.txt", "--out", "out")
    names = ["elsewhere/f.png", "elsewhere/missing.png", "in/000.png", "in/001.png"]
    assert rows("out").index.tolist() == names
    assert errors("out") == {"elsewhere/missing.png": "cannot be read: No such file or directory"}


@pytest.mark.usefixtures("without_ray")
def test_what_a_store_did_not_give_is_asked_for_again_and_what_is_passed_over_is_said(score, tmp_path, monkeypatch):
    store = fsspec.filesystem("memory")
    for number, name in enumerate(("a.png", "deep/b.png", "0f3c9e", "M\xfcller.jpg")):
        store.pipe_file(f"/b/{name}", encoded(picture(number, 60, 50), "PNG"))
    (tmp_path / "list.txt").write_bytes(BOM_UTF8 + b"memory:///b/a.png\nmemory:///b/M\xfcl.jpg\n")
    whole = type(store).cat_file

    def broken(self, path, *args, **options):
        if path.endswith("b.png"):
            raise TimeoutError("try again")
        return whole(self, path, *args, **options)

    words = ("memory:///b", "list.txt", "--out", "out")
    with monkeypatch.context() as patch:
        patch.setattr(type(store), "cat_file", broken)
        result = score(*words)
    assert "left out 1 with names of no image: 'memory:///b/0f3c9e'" in result.stderr
    assert errors("out").keys() == {"memory:///b/deep/b.png", "memory:///b/M\\xfcl.jpg"}, result.output
    assert "4 images in out, 2 of them before; 1 were refused" in score(*words).stderr
    score("memory:///b/a.png", "--out", "out")  # the row of another input stays
    assert errors("out").keys() == {"memory:///b/M\\xfcl.jpg"}
    assert list(scale.listed("memory:///b/**"))[-1] == "memory:///b/deep/b.png"


@pytest.mark.parametrize(("name", "mode"), [("s.tar", "w"), ("s.tar.gz", "w:gz"), ("s.tar.xz", "w:xz")])
@pytest.mark.usefixtures("without_ray")
def test_a_shard_gives_its_images_and_passes_over_what_belongs_to_them(name, mode, score, tmp_path):
    good = pngs(1)[0][1]
    members = [
        ("./a.png", good),
        ("a.json", b"{}"),
        ("deep/b.JPG", good),
        ("c.png", b"<svg/>"),
        ("d.png", None),
        ("hash", good),
        ("deep/._b.JPG", b"\0\5\x16\7"),  # macOS's, with which a folder's images are not counted either
        ("__MACOSX/deep/._c.png", b"\0\5\x16\7"),
        ("__MACOSX/e.png", good),  # a picture, whatever its folder is called
    ]
    shard(tmp_path / name, members, mode)
    score(name, "--out", "out")
    names = "__MACOSX/e.png", "a.png", "c.png", "d.png", "deep/b.JPG", "hash"  # by what it holds, as in folders
    assert rows("out").index.tolist() == [f"{name}/{member}" for member in names]
    assert errors("out") == {f"{name}/c.png": SVG, f"{name}/d.png": "no bytes"}


@pytest.mark.timeout(60)
@pytest.mark.usefixtures("without_ray")
def test_a_shard_that_never_ends_is_not_opened(score, tmp_path):
    (tmp_path / "in").mkdir()
    os.mkfifo(tmp_path / "in" / "a.tar")
    (tmp_path / "in" / "z.tar").symlink_to("/dev/zero")
    (tmp_path / "in" / "b.png").write_bytes(pngs(1)[0][1])
    score("in", "--out", "out")
    assert rows("out").index.tolist() == ["in/a.tar", "in/b.png", "in/z.tar"]
    score("in", "--out", "out")  # once more, and each has one row
    assert errors("out") == dict.fromkeys(("in/a.tar", "in/z.tar"), "not a regular file (a folder, a pipe, a device)")


@pytest.mark.usefixtures("without_ray")
def test_names_that_are_written_alike_are_refused(score, tmp_path):
    (tmp_path / "in").mkdir()
    for name in (b"\\xff.png", b"\xff.png"):
        (tmp_path / "in" / os.fsdecode(name)).write_bytes(pngs(1)[0][1])
    result = score("in", "--out", "out")
    assert result.exit_code == 2 and "are written alike; rename one of them" in result.stderr
    assert score(os.fsdecode(b"in/\xff.png"), "--out", "out").exit_code == 0


@pytest.mark.usefixtures("without_ray")
def test_a_name_that_a_shard_has_twice_is_two_rows(score, tmp_path):
    (_, first), (_, second) = pngs(2)
    shard(tmp_path / "s.tar", [("a.png", first), ("./a.png", second)])  # as tar -r leaves it
    score("s.tar", "--out", "out")
    table = rows("out")
    assert table.index.tolist() == ["s.tar/a.png", "s.tar/a.png (2)"] and table.sha256.nunique() == 2


def damaged_shards():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in pngs(3):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    data = buffer.getvalue()
    third = data.index(b"2.png\0")
    yield "cut within an image", data[: third + 700], 2
    yield "cut between images", data[:third], 2
    yield "header overwritten", data[:third] + b"\xff" * 512 + data[third + 512 :], 2
    yield "no tar at all", b"<!doctype html>" * 100, 0
    yield "nothing", b"", 0
    yield "no images", bytes(10240), 0
    yield "two archives in one file", 2 * data, 3


@pytest.mark.parametrize(
    ("data", "good"), [case[1:] for case in damaged_shards()], ids=[case[0] for case in damaged_shards()]
)
@pytest.mark.usefixtures("without_ray")
def test_a_damaged_shard_ends_in_a_row_with_the_reason(data, good, score, tmp_path):
    (tmp_path / "s.tar").write_bytes(data)
    assert score("s.tar", "--out", "out").exit_code == 1
    table = rows("out")
    assert table.error.isna().sum() == good and list(table.error.dropna().index) == ["s.tar"]
    assert table.error["s.tar"].startswith(f"cannot be read after {good} images: ")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["nowhere"], "nowhere: no such file or folder"),
        (["nowhere.tar"], "nowhere.tar: no such file or folder"),
        (["empty"], "no images below empty"),
        (["empty/*.tiff"], "no file matches empty/*.tiff"),
        (["foo://bucket/x"], "Protocol not known: foo"),
    ],
)
def test_inputs_that_cannot_be_used_are_one_line_and_leave_no_folder(words, text, score, tmp_path):
    (tmp_path / "empty").mkdir()
    result = score(*words, "--out", "out")
    assert result.exit_code == 2 and text in result.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("without_ray")
def test_a_folder_of_another_model_version_or_other_options_is_refused(score, tmp_path, monkeypatch):
    fill(tmp_path / "in", 1)
    other = tmp_path / "other"
    other.mkdir()
    for stage, name in CHECKPOINTS.items():
        save_checkpoint(checkpoint(stage, seed=1, crop_size=32, crops=2), other / name)
    score("in", "--out", "out")
    for words in (["--model", str(other)], ["--crops", "1"], ["--crop-mode", "grid"], []):
        with monkeypatch.context() as patch:
            if not words:
                patch.setattr(scale, "code", lambda: "of another version")
            result = score("in", "--out", "out", *words)
        assert result.exit_code == 2 and "out was scored with {'model': " in result.stderr
    validation = {"photos": [0.1, 0.8], "fakes": [0.7, 0.9]}
    update_checkpoint(other / CHECKPOINTS["stage1"], validation=validation, threshold=0.0)  # by which all would be fake
    score("in", "--out", "own", "--model", str(other), "--threshold-fpr", "0.01")
    assert json.loads((tmp_path / "own/_score.json").read_text())["threshold"] > 0.8
    assert not rows("own").is_fake.any() and len(rows("out")) == 1


@pytest.mark.usefixtures("without_ray")
def test_a_folder_in_use_or_with_other_files_is_refused(score, tmp_path):
    fill(tmp_path / "in", 1)
    code = "import time; from dfd.core.runs import run_lock\nwith run_lock('out'): print(flush=True); time.sleep(99)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        results = [score("in", "--out", out) for out in ("out", f"file://{tmp_path}/out")]
        process.kill()
    for result in results:
        assert (result.exit_code, result.stdout) == (2, "")
        assert f"out is in use by process {process.pid} on" in result.stderr.splitlines()[-1]
    (tmp_path / "mine").mkdir()
    parquet.write_table(pa.table({"path": ["x"]}), tmp_path / "mine/table.parquet")
    assert "mine holds files that `score` did not write" in score("in", "--out", "mine").stderr


@pytest.mark.usefixtures("without_ray")
def test_a_part_that_cannot_be_written_whole_is_not_there(score, tmp_path, monkeypatch):
    fill(tmp_path / "in", 4)

    def full(*args):
        raise OSError(28, "No space left on device")

    score("in/000.png", "--out", "out")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        result = score("in", "--out", "out", "--part-size", "2")
    assert result.exit_code == 2 and "disk full" in result.stderr and len(rows("out")) == 1
    assert score("in", "--out", "out").exit_code == 0 and len(rows("out")) == 4


@pytest.mark.usefixtures("without_ray")
def test_the_benchmark_scores_all_images_twice_and_tells_the_ratio(tmp_path, monkeypatch):
    for name in ("init", "shutdown"):
        monkeypatch.setattr(ray, name, lambda *given, **options: None)
    small = partial(predicting.contents, backbone="test_efficientnet.r160_in1k", unet_width=4)
    monkeypatch.setattr(scoring, "contents", small)
    for name, value in {"IMAGES": 32, "PART": 4, "TURNS": 1, "SIDE": 64}.items():
        monkeypatch.setattr(scoring, name, value)
    steady, rate, whole, _ = scoring.rows(tmp_path)
    assert rate.value > 0 and (rate.unit, rate.bar) == ("images/s", None)
    assert steady.value > 0 and steady.bar == 1.8 and not measure.Row("x", 1.7, 1.8, steady.unit).met
    assert whole.value > 0 and whole.bar is None
    for workers in (1, 2):
        table = pd.read_parquet(tmp_path / f"scores {workers} 0")
        assert len(table) == 32 and table.error.isna().all()


def test_a_dead_cluster_is_known_before_ray_tries_for_minutes(score, tmp_path, monkeypatch):
    fill(tmp_path / "in", 1)
    monkeypatch.setattr(ray, "init", lambda *args, **options: pytest.fail("Ray was started"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}", f"[::1]:{port}"):
        monkeypatch.setenv("RAY_ADDRESS", address)
        result = score("in", "--out", "out")
        assert result.exit_code == 2
        assert re.search(rf"dfd: no Ray at {re.escape(address)}: .+; start it, or unset", result.stderr)


def test_a_cluster_that_is_not_there_is_one_line(score, tmp_path, monkeypatch):
    def refused(*args, **options):
        raise ConnectionError("Could not find any running Ray instance.\nPlease specify ...")

    fill(tmp_path / "in", 1)
    monkeypatch.setattr(ray, "init", refused)
    result = score("in", "--out", "out", "--address", "auto")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("dfd: no Ray at auto: Could not find any running Ray")
