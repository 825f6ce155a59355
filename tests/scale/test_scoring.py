"""`python -m dfd score` through Ray, as a person calls it: S3, a killed worker, a killed run, and what is refused."""

import contextlib
import dataclasses
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time

import bad_files
import pandas as pd
import pyarrow as pa
import pytest
import ray
import s3fs
from click.testing import CliRunner
from moto.server import ThreadedMotoServer
from networks import checkpoint
from pyarrow import parquet
from test_inputs import shard
from test_interruption import holding

import dfd
from dfd import cli
from dfd.config import CHECKPOINTS
from dfd.inference.detector import Detector
from dfd.inference.stage import save_checkpoint, update_checkpoint
from dfd.scale import cluster, scoring
from dfd.scale.inputs import Inputs
from dfd.scale.scoring import Scorer


@pytest.fixture(scope="module")
def ray_here():
    """One Ray for all tests of this file, for it takes many seconds to start; gives its address."""
    with cluster.joined(None, 4, None, 1):
        yield ray.get_runtime_context().gcs_address


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    for stage, name in CHECKPOINTS.items():
        save_checkpoint(checkpoint(stage, crop_size=32, crops=2), folder / name)
    return folder


@pytest.fixture
def score(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(cli.main, ["score", "--model", str(model), "--workers", "2", *words])


@pytest.fixture
def s3(monkeypatch):
    """A bucket on an S3 server of this machine."""
    server = ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in (("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    s3fs.S3FileSystem.clear_instance_cache()
    fs = s3fs.S3FileSystem()
    fs.mkdir("bucket")
    yield fs
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def fill(folder, count, size=(60, 50)):
    folder.mkdir()
    for number in range(count):
        bad_files.picture(number, *size).save(folder / f"{number:03}.png")
    return folder


def rows(folder):
    table = pd.read_parquet(folder)
    assert table.path.is_unique
    return table.set_index("path").sort_index()


def assert_as_predicted(table, model, folder, prefix="", **options):
    """Rows of images are what `predict` says of the files of the same name in a folder."""
    paths = sorted(folder.iterdir())
    for path, one in zip(paths, Detector.load(model).predict(paths, report=lambda _: None, **options), strict=True):
        row = table.loc[f"{prefix}{path.name}"]
        assert row.p_fake == pytest.approx(one.p_fake, abs=1e-5) and row.crops == one.crops
        assert row.source == one.source and row.p_ProGAN == pytest.approx(one.p_source["ProGAN"], abs=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_shards_images_lists_and_tables_on_s3_become_parquet_there(s3, score, model, tmp_path):
    pictures = fill(tmp_path / "in", 9)
    data = [path.read_bytes() for path in sorted(pictures.iterdir())]
    for number in range(3):
        s3.pipe_file(f"bucket/images/deep/{number:03}.png", data[number])
    s3.pipe_file("bucket/images/bad.png", b"<svg/>")
    shard(tmp_path / "s.tar", [(f"{number:03}.png", data[number]) for number in range(3, 6)])
    s3.put_file(str(tmp_path / "s.tar"), "bucket/shards/good.tar")
    s3.pipe_file("bucket/shards/broken.tar", (tmp_path / "s.tar").read_bytes()[:600])
    s3.pipe_file("bucket/list.txt", b"s3://bucket/listed/006.png\ns3://bucket/listed/gone.png\n")
    s3.pipe_file("bucket/listed/006.png", data[6])
    parquet.write_table(
        pa.table({"name": ["007.png", "008.png"], "bytes": data[7:]}), "bucket/t.parquet", filesystem=s3
    )
    inputs = ["images", "shards/*.tar", "list.txt", "t.parquet"]
    words = [
        *(f"s3://bucket/{one}" for one in inputs),
        "--names",
        "name",
        "--out",
        "s3://bucket/scores",
        "--workers",
        "1",
    ]

    result = score(*words, "--part-size", "2")
    assert result.exit_code == 1 and "12 images in s3://bucket/scores; 3 were refused" in result.stderr
    table = rows("s3://bucket/scores")
    assert table.error.dropna().to_dict() == {
        "s3://bucket/images/bad.png": "not an image: an SVG drawing",
        "s3://bucket/listed/gone.png": "cannot be read: no such file",
        "s3://bucket/shards/broken.tar": "not a tar archive, or damaged from the beginning: unexpected end of data",
    }
    table.index = table.index.str.rpartition("/").get_level_values(2)
    assert_as_predicted(table, model, pictures)

    s3.pipe_file("bucket/listed/gone.png", data[0])
    before = {one: s3.info(one)["LastModified"] for one in s3.ls("bucket/scores", refresh=True)}
    again = score(*words)
    assert again.exit_code == 1 and "12 images in s3://bucket/scores, 12 of them before; 3 were" in again.stderr
    assert before == {one: s3.info(one)["LastModified"] for one in s3.ls("bucket/scores", refresh=True)}
    mended = score(*words, "--retry")
    assert "12 images in s3://bucket/scores, 7 of them before; 2 were refused" in mended.stderr
    assert len(rows("s3://bucket/scores")) == 12


def wait_for(what, seconds=120):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)
    return found


def parts(folder):
    return {path.name for path in folder.glob("part-*")}


def marks(folder):
    """Parts that are being worked on, and the process of each."""
    found = {}
    for path in folder.glob("_tries-*"):
        with contextlib.suppress(OSError):  # finished meanwhile
            found[path.name.removesuffix(".json")] = json.loads(path.read_text())["pid"]
    return found


SLOW = ("--crop-mode", "grid", "--part-size", "4")  # work that takes long enough to be interrupted


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_each_image_has_one_row_after_a_worker_is_killed_at_work(score, model, tmp_path):
    pictures, out, seen = fill(tmp_path / "in", 48, (200, 200)), tmp_path / "out", {}

    def kill():
        wait_for(lambda: len(parts(out)) >= 2 and marks(out))
        name, seen["victim"] = marks(out).popitem()
        os.kill(seen["victim"], signal.SIGKILL)
        seen["part"], seen["done"] = name.removeprefix("_tries-"), parts(out)
        seen["later"] = wait_for(lambda: {marks(out).get(name)} - {None, seen["victim"]})

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    result = score("in", "--out", "out", *SLOW)
    thread.join(60)
    assert result.exit_code == 0, result.output
    assert 2 <= len(seen["done"]) < 12  # killed in the middle, with a part in hand that another process then took
    assert seen["part"].replace(".parquet", "-last.parquet") not in seen["done"] and seen["later"]
    table = rows("out")
    assert len(table) == 48 and table.error.isna().all()
    assert_as_predicted(table, model, pictures, "in/", mode="grid")
    assert not list(out.glob("_tries-*"))


@pytest.mark.slow
def test_each_image_has_one_row_after_the_run_is_killed_and_started_again(ray_here, score, model, tmp_path):
    pictures, out = fill(tmp_path / "in", 24, (200, 200)), tmp_path / "out"
    command = [sys.executable, "-m", "dfd", "score", "--model", str(model), "in", "--out", "out", *SLOW]
    with subprocess.Popen([*command, "--workers", "2", "--address", ray_here], cwd=tmp_path) as process:
        wait_for(lambda: parts(out) or process.poll() is not None)
        process.kill()
    before = {name: (out / name).stat().st_mtime_ns for name in parts(out)}
    assert 1 <= len(before) < 6
    result = score("in", "--out", "out", *SLOW)
    assert result.exit_code == 0 and "24 images in out, " in result.stderr
    table = rows("out")
    assert len(table) == 24 and table.error.isna().all()
    assert_as_predicted(table, model, pictures, "in/", mode="grid")
    done = score("in", "--out", "out", *SLOW)
    assert "24 images in out, 24 of them before; 0 were refused" in done.stderr and done.exit_code == 0

    assert "with crop mode grid, not None" in score("in", "--out", "out", "--part-size", "4").stderr
    (tmp_path / "in" / "000.png").unlink()
    result = score("in", "--out", "out", *SLOW)
    assert result.exit_code == 2 and "out was begun with other images" in result.stderr
    assert len(rows("out")) == 24


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_what_goes_wrong_in_a_worker_ends_the_run_in_one_line(score, tmp_path, monkeypatch):
    fill(tmp_path / "in", 2)
    (tmp_path / "list.txt").write_text("in/000.png\n")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(cluster, "Worker", Broken)
    result = score("list.txt", "--out", "out", "--workers", "1")
    assert result.exit_code == 2 and result.stderr.splitlines()[-1] == "dfd: [Errno 28] No space left on device"
    assert isinstance(result.exception, SystemExit)


class Broken:
    """A worker on a full disk."""

    def __init__(self, *args):
        pass

    def __call__(self, batch):
        raise OSError(28, "No space left on device")


@pytest.mark.slow
def test_the_command_starts_ray_itself_and_says_two_lines(model, tmp_path):
    fill(tmp_path / "in", 3)
    command = [sys.executable, "-m", "dfd", "score", "--model", str(model), "--workers", "1", "in", "--out", "out"]
    own = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=own)
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
    assert result.stderr.splitlines() == [f"model: {model}", "3 images in out; 0 were refused"]
    assert len(rows(tmp_path / "out")) == 3


def test_ray_is_started_again_where_the_machine_was_too_busy(monkeypatch):
    busy, tried = Exception("The current node timed out during startup. This could\nhappen"), []

    def init(address, **options):
        assert address == "local"  # or a cluster that was started here would be taken, and refuse num_cpus
        tried.append(options["num_cpus"])
        raise busy

    monkeypatch.setattr(cluster.ray, "shutdown", lambda: tried.append("shutdown"))
    monkeypatch.setattr(cluster.ray, "init", init)
    with pytest.raises(ConnectionError, match="^Ray does not start here: The current node timed out .* could$"):
        cluster._start(None, 3, 20)
    assert tried == [60, "shutdown"] * cluster.ATTEMPTS


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_in_one_line_though_ray_has_a_handler_of_its_own(number, code, score, tmp_path, monkeypatch):
    fill(tmp_path / "in", 1)
    before = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster.ray, "init", lambda *args, **options: signal.signal(signal.SIGTERM, sys.exit))
    monkeypatch.setattr(cluster.ray, "cluster_resources", dict)
    monkeypatch.setattr(cluster.ray, "shutdown", lambda: None)
    monkeypatch.setattr(cluster, "scored", lambda *args: iter([signal.raise_signal(number)]))
    result = score("in", "--out", "out")
    assert result.exit_code == code and result.stderr.splitlines()[1:] == [
        "dfd: interrupted; the parts that are written stay, and the same command goes on"
    ]
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_second_run_in_the_same_folder_is_refused(score, tmp_path):
    fill(tmp_path / "in", 1)
    with holding(tmp_path / "out") as process:
        result = score("in", "--out", "out")
        process.kill()
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"out is in use by process {process.pid} on" in result.stderr.splitlines()[-1]


@pytest.fixture
def without_ray(monkeypatch):
    """Gives what sets, in place of Ray's workers, a function of a Scorer and its units that gives what is told."""

    def set_workers(work, **changes):
        def scored(pool, inputs, done, checkpoints, job):
            units = enumerate(inputs.units(job.part_size))
            left = [one for one in units if one[0] not in done]
            return work(Scorer(checkpoints, dataclasses.replace(job, **changes)), left)

        monkeypatch.setattr(cluster, "joined", lambda *args: contextlib.nullcontext(cluster.Pool(1, 0.0)))
        monkeypatch.setattr(cluster, "scored", scored)

    return set_workers


def test_what_a_worker_wrote_before_it_died_is_counted(score, without_ray, tmp_path):
    fill(tmp_path / "in", 6)
    (tmp_path / "in" / "000.png").write_bytes(b"<svg/>")

    def work(scorer, units):
        for number, unit in units:
            told = list(scorer(number, unit))
            if number:  # the first worker dies between the part and the telling
                yield from told

    without_ray(work)
    result = score("in", "--out", "out", "--part-size", "2")
    assert result.exit_code == 1 and result.stderr.splitlines()[-1] == "6 images in out; 1 were refused"
    for path in (tmp_path / "out").glob("part-000002-*"):
        path.unlink()
    again = score("in", "--out", "out", "--part-size", "2")
    assert again.stderr.splitlines()[-1] == "6 images in out, 4 of them before; 1 were refused"


def test_workers_that_write_to_a_disk_of_their_own_are_noticed(score, without_ray, tmp_path, monkeypatch):
    fill(tmp_path / "in", 2)
    monkeypatch.setattr(scoring, "STALE", 0.0)
    without_ray(lambda scorer, units: (told for one in units for told in scorer(*one)), out=str(tmp_path / "own"))
    result = score("in", "--out", "out")
    assert result.exit_code == 2 and len(parts(tmp_path / "own")) == 1
    assert result.stderr.splitlines()[-1] == (
        f"dfd: {tmp_path}/out has 0 of the 2 images that were scored just now; "
        "all machines must share the file system of --out, as they do s3://"
    )


def test_a_worker_that_does_not_see_the_folder_of_the_run_stops_it_at_once(model, tmp_path, monkeypatch):
    contents = {name: (model / name).read_bytes() for name in CHECKPOINTS.values()}
    monkeypatch.setattr(cluster.ray, "get", lambda reference: contents)
    worker = cluster.Worker([None], scoring.Job(str(tmp_path / "out")), False, {})
    (unit,) = Inputs((str(fill(tmp_path / "in", 1)),)).units(9)
    batch = {"unit": [pickle.dumps((0, unit))]}
    with pytest.raises(OSError, match=f"has a {tmp_path}/out of its own, or none; all machines must share"):
        list(worker(batch))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "_score.json").write_text("{}")
    assert list(worker(batch)) == [{"images": [1], "refused": [0]}]


def test_another_model_is_refused_before_anything_starts(score, model, tmp_path):
    fill(tmp_path / "in", 1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "_score.json").write_text('{"networks": ["x", "y"], "model": "reports/old", "part_size": 256}')
    result = score("in", "--out", "out")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "scored by other networks, reports/old; take another --out" in result.stderr


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["nowhere"], "no such file or folder: nowhere"),
        (["empty"], "no images and no shards (.tar) below empty"),
        (["foo://bucket/x"], "foo://bucket/x: Protocol not known: foo"),
    ],
)
def test_inputs_that_are_not_there_are_one_line_and_leave_no_folder(words, text, score, tmp_path):
    (tmp_path / "empty").mkdir()
    result = score(*words, "--out", "out")
    assert result.exit_code == 2 and text in result.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_without_ray_the_error_says_how_to_get_it(score, tmp_path, monkeypatch):
    fill(tmp_path / "in", 1)
    monkeypatch.delitem(sys.modules, "dfd.scale.cluster")
    monkeypatch.delattr(dfd, "cluster")
    monkeypatch.setitem(sys.modules, "ray", None)
    result = score("in", "--out", "out")
    assert result.exit_code == 2 and "pip install 'ray[data]' s3fs" in result.stderr.splitlines()[-1]


def test_a_cluster_that_is_not_there_is_one_line(score, tmp_path, monkeypatch):
    def refused(*args, **options):
        raise ConnectionError("Could not find any running Ray instance.\nPlease specify ...")

    fill(tmp_path / "in", 1)
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster.ray, "init", refused)
    result = score("in", "--out", "out", "--address", "auto")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("dfd: no Ray cluster at auto: Could not find any running Ray")


def test_the_threshold_of_a_false_positive_rate_goes_to_the_workers(score, model, tmp_path, monkeypatch):
    fill(tmp_path / "in", 1)
    own = tmp_path / "own"
    own.mkdir()
    for name in CHECKPOINTS.values():
        (own / name).write_bytes((model / name).read_bytes())
    update_checkpoint(own / CHECKPOINTS["stage1"], operating_points={"fpr_1": 0.875})
    given = []
    monkeypatch.setattr(cluster, "joined", lambda *args: pytest.fail("Ray was started"))
    monkeypatch.setattr("dfd.scale.scoring.Parts.begin", lambda self, record, same: given.append(record) or sys.exit(9))
    score("in", "--out", "out", "--model", str(own), "--threshold-fpr", "0.01")
    assert [record["threshold"] for record in given] == [0.875]
