"""The README is short, links lead somewhere, and each room has its page of modules."""

import json
import pkgutil
import re
import tomllib

import pytest

from dfd import config

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
