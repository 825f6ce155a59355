"""Notebook 04, cell by cell on a small run folder with planted mistakes or none; 03 where there is no stage 2."""

import ast
import shutil

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
from IPython.display import display
from networks import checkpoint

from dfd import config
from dfd.data import manifest
from dfd.evaluate import scores
from dfd.inference import files as files_module


@pytest.fixture
def run_folder(tiny_data, tmp_path):
    """A run folder as notebooks 00 to 02 leave it, but for the training: all images are test and rightly named."""
    table = manifest.scan(tiny_data, tmp_path, progress=False)
    shared = table[["path", "label", "group"]].assign(split="test", degradation="none", level=0.0, crops=1)
    one = shared.assign(logit_real=0.0, logit_fake=np.where(table["is_fake"], 2.0, -2.0))
    one["prediction"] = np.where(table["is_fake"], "fake", "real")
    two = shared[table["is_fake"]].assign(prediction=lambda rows: rows["label"])
    two = two.assign(**{f"logit_{name}": 3.0 * (two["label"] == name) for name in ("BigGAN", "ProGAN")})
    test = table["group"].map({g: i % 3 == 0 for i, g in enumerate(sorted(set(table["group"])))})
    table["split"] = np.where(test, "test", "train")
    manifest.write(table, tmp_path)
    for stage, file in config.CHECKPOINTS.items():
        learnt = checkpoint(stage, crop_size=32) | {"manifest_hash": manifest.digest(table), "coverage": 0.9}
        files_module.save_checkpoint(learnt, tmp_path / file)
    scores.save_scores(one[test], tmp_path, "stage1")
    scores.save_scores(two[test[two.index]], tmp_path, "stage2")
    return tmp_path


def run(folder, data, stem="04_error_analysis", **given):
    """Run the notebook's code cells in one namespace and give it."""
    names = {"display": display}
    for cell in nbformat.read(config.ROOT / "notebooks" / f"{stem}.ipynb", as_version=4).cells:
        if cell.cell_type == "code":
            exec(compile(ast.parse(cell.source), cell.id, "exec"), names)
        if "parameters" in cell.metadata.get("tags", []):
            names |= {"out": str(folder), "data": str(data), "worst": 2, "uncertain": 1} | given
        plt.close("all")
    return names


def test_a_run_without_mistakes_is_told_so(run_folder, tiny_data, capsys):
    run(run_folder, tiny_data)
    said = capsys.readouterr().out
    assert said.count("No mistake on this split.") == 2 and "stage1: 0 of " in said
    for name in ("mistakes", "slices"):
        assert pd.read_csv(run_folder / f"{name}.csv").empty
    assert len(pd.read_csv(run_folder / "suspects.csv")) == 36


@pytest.mark.parametrize("is_known", [False, True])
def test_mistakes_are_exported_with_properties(run_folder, tiny_data, is_known):
    table = scores.load_scores(run_folder, "stage1")
    if is_known:
        both, files = scores.load_scores(run_folder, "stage2"), manifest.load(run_folder)
        table, both, files = (rows.assign(source=rows["label"] + " by hand") for rows in (table, both, files))
        scores.save_scores(both, run_folder, "stage2")
        manifest.write(files, run_folder)
    wrong = table["label"] == "ProGAN"
    scores.save_scores(table.assign(prediction=table["prediction"].mask(wrong, "real")), run_folder, "stage1")
    run(run_folder, tiny_data)
    found = pd.read_csv(run_folder / "mistakes.csv")
    assert sorted(found["path"]) == sorted(table["path"][wrong]) and found["stage"].eq("stage1").all()
    assert found[["brightness", "texture", "sharpness", "confidence", "distance"]].notna().all(axis=None)
    assert not is_known or found["source"].eq("ProGAN by hand").all()


def test_with_one_folder_of_fakes_stage_1_alone_is_tested_and_analysed(run_folder, tiny_data, tmp_path_factory, capsys):
    shutil.copytree(tiny_data, data := tmp_path_factory.mktemp("one") / "data", ignore=lambda *_: ["BigGAN"])
    table = manifest.scan(data, run_folder, progress=False)
    (run_folder / config.CHECKPOINTS["stage2"]).unlink()
    (run_folder / "scores_stage2.parquet").unlink()
    learnt = checkpoint("stage1", crop_size=32) | {"operating_points": {"balanced": 0.5}}
    learnt |= {"manifest_hash": manifest.digest(table)}
    files_module.save_checkpoint(learnt, run_folder / config.CHECKPOINTS["stage1"])
    test = table[table["split"] == "test"]
    one = test[["path", "label", "split", "group"]].assign(degradation="none", level=0.0, crops=1, prediction="real")
    one = one.assign(logit_real=0.0, logit_fake=np.where(test["is_fake"], -1.0, -2.0))
    scores.save_scores(one, run_folder, "stage1")

    found = run(run_folder, data, "03_robustness", conditions=["jpeg 75", "blur 1"], removal_steps=1)["found"]
    assert set(found["stage"]) == {"stage1"} and found["condition"].nunique() == 3
    assert {"sweep_jpeg_stage1.csv", "removal.csv"} <= {path.name for path in run_folder.glob("*.csv")}
    assert not list(run_folder.glob("*stage2*"))
    run(run_folder, data)
    wrong = pd.read_csv(run_folder / "mistakes.csv")
    assert set(wrong["label"]) == {"ProGAN"} and set(wrong["stage"]) == {"stage1"}
    assert capsys.readouterr().out.count("all fakes are of one generator") == 2


def test_a_network_that_was_trained_and_not_measured_is_not_analysed(run_folder, tiny_data):
    path = run_folder / config.CHECKPOINTS["stage2"]
    files_module.update_checkpoint(path, coverage=None)  # as `train` leaves it: scores are of the one before
    with pytest.raises(ValueError, match="trained, but not measured: run notebooks 01 and 02 first"):
        run(run_folder, tiny_data)
