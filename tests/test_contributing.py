"""What docs/contributing says is done to a copy of this checkout, block by block; then the page's commands run there.

A line that ends in a colon says what is to be done with the block below it; PLACES has the forms. In a form, A is how a
line of the file begins, whatever its indent; exactly one line may begin so.
"""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import nbformat
import pytest

from dfd import config

PAGES = config.ROOT / "docs" / "contributing"
COPIED = "dfd configs notebooks tests docs scripts data/simulators data/detector data/README.md pyproject.toml".split()
FILE, BEGINS = r"`(?P<file>[^`]+)`", r"the line that begins with (?P<ticks>`+) ?(?P<anchor>.+?) ?(?P=ticks)"
PLACES = {
    "new": rf"New file {FILE}:",
    "end": rf"At the end of {FILE}:",
    "before": rf"In {FILE}, before {BEGINS}:",
    "after": rf"In {FILE}, after {BEGINS}:",
    "instead": rf"In {FILE}, instead of {BEGINS}:",
    "cell": rf"In {FILE}, in a new cell after the one with `(?P<anchor>[^`]+)`:",
    "run": "Run:",
    "prints": "The first prints .+:",
    "shown": "It looks like this:",  # nothing is done with it
}
RUNNER = """
import contextlib, io, json, runpy, sys
answers = []
for words in json.load(sys.stdin):
    out, status = io.StringIO(), 0
    with contextlib.redirect_stdout(out):
        try:
            if words[0] == "-m":
                sys.argv = words[1:]
                runpy.run_module(words[1], run_name="__main__", alter_sys=True)
            elif words[0] != "-c":
                sys.argv = words
                runpy.run_path(words[0], run_name="__main__")
            else:
                sys.argv = ["-c", *words[2:]]
                exec(compile(words[1], "<command>", "exec"), {"__name__": "__main__"})
        except SystemExit as end:
            status = int(end.code or 0)
        except Exception as error:
            import traceback
            out.write(traceback.format_exc())
            status = 1
    answers.append([status, out.getvalue()])
json.dump(answers, sys.stdout)
"""  # all commands of a page in one process, for importing torch takes longer than most of them


class Block(NamedTuple):
    """A code block of a page, and what is done with it."""

    where: str  # page and line
    action: str  # a key of PLACES
    file: str
    anchor: str
    text: str


def blocks(page: str, source: str) -> list[Block]:
    """The code blocks of a page; one without a line that says what is done with it is an AssertionError."""
    found, before = [], ""
    for number, part in enumerate(re.split(r"(?m)^```.*\n", source)):  # text and code take turns
        if number % 2:
            where = f"docs/contributing/{page}.md, line {source[: source.index(part)].count(chr(10)) + 1}"
            paragraph = " ".join(before.strip().split("\n\n")[-1].split())
            places = {action: re.search(rf"(?:^|[.:] ){form}$", paragraph) for action, form in PLACES.items()}
            action = next((action for action, place in places.items() if place), None)
            assert action, f"{where}: nothing says what is done with the block; above it is {paragraph!r}"
            place = places[action].groupdict()
            found.append(Block(where, action, place.get("file", ""), place.get("anchor", ""), part))
        before = part
    return found


def of_page(page: str) -> list[Block]:
    return blocks(page, (PAGES / f"{page}.md").read_text("utf-8"))


def paste(block: Block, root: Path) -> None:
    """Do to a file below root what a block asks for."""
    path = root / block.file
    if block.action == "new":
        assert not path.exists(), f"{block.where}: {block.file} is there already"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text, "utf-8")
        return
    assert path.is_file(), f"{block.where}: there is no {block.file}"
    if block.action == "cell":
        notebook = nbformat.read(path, as_version=4)
        places = [i for i, cell in enumerate(notebook.cells) if block.anchor in cell.source]
        assert len(places) == 1, f"{block.where}: {len(places)} cells of {block.file} have {block.anchor!r}, not 1"
        notebook.cells.insert(places[0] + 1, nbformat.v4.new_code_cell(block.text.rstrip("\n"), id="pasted"))
        nbformat.write(notebook, path)
        return
    lines = path.read_text("utf-8").splitlines(keepends=True)
    if block.action == "end":
        path.write_text("".join([*lines, *gap(block, path), block.text]), "utf-8")
        return
    places = [i for i, line in enumerate(lines) if line.lstrip().startswith(block.anchor)]
    text = f"{block.where}: {len(places)} lines of {block.file} begin with {block.anchor!r}, not 1"
    assert len(places) == 1, text
    start, end = {"before": (0, 0), "after": (1, 1), "instead": (0, 1)}[block.action]
    lines[places[0] + start : places[0] + end] = [block.text, *(gap(block, path) if block.action == "before" else ())]
    path.write_text("".join(lines), "utf-8")


def gap(block: Block, path: Path) -> list[str]:
    """The two blank lines that part a function or a class of Python from its neighbour."""
    return ["\n\n"] if path.suffix == ".py" and re.match(r"(def|class|@)", block.text) else []


def follow(checks: dict[str, str], root: Path) -> dict[str, list[str]]:
    """Do what pages say to a checkout, then run the commands of each, and our check of it; what they printed."""
    commands, expected = [], {}
    for page, check in checks.items():
        for block in of_page(page):
            if block.action == "run":
                commands += [(page, *shlex.split(line)) for line in block.text.splitlines()]
            elif block.action == "prints":
                expected[page] = block.text
            elif block.action != "shown":
                paste(block, root)
        commands.append((page, "python", "-c", check))
    assert all(words[1] == "python" for words in commands)
    printed = {page: [] for page in checks}
    for words, (status, text) in zip(commands, run([words[2:] for words in commands], root), strict=True):
        assert status == 0, f"{shlex.join(words)} ended with {status}:\n{text}"
        assert "pytest" not in words or " passed" in text
        printed[words[0]].append(text)
    assert {page: printed[page][0] for page in expected} == expected
    assert all(" passed" in "".join(texts) for texts in printed.values())
    changed = [str(path) for path in root.rglob("*.py") if path.stat().st_mtime_ns > started(root)]
    for style in (["check"], ["format", "--check"]):
        ran = subprocess.run([sys.executable, "-m", "ruff", *style, *changed], cwd=root, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout + ran.stderr
    return printed


def run(commands: list[list[str]], root: Path) -> list[tuple[int, str]]:
    """Exit status and output of commands of Python, one after another in a new process of the copy."""
    environment = os.environ | {"PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONUTF8": "1", "PYTEST_ADDOPTS": "-W ignore::pytest.PytestAssertRewriteWarning"}
    ran = subprocess.run([sys.executable, "-c", RUNNER], input=json.dumps(commands), cwd=root, env=environment,
                         capture_output=True, encoding="utf-8")  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def started(root: Path) -> int:
    return (root / ".copied").stat().st_mtime_ns


@pytest.fixture
def checkout(tmp_path):
    """A copy of what a page changes and what its commands need."""
    root = tmp_path / "checkout"
    for name in COPIED:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if (config.ROOT / name).is_dir():
            shutil.copytree(config.ROOT / name, root / name, ignore=shutil.ignore_patterns("pictures"))
        else:
            shutil.copy2(config.ROOT / name, root / name)
    (root / ".copied").touch()
    return root


@pytest.mark.parametrize("page", [path.stem for path in PAGES.glob("*.md")])
def test_each_block_of_a_page_finds_its_place_and_leaves_code_that_parses(page, checkout):
    for block in of_page(page):
        if block.file:
            paste(block, checkout)
            if block.file.endswith(".py"):
                ast.parse((checkout / block.file).read_text("utf-8"), block.file)


def test_a_place_that_is_gone_and_a_block_without_one_are_named(tmp_path):
    (tmp_path / "file.py").write_text("first = 1\nfirst = 2\n", "utf-8")
    for anchor, count in (("second", 0), ("first", 2)):
        (block,) = blocks(
            "page", f"Words.\n\nIn `file.py`, after the line that begins with `{anchor}`:\n\n```\nx\n```\n"
        )
        with pytest.raises(AssertionError, match=rf"page.md, line 6: {count} lines of file.py begin with '{anchor}'"):
            paste(block, tmp_path)
    with pytest.raises(AssertionError, match="nothing says what is done with the block; above it is 'Paste this:'"):
        blocks("page", "In `file.py`, somewhere.\n\nPaste this:\n\n```\nx\n```\n")


CHECKS = {  # of what each page adds; DATA is a folder of images, SHOWN the block that the page of figures shows
    "degradation": """  # takes single white pixels off a decoded JPEG, and the grid's grammar knows it
import io, torch
from PIL import Image
from dfd.degrade import DEGRADATIONS, compose, parse, to_tensor
Image.new("RGB", (64, 48), (90, 120, 60)).save(file := io.BytesIO(), "JPEG", quality=95)
image = to_tensor(Image.open(file))
salted = image.clone()
salted[..., ::6, ::6] = 1
assert (salted - image).abs().max() > 0.5
for radius in (1, 2):
    assert (compose(salted, parse(f"median {radius}").chain) - image).abs().max() == 0
assert list(DEGRADATIONS).index("median") == list(DEGRADATIONS).index("rescale") - 1
""",
    "metric": """  # stands in metrics.json for both splits, with its interval, and has its words in the reports
import sys
sys.path.insert(0, "tests")
import numpy as np, pandas as pd
from score_tables import noisy_table
from dfd.core.io import read_json
from dfd.evaluate import metrics
from pathlib import Path
table = pd.concat([noisy_table(seed=i).assign(split=split) for i, split in enumerate(("val", "test"))])
metrics.save_metrics(".", "stage1", metrics.measure(table, temperature=1.5))
written = read_json(Path("metrics.json"))["stage1"]
for split, rows in table.groupby("split"):
    p = 1 / (1 + np.exp(-rows["logit_fake"] / 1.5))
    expected = ((p - (rows["label"] != "RealPhotos")) ** 2).mean()
    found = written[split]["brier"]
    assert abs(found["value"] - expected) < 1e-9 and found["low"] < expected < found["high"], found
assert metrics.METRICS["brier"].label == "Brier score" and not metrics.METRICS["brier"].higher_is_better
""",
    "figure": """  # the snippet of the page draws a run's scores, and the report has the figure's text
import sys
sys.path.insert(0, "tests")
import matplotlib
matplotlib.use("Agg")
from pathlib import Path
import nbformat
from score_tables import noisy_table
from dfd import plots
from dfd.reports import html
Path("reports/demo").mkdir(parents=True)
noisy_table().to_parquet("reports/demo/scores_stage1.parquet")
SHOWN
from PIL import Image
picture = Image.open("logits.png").convert("RGB")
assert len(set(picture.getdata())) > 10
cell = nbformat.v4.new_code_cell("plots.plot_logits(table);", metadata={"section": "Results"})
assert html.describe(cell, 1).startswith("Results: Histograms of stage 1's logits"), html.describe(cell, 1)
""",
    "backbone": """  # a training of one epoch leaves a checkpoint that opens, scores and explains
import sys
sys.path.insert(0, "tests")
import torch
from trainings import configured
from dfd import config
from dfd.analysis import explain
from dfd.data import manifest
from dfd.inference import Stage
from dfd.inference.stage import extract_features
from dfd.train import fit
table = manifest.scan(DATA, "out", progress=False)
fit(table, configured("stage1", "out", DATA, backbone="bayar", num_epochs=1, adversarial=False))
stage = Stage.load(f"out/{config.CHECKPOINTS['stage1']}")
crops = torch.rand(2, 3, 32, 32)
assert extract_features(stage, crops).shape == (2, 64)
assert explain.grad_cam(stage, crops, "fake").shape == (2, 32, 32)
""",
    "generator": """  # its folder is a class; the simulated one trains, is opened again and has the stated size
import torch
from dfd.data import manifest, sample
from dfd.models import simulators
table = manifest.load("reports/mine")
assert set(table["label"]) == {"RealPhotos", "MyGAN"} and (table["is_fake"] == (table["label"] == "MyGAN")).all()
first = table[table["path"].isin(["RealPhotos/0001.png", "MyGAN/0001.png"])]
assert len(first) == 2 and first["group"].nunique() == 1 and first["split"].nunique() == 1
model = simulators.load("DCGAN", "build/simulators")
assert model(torch.rand(1, 3, 16, 20)).shape == (1, 3, 16, 20) and "DCGAN" in sample.LABELS
sizes = [sum(weight.numel() for weight in part.parameters()) for part in (model.decoder, model.encoder)]
text = " + ".join(f"{size:,}".replace(",", " ") for size in sizes)
(row,) = [row for row in open("data/simulators/README.md", encoding="utf-8") if "DCGAN.safetensors" in row]
assert text in row, text
""",
}


@pytest.mark.slow
def test_all_pages_can_be_followed_and_what_they_add_works(checkout, tiny_data):
    """All of them in one copy: importing torch takes longer than most of their commands."""
    for number, path in enumerate(sorted((tiny_data / "RealPhotos").iterdir()), 1):
        for label, source in (("RealPhotos", path), ("MyGAN", tiny_data / "BigGAN" / path.name)):
            target = checkout / "data" / "mine" / label / f"{number:04}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    shutil.copytree(tiny_data / "RealPhotos", checkout / "photos")
    (shown,) = [block.text for block in of_page("figure") if block.action == "shown"]
    assert set(CHECKS) == {path.stem for path in PAGES.glob("*.md")}
    given = {"DATA": repr(str(tiny_data)), "SHOWN": shown}
    checks = {page: re.sub("DATA|SHOWN", lambda found: given[found[0]], check) for page, check in CHECKS.items()}
    of_generator = follow(checks, checkout)["generator"]
    assert "MyGAN" in of_generator[0] and "DCGAN" in of_generator[1]
