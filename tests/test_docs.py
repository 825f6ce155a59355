"""The README is short, links lead somewhere, and each room has its page of modules."""

import pkgutil
import re

import pytest

from dfd import config

PATTERNS = ("*.md", "docs/**/*.md", "data/*.md", "reports/*.md")
PAGES = [path for pattern in PATTERNS for path in config.ROOT.glob(pattern)]


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
    """Every dotted name in the two walks of docs/method.md can be imported, and they pass eight rooms at most."""
    text = (config.ROOT / "docs/method.md").read_text("utf-8")
    walks = text.split("\n## From ")[-2:]
    for walk in walks:
        names = re.findall(r"`(dfd(?:\.\w+)+)`", walk)
        assert len(names) > 10
        for name in names:
            pkgutil.resolve_name(name)
        rooms = {name.split(".")[1] for name in names} - {"cli", "losses"}
        assert len(rooms) <= 8, rooms
