"""The README is short, links lead somewhere, each room has its page of modules, and commands do what is said."""

import json
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
import tomllib

import click
import networks
import pytest
from click.testing import CliRunner
from PIL import Image

from dfd import cli, config
from dfd.data import sample
from dfd.inference.files import save_checkpoint

PATTERNS = ("*.md", "docs/**/*.md", "data/*.md", "reports/*.md")
PAGES = [path for pattern in PATTERNS for path in config.ROOT.glob(pattern)]
ARCHITECTURE = (config.ROOT / "docs" / "architecture.md").read_text("utf-8")


def test_the_readme_has_at_most_8_kilobytes():
    assert (config.ROOT / "README.md").stat().st_size <= 8_192


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(config.ROOT)))
def test_links_lead_to_files_that_are_there(page):
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    paths = [target for target in targets if not re.match(r"[a-z]+:", target)]
    assert [path for path in paths if not (page.parent / path).exists()] == []


def test_each_room_has_a_page_of_modules():
    package = config.ROOT / "dfd"
    rooms = {path.parent.name for path in package.glob("*/__init__.py")} | {"config", "losses"}
    pages = {page.stem: page.read_text() for page in (config.ROOT / "docs" / "api").glob("*.md")}
    assert {name for name in pages if name != "index"} == rooms
    assert all(f"::: dfd.{room}\n" in pages[room] and f"({room}.md)" in pages["index"] for room in rooms)
    navigation = (config.ROOT / "mkdocs.yml").read_text()
    assert all(f"api/{name}.md" in navigation for name in pages)


def test_the_walks_name_what_exists():
    """Every dotted name in the two walks of docs/architecture.md can be imported; they pass eight rooms at most."""
    walks = [part.partition("\n## ")[0] for part in ARCHITECTURE.split("\n## From ")[1:]]
    assert len(walks) == 2
    for walk in walks:
        names = re.findall(r"`(dfd(?:\.\w+)+)`", walk)
        assert len(names) > 10
        for name in names:
            pkgutil.resolve_name(name)
        rooms = {name.split(".")[1] for name in names} - {"cli", "losses"}
        assert len(rooms) <= 8, rooms


BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
README, TUTORIAL = config.ROOT / "README.md", config.ROOT / "docs" / "tutorial.md"


def commands(page):
    """The lines of a page's code blocks that are commands, without comments, as words."""
    blocks = [code for language, code in BLOCK.findall(page.read_text("utf-8")) if not language]
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def parsed(words):
    """The context of `dfd COMMAND …` as click reads it; an option that is not there is an error."""
    name, *rest = words
    return cli.main.commands[name].make_context(name, rest, resilient_parsing=False)


@pytest.mark.parametrize("page", [README, *(config.ROOT / "docs").glob("*.md"), config.ROOT / "data" / "README.md",
                                  config.ROOT / "reports" / "README.md"], ids=lambda page: page.name)  # fmt: skip
def test_commands_have_the_options_that_a_page_gives_them(page, tmp_path, monkeypatch):
    """What an argument names need not be there; all else is as click, make and pip have it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(click.Path, "convert", lambda self, value, param, ctx: value)
    targets = re.search(r"^\.PHONY: (.+)$", (config.ROOT / "Makefile").read_text(), re.MULTILINE).group(1).split()
    for words in commands(page):
        words = words[2:] if words[:2] == ["python", "-m"] else words
        if words[0] == "dfd":
            parsed(words[1:])
        elif words[0] == "make":
            assert words[1] in targets, words
        elif words[0] == "python":
            assert (config.ROOT / words[1]).exists(), words


SMALL = {"01.backbone": "test_resnet.r160_in1k", "02.backbone": "test_efficientnet.r160_in1k", "pretrained": "false",
         "num_epochs": "1", "images_per_epoch": "16", "crop_size": "32", "crops": "1", "unet_width": "4",
         "workers": "0", "batch_size": "8", "track": "none", "examples": "1"}  # fmt: skip
FEW = ("astronaut", "coffee", "brick", "camera", "chelsea", "china")
MASKED = re.compile(r"\d+")


def same(text):
    """A printed line but for its numbers and spaces."""
    return " ".join(MASKED.sub("N", text).split())


@pytest.mark.slow
@pytest.mark.printed
def test_the_tutorial_can_be_copied_and_pasted(tmp_path, monkeypatch):
    """Every block in order in an empty folder; only photos are fewer, and networks tiny. Outputs are as printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sample, "PHOTOS", [photo for photo in sample.PHOTOS if photo.name in FEW])
    output, ran = "", []
    for language, code in BLOCK.findall(TUTORIAL.read_text("utf-8")):
        if language == "python":
            exec(code, {})
        elif language == "text":
            printed = {same(line) for line in output.splitlines()}
            assert [line for line in code.splitlines() if same(line) not in printed] == []
        for line in code.splitlines() if not language else ():
            program, *words = shlex.split(line)
            if program == "papermill":
                names = {name.removeprefix("01."): value for name, value in SMALL.items()}
                extra = [["-p", name, value] for name, value in names.items() if name in config.Stage1.model_fields]
                words = [sys.executable, "-m", "papermill", *words, *sum(extra, [])]
                subprocess.run(words, check=True, capture_output=True)
            elif program != "dfd":
                subprocess.run(line, shell=True, check=True)
            elif words[0] == "predict" and "--model" not in words:
                parsed(words)  # the detector that ships may need the network
            else:
                extra = [text for name, value in SMALL.items() for text in ("-p", name, value)]
                words = [word for word in words if word != "02"]  # stage 2 takes as long as all else here
                asked = ["run", *extra, *words[1:]] if words[0] == "run" else words
                answer = CliRunner().invoke(cli.main, asked, catch_exceptions=False)
                assert answer.exit_code == 0, f"{line}\n{answer.output}"
                output = answer.output
            ran.append(program if program != "dfd" else words[0])
    assert {"scan", "run", "compare", "notebooks", "papermill", "predict", "verify"} <= set(ran)
    assert (tmp_path / "reports/mine/index.html").exists() and (tmp_path / "cases/mine/index.html").exists()
    assert (tmp_path / "reports/mine-rgb/again.ipynb").exists()


@pytest.mark.slow
@pytest.mark.printed
def test_the_commands_of_the_readme_do_what_they_say(tiny_data, tmp_path, monkeypatch):
    """Every block but `make`, in order; an untrained detector stands in for what ships, and networks are tiny."""
    monkeypatch.chdir(tmp_path)
    for stage, name in config.CHECKPOINTS.items():
        (tmp_path / "untrained").mkdir(exist_ok=True)
        save_checkpoint(networks.checkpoint(stage), tmp_path / "untrained" / name)
    photo = next((tiny_data / "RealPhotos").iterdir())
    for name in ("photo.jpg", "more/one.jpg", "some/image.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.open(photo).save(tmp_path / name)
    for language, code in BLOCK.findall(README.read_text("utf-8")):
        if language == "python":
            exec(code.replace("Detector.load()", "Detector.load('reports/mine')"), {})
        for line in code.splitlines() if not language and not code.startswith("make") else ():
            words = shlex.split(line, comments=True)
            if words[0] == "mkdir":
                subprocess.run(["bash", "-c", line], check=True)
                for label in ("RealPhotos", "ProGAN", "StyleGAN2"):
                    source = tiny_data / label.replace("StyleGAN2", "BigGAN")
                    shutil.copytree(source, f"data/mine/{label}", dirs_exist_ok=True)
                continue
            assert words[:3] == ["python", "-m", "dfd"], line
            name, *words = words[3:]
            if name == "predict" and "--model" not in words:
                words += ["--model", "untrained"]
            if name == "run":
                words += ["00", "01", *(text for name, value in SMALL.items() for text in ("-p", name, value))]
            answer = CliRunner().invoke(cli.main, [name, *words], catch_exceptions=False)
            assert answer.exit_code == 0, f"{line}\n{answer.output}"
    assert (tmp_path / "reports/mine/index.html").exists() and (tmp_path / "cases/mine/case.json").exists()


def test_the_rooms_and_layers_on_paper_are_those_that_lint_holds():
    rooms = {path.parent.name for path in (config.ROOT / "dfd").glob("*/__init__.py")} | {"config", "losses", "cli"}
    rows = re.findall(r"(?m)^\| (`\w+`(?:, `\w+`)*) \|", ARCHITECTURE.partition("## From ")[0])
    assert sorted(name for row in rows for name in re.findall(r"`(\w+)`", row)) == sorted(rooms)
    (contract,) = tomllib.loads((config.ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    layers = " > ".join(contract["layers"]).replace("__main__ : cli", "cli")
    assert f"\n{layers}\n" in ARCHITECTURE


def test_files_between_notebooks_are_those_that_the_notebooks_name():
    """What the table says of a notebook stands in its first cell."""
    rows = re.findall(r"(?m)^\| `(\d\d_\w+)` \| (.+) \|$", ARCHITECTURE)
    assert [stem for stem, _ in rows] == list(config.NOTEBOOKS)
    for stem, files in rows:
        cells = json.loads((config.ROOT / "notebooks" / f"{stem}.ipynb").read_text("utf-8"))["cells"]
        told = "".join(cells[0]["source"])
        assert [name for name in re.findall(r"`([^`]+)`", files) if f"`{name}`" not in told] == []


def test_every_page_is_in_the_navigation():
    navigation = (config.ROOT / "mkdocs.yml").read_text("utf-8")
    pages = [path.relative_to(config.ROOT / "docs").as_posix() for path in (config.ROOT / "docs").rglob("*.md")]
    assert [page for page in pages if f" {page}\n" not in navigation] == []
