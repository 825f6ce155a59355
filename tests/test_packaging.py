"""What is imported is declared, and the files that describe the environment agree."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

from dfd import config

PROJECT = tomllib.loads((config.ROOT / "pyproject.toml").read_text())["project"]
UNIMPORTED = {  # declared for what they do, not for an import
    "jupyterlab",  # make lab
    "nbdime",  # make diff-setup
    "ipykernel",  # started by dfd.reports.runner
    "scikit-image",  # its photos
    "seaborn",
    "ipywidgets",
    "pyarrow",  # pandas' parquet
}


def names(requirements):
    return {re.match(r"[\w.-]+", text).group().lower().replace("_", "-") for text in requirements}


def imported(sources):
    """Top-level modules that some source code imports."""
    found = set()
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"dfd", "tests", "benchmarks"}


def distributions(modules):
    known = packages_distributions()
    return {module: {name.lower().replace("_", "-") for name in known.get(module, [module])} for module in modules}


def cells(folder):
    for path in sorted(folder.glob("*.ipynb")):
        for cell in json.loads(path.read_text())["cells"]:
            if cell["cell_type"] == "code":
                yield "".join(cell["source"])


def texts(folder):
    return [path.read_text() for path in sorted(Path(folder).rglob("*.py"))]


def test_every_import_of_the_package_and_the_notebooks_is_declared():
    modules = imported([*texts(config.ROOT / "dfd"), *cells(config.ROOT / "notebooks")])
    extras = PROJECT["optional-dependencies"]
    declared = names(PROJECT["dependencies"]).union(*(names(extras[name]) for name in extras if name != "dev"))
    assert {module: found for module, found in distributions(modules).items() if not found & declared} == {}


def test_the_tests_have_what_the_extra_has():
    assert set(PROJECT["optional-dependencies"]["scale"]) <= set(PROJECT["optional-dependencies"]["dev"])


def test_every_import_of_tests_and_benchmarks_is_declared():
    siblings = {path.stem for path in (config.ROOT / "tests").glob("*.py")}
    modules = imported([*texts(config.ROOT / "tests"), *texts(config.ROOT / "benchmarks")]) - siblings
    declared = names(PROJECT["dependencies"]) | names(PROJECT["optional-dependencies"]["dev"])
    assert {module: found for module, found in distributions(modules).items() if not found & declared} == {}


def test_nothing_is_declared_in_vain():
    modules = imported([*texts(config.ROOT / "dfd"), *cells(config.ROOT / "notebooks")])
    used = set().union(*distributions(modules).values())
    assert names(PROJECT["dependencies"]) - used - UNIMPORTED == set()


def test_conda_adds_only_python_to_what_pyproject_says():
    environment = yaml.safe_load((config.ROOT / "environment.yml").read_text())
    assert environment["name"] == PROJECT["name"]
    assert environment["dependencies"] == [f"python{PROJECT['requires-python']}", "pip", {"pip": ["-e .[dev]"]}]


def test_every_dependency_has_a_lower_bound_and_no_other():
    for text in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]:
        assert re.fullmatch(r"[\w.-]+(\[\w+\])?>=[\d.]+", text)


@pytest.mark.parametrize(("name", "version"), [("torch", (2, 11)), ("torchvision", (0, 26)), ("timm", (1, 0, 99))])
def test_lower_bounds_admit_the_versions_in_use(name, version):
    (bound,) = (text.split(">=")[1] for text in PROJECT["dependencies"] if text.startswith(f"{name}>="))
    assert tuple(map(int, bound.split("."))) <= version


def test_make_lists_every_target():
    listed = subprocess.run(
        ["make", "--no-print-directory"], cwd=config.ROOT, capture_output=True, text=True, check=True
    ).stdout
    targets = re.search(r"^\.PHONY: (.+)$", (config.ROOT / "Makefile").read_text(), re.MULTILINE).group(1).split()
    assert [line.split()[1] for line in listed.splitlines()] == targets
    assert {"demo", "test", "lab", "report", "lint", "bench", "clean"} <= set(targets)


def test_ci_runs_lint_and_test():
    script = config.ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK) and "make lint test" in script.read_text()
