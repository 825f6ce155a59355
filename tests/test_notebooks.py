"""The notebooks: thin, clean, their parameters equal to the configs', and the whole chain runs."""

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pandas as pd
import papermill
import pytest
import torch
from nbformat.v4 import new_code_cell, new_notebook
from networks import content

from dfd import config
from dfd.data import manifest, sample
from dfd.inference import Stage, detector, save_checkpoint
from dfd.reports import runner

NOTEBOOKS = sorted((config.ROOT / "notebooks").glob("*.ipynb"))
OUTPUTS = (
    "best_real_fake_model.pt", "best_gfd2_model.pt", "cm_val.png", "cm_test.png", "sweep_jpeg_stage2.csv",
    "sweep_jpeg_stage1.csv", "robustness.csv", "val_report.txt", "test_report.txt", "mistakes.csv", "slices.csv",
    "suspects.csv", "manifest.parquet", "manifest.csv", "rejected.csv", "scores_stage1.parquet",
    "scores_stage2.parquet", "metrics.json", "config.json", "environment.json", "index.html",
)  # fmt: skip


def cells(path, kind):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def test_every_notebook_has_a_config_and_the_other_way_round():
    assert [path.stem for path in NOTEBOOKS] == list(config.NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_parameters_cell_equals_the_defaults(path):
    (cell,) = [cell for cell in cells(path, "code") if "parameters" in cell.metadata.get("tags", [])]
    written = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(cell.source).body}
    defaults = {name: field.default for name, field in config.NOTEBOOKS[path.stem].model_fields.items()}
    defaults = {name: list(value) if isinstance(value, tuple) else value for name, value in defaults.items()}
    assert written == {name: defaults[name] for name in written} and {"data", "out", "seed"} <= set(written)
    assert {name: type(value) for name, value in written.items()} == {name: type(defaults[name]) for name in written}
    assert len(written) <= 10 and (len(written) == 10 or written.keys() == defaults.keys())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_cell_takes_the_name_of_a_parameter(path):
    """The cell that reads the parameters may be run again, then with what the other cells have left."""
    code = [cell for cell in cells(path, "code") if "parameters" not in cell.metadata.get("tags", [])]
    nodes = [node for cell in code for node in ast.walk(ast.parse(cell.source))]
    bound = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    assert not bound & config.NOTEBOOKS[path.stem].model_fields.keys()


@pytest.mark.parametrize("path", NOTEBOOKS[1:5], ids=lambda path: path.stem)
def test_files_that_are_not_as_scanned_are_refused(path, tiny_data, tmp_path):
    """03 alone kept what it measured on others for that of the images that were scanned."""
    shutil.copytree(tiny_data, tmp_path / "data")
    manifest.scan(tmp_path / "data", tmp_path / "run", progress=False)
    shutil.copy(tmp_path / "data" / "ProGAN" / "00.png", tmp_path / "data" / "ProGAN" / "01.png")
    parameters, *rest = cells(path, "code")
    names = {}
    exec(parameters.source, names)
    names |= {"data": str(tmp_path / "data"), "out": str(tmp_path / "run")}
    (load,) = [number for number, cell in enumerate(rest) if "manifest.load(" in cell.source]
    with pytest.raises(ValueError, match=r"1 files are not as scanned, such as ProGAN/01.png; run notebook 00 first"):
        for cell in rest[: load + 1]:
            exec(cell.source, names)


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_numbers_of_another_training_are_not_given_to_a_checkpoint(stage, tmp_path):
    """A notebook that stayed open in JupyterLab while `run` trained anew would do so."""
    name, path = config.CHECKPOINTS[stage], NOTEBOOKS[1 if stage == "stage1" else 2]
    save_checkpoint(content(stage), tmp_path / name)
    save_checkpoint(content(stage, key="another"), tmp_path / f"other_{name}")
    (cell,) = [cell for cell in cells(path, "code") if "metrics.save_metrics(" in cell.source]
    cfg = SimpleNamespace(out=str(tmp_path), seed=0)
    names = {
        "Stage": Stage,
        "Path": Path,
        "config": config,
        "cfg": cfg,
        "stage": Stage.load(tmp_path / f"other_{name}"),
    }
    with pytest.raises(ValueError, match="another training took the place"):
        exec(cell.source, names)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_tell_and_dfd_does(path):
    for cell in cells(path, "code"):
        assert len(cell.source.splitlines()) <= 15 or "parameters" in cell.metadata.get("tags", [])
        assert not cell.outputs and cell.execution_count is None
        tree = ast.parse(cell.source)  # a magic would not parse
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        assert "sys.path" not in cell.source
    texts = [cell.source for cell in cells(path, "markdown")]
    assert texts[0].splitlines()[0].endswith("?") and "Reads" in texts[0] and "Writes" in texts[0]
    assert "Learnt" in texts[-1] and "Not shown" in texts[-1]
    before, after = texts[0].rpartition("Before:")[2].split("After:")
    for text in (before, after):  # which notebook comes there, as links that are there
        stems = re.findall(r"\[`(\w+)`\]\(\1\.ipynb\)", text)
        assert stems and path.stem not in stems and set(stems) <= config.NOTEBOOKS.keys()


@pytest.mark.slow
def test_the_whole_chain_runs_and_leaves_every_output(tiny_data, tmp_path, monkeypatch):
    """All notebooks on 36 small images, then predict: every promised file is there and agrees with the others."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    small = {
        "01.backbone": "test_resnet.r160_in1k", "02.backbone": "test_efficientnet.r160_in1k", "pretrained": False,
        "num_epochs": 1, "images_per_epoch": 32, "crop_size": 32, "crops": 2, "unet_width": 4, "workers": 0,
        "batch_size": 8, "conditions": ["jpeg 90", "jpeg 50", "blur 1 + jpeg 75"], "removal_steps": 2, "examples": 2,
        "worst": 3, "uncertain": 1,
    }  # fmt: skip
    index = runner.run(data=str(tiny_data), out=str(tmp_path / "run"), profile="demo", parameters=small)
    out = index.parent
    assert [name for name in OUTPUTS if not (out / name).exists()] == []
    assert all((out / f"{path.stem}.html").exists() for path in NOTEBOOKS if path.stem != config.GUIDE)

    metrics = json.loads((out / "metrics.json").read_text())
    for stage, name in (("stage1", "auc"), ("stage2", "accuracy")):
        found = metrics[stage]["test"][name]
        assert set(found) == {"value", "low", "high"} and 0 <= found["value"] <= 1
    assert {"value", "low", "high"} <= set(metrics["audit"])
    table = pd.read_parquet(out / "manifest.parquet")
    scores = pd.read_parquet(out / "scores_stage1.parquet")
    test = scores[(scores["split"] == "test") & (scores["degradation"] == "jpeg")]
    assert test.groupby("level").size().tolist() == [int((table["split"] == "test").sum())] * 2
    assert scores.groupby("split").size().keys().tolist() == ["test", "val"]
    sweep = pd.read_csv(out / "sweep_jpeg_stage2.csv")
    assert sweep["quality"].fillna(0).tolist() == [0, 90, 50] and {"accuracy", "accuracy_low"} <= set(sweep)
    swept = pd.read_parquet(out / "scores_stage2.parquet").query("split == 'test'")
    shares = (swept["label"] == swept["prediction"]).groupby([swept["degradation"], swept["level"]]).mean()
    rows = [("none", 0), ("jpeg", 90), ("jpeg", 50)]
    assert sweep["accuracy"].tolist() == pytest.approx([shares[row] for row in rows])
    assert sweep["images"].tolist() == [int(swept["degradation"].eq("none").sum())] * 3

    found = pd.read_csv(out / "robustness.csv")
    assert found["condition"].unique().tolist() == ["as it is", "jpeg 90", "jpeg 50", "blur 1 + jpeg 75"]
    assert metrics["robustness"]["conditions"] == 4 and isinstance(metrics["robustness"]["named"], list)

    verdict = next(detector.Detector.load(out).predict([tiny_data / table["path"][0]]))
    assert verdict.error is None and set(verdict.p_source) == {"BigGAN", "ProGAN"}
    assert torch.load(out / "best_gfd2_model.pt", weights_only=True)["temperature"] != 1.0

    others = table["split"].map({"train": "test", "val": "train", "test": "val"})  # test images that stages learnt from
    loaded = manifest.load(out, str(tiny_data))
    manifest.write(loaded.assign(split=others), out)
    for stem in ("01_stage1_real_fake", "02_stage2_attribution", "03_robustness", "04_error_analysis"):
        names = {"data": str(tiny_data), "out": str(out), "display": print}
        with pytest.raises(ValueError, match="other images or splits than those of now: run (notebooks? 01|the train)"):
            for cell in cells(config.ROOT / "notebooks" / f"{stem}.ipynb", "code")[1:]:
                if stem[:2] != "01" or "train.fit(" not in cell.source:  # its training was passed over
                    exec(cell.source, names)


@pytest.mark.slow
def test_the_guide_goes_from_a_folder_to_a_case(tiny_data, tmp_path, monkeypatch):
    """Notebook 06 alone, by papermill as its reader would: two runs, their difference, and a case that verifies."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    small = {"backbone": "test_efficientnet.r160_in1k", "pretrained": False, "num_epochs": 1, "images_per_epoch": 16,
             "crop_size": 32, "crops": 1, "workers": 0, "batch_size": 8, "examples": 1, "track": "none"}  # fmt: skip
    (tmp_path / "notebooks").mkdir()  # where JupyterLab runs it, and what names folders from the one above
    shutil.copy(config.ROOT / "notebooks" / "00_eda.ipynb", tmp_path / "notebooks")
    given = {"data": os.path.relpath(tiny_data, tmp_path), "out": "own/", "settings": small, "notebooks": ["00", "01"],
             "images": 2}  # fmt: skip
    book = papermill.execute_notebook(
        config.ROOT / "notebooks" / f"{config.GUIDE}.ipynb", tmp_path / "guide.ipynb", given,
        cwd=tmp_path / "notebooks", kernel_name="python3", progress_bar=False)  # fmt: skip
    runs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("own", "own-changed")]
    first, second = (run["notebooks"]["01_stage1_real_fake"]["parameters"] for run in runs)
    assert {name for name in first if first[name] != second[name]} == {"out", "degrade"}
    assert second["degrade"] is False
    text = "\n".join(str(output) for cell in book.cells for output in cell.get("outputs", []))
    assert "every file is as it was made" in text and "difference" in text and "No source is known" in text
    verdicts = pd.read_csv(tmp_path / "own-case" / "verdicts.csv")
    assert len(verdicts) == 2 and verdicts["error"].isna().all()
    has_printer = importlib.util.find_spec("playwright") and shutil.which("chromium")
    assert not has_printer or (tmp_path / "own-case" / "case.pdf").exists()


@pytest.fixture(scope="module")
def checkout(tiny_data, tmp_path_factory):
    """A copy of the project with small built-in data, in which a notebook may run as it is."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("dfd", "notebooks", "configs"):
        shutil.copytree(config.ROOT / name, folder / name)
    shutil.copytree(tiny_data, folder / "data" / "sample")
    (folder / "data" / "sample" / sample.MARKER).write_text("{}")
    (folder / "configs" / "own.yaml").write_text("eda:\n  examples: 3\nrobustness:\n  crops: 3\n")
    (folder / "made").mkdir()
    return folder


def execute(checkout, place, *words):
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *words]
    return subprocess.run(command, cwd=checkout / place, env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "words"),
    [
        (".", ("papermill", "-f", "configs/own.yaml", "notebooks/00_eda.ipynb", "made/00_eda.ipynb")),
        ("notebooks", ("nbconvert", "--execute", "--to", "html", "00_eda.ipynb", "--output-dir", "../made")),
    ],
)
def test_papermill_and_nbconvert_run_a_notebook_from_either_folder(place, words, checkout):
    shutil.rmtree(checkout / "reports", ignore_errors=True)
    ran = execute(checkout, place, *words)
    assert ran.returncode == 0, ran.stderr
    assert (checkout / "reports" / "demo" / "manifest.parquet").exists()
    notes = json.loads((checkout / "reports" / "demo" / "metrics.json").read_text())["notes"]
    assert notes == [sample.NOTE]  # else `predict` would take its networks for such as learnt real fakes
    if place == ".":
        cells = nbformat.read(checkout / "made" / "00_eda.ipynb", as_version=4).cells
        every = (str(output) for cell in cells for output in cell.get("outputs", []))
        assert any("examples=3," in shown for shown in every)  # of the profile, and no more of it


@pytest.mark.slow
def test_kernels_import_the_code_of_the_command(checkout):
    """A copy of the project beside an installed one: else its notebooks would run the other's code without a word."""
    book = checkout / "notebooks" / "07_where.ipynb"
    parameters = new_code_cell("seed = 0", metadata={"tags": ["parameters"]})
    nbformat.write(new_notebook(cells=[parameters, new_code_cell("import dfd; print(dfd.__file__)")]), book)
    command = [sys.executable, "-m", "dfd", "run", "07", "--out", "made/where"]
    ran = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    book.unlink()
    assert ran.returncode == 0, ran.stderr
    assert f"{checkout / 'dfd' / '__init__.py'}" in (checkout / "made" / "where" / "07_where.ipynb").read_text("utf-8")


@pytest.mark.slow
def test_papermill_takes_no_misspelt_name(checkout):
    words = ("papermill", "-f", "configs/quick.yaml", "notebooks/03_robustness.ipynb", "made/03.ipynb")
    ran = execute(checkout, ".", *words, "-p", "crop", "2")
    assert ran.returncode != 0 and "unknown parameter 'crop'; did you mean 'crops'?" in ran.stderr
