"""scripts/house.py finds each way in which a package leaves its bounds."""

import house
import pytest


@pytest.fixture
def package(tmp_path):
    """A package of two rooms within all bounds."""
    folder = tmp_path / "a_small_house"
    for room in ("upper", "lower"):
        (folder / room).mkdir(parents=True)
        (folder / room / "__init__.py").write_text('"""A room."""\n')
    (folder / "__init__.py").touch()
    (folder / "cli.py").write_text(f"from {folder.name}.upper import one\n")
    (folder / "upper" / "one.py").write_text(f"from {folder.name}.lower import two\n")
    (folder / "lower" / "two.py").write_text("import os\n")
    return folder


def problems(package):
    return house.problems(package, house.count_lines(package), house.import_circles(package))


def test_a_package_within_its_bounds_has_no_problem(package):
    assert problems(package) == []


@pytest.mark.parametrize(
    "indirect", ["def later():\n    {}\n", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    {}\n"]
)
def test_imports_in_functions_and_for_types_close_a_circle(package, indirect):
    statement = f"from {package.name} import cli"
    (package / "lower" / "two.py").write_text(f"{indirect}\n    {statement}\n")
    names = [f"{package.name}.{name}" for name in ("cli", "lower.two", "upper.one")]
    assert house.import_circles(package) == [names]
    assert problems(package) == [f"3 modules import one another in a circle: {', '.join(names)}"]


def test_long_files_loose_modules_and_silent_rooms_are_named(package):
    (package / "upper" / "one.py").write_text("pass\n" * (house.LINES_A_FILE + 1))
    (package / "loose.py").touch()
    (package / "lower" / "__init__.py").write_text("import os\n")
    assert problems(package) == [
        "loose.py stands at the root; it belongs in a room",
        "upper/one.py has 301 lines; at most 300",
        "lower/__init__.py does not say what lives there",
    ]


def test_the_sums_have_bounds_too(package, monkeypatch):
    monkeypatch.setattr(house, "LINES", 4)
    monkeypatch.setattr(house, "FILES", 5)
    assert problems(package) == ["5 lines; at most 4", "6 files; at most 5"]


def test_the_table_adds_up(package):
    assert house.table(house.count_lines(package), []).splitlines()[1:] == [
        "(root)          2       1  cli.py (1)",
        "lower           2       2  lower/__init__.py (1)",
        "upper           2       2  upper/__init__.py (1)",
        "all             6       5  cli.py (1)",
        "",
        "circles: 0",
    ]
