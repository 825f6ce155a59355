"""What is imported is declared, and the files that describe the environment agree."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from importlib.metadata import packages_distributions
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_notebook, new_output
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from dfd import __version__, config

PROJECT = tomllib.loads((config.ROOT / "pyproject.toml").read_text())["project"]
UNIMPORTED = {  # declared for what they do, not for an import
    "jupyterlab",  # make lab
    "pip",  # run by dfd.models.clip
    "nbdime",  # make diff-setup
    "ipykernel",  # started by dfd.reports.runner
    "scikit-image",  # its photos
    "seaborn",
    "ipywidgets",
    "pyarrow",  # pandas' parquet
    "tensorboard",  # accelerate's tracker
}


EXTRAS = PROJECT["optional-dependencies"]
OURS = re.compile(r"dfd\[([\w,]+)\]")  # an extra that brings others


def names(requirements):
    found = set()
    for text in requirements:
        if ours := OURS.fullmatch(text):
            found |= set().union(*(names(EXTRAS[extra]) for extra in ours.group(1).split(",")))
        else:
            found.add(re.match(r"[\w.-]+", text).group().lower().replace("_", "-"))
    return found


def imported(sources):
    """Top-level modules that some source code imports."""
    modules = set()
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules.add(node.module.split(".")[0])
    return modules - set(sys.stdlib_module_names) - {"dfd", "tests", "benchmarks"}


def distributions(modules):
    known = {"griffe": ["griffelib"]} | packages_distributions()  # of the extra docs, which need not be installed
    return {module: {name.lower().replace("_", "-") for name in known.get(module, [module])} for module in modules}


def undeclared(modules, declared):
    """The modules that come from none of the declared distributions."""
    return {module for module, names in distributions(modules).items() if not names & declared}


def cells(folder):
    for path in sorted(folder.glob("*.ipynb")):
        for cell in json.loads(path.read_text())["cells"]:
            if cell["cell_type"] == "code":
                yield "".join(cell["source"])


def texts(folder):
    return [path.read_text() for path in sorted(Path(folder).rglob("*.py"))]


def test_every_import_of_the_package_and_the_notebooks_is_declared():
    modules = imported([*texts(config.ROOT / "dfd"), *cells(config.ROOT / "notebooks")])
    declared = names(PROJECT["dependencies"]).union(*(names(EXTRAS[name]) for name in EXTRAS if name != "dev"))
    assert undeclared(modules, declared) == set()


def test_the_tests_have_what_the_extras_have():
    assert set().union(*(names(EXTRAS[name]) for name in ("notebooks", "app", "scale", "mlflow", "onnx"))) < names(
        EXTRAS["dev"]
    )


JUPYTER = sorted({module.replace("-", "_") for module in names(EXTRAS["notebooks"])} - {"jupyterlab"} | {"IPython"})
WITHOUT = f"import sys; sys.modules.update(dict.fromkeys({JUPYTER + ['ray', 'voila', 'onnxruntime']}))\n"


def without_extras(*arguments, cwd):
    """`dfd` where no extra is installed."""
    script = f"{WITHOUT}from dfd.cli import main; main({list(map(str, arguments))!r})"
    environment = os.environ | {"PYTHONPATH": str(config.ROOT)}
    return subprocess.run([sys.executable, "-c", script], cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_the_core_scans_trains_and_judges_without_an_extra(tiny_data, tmp_path):
    small = {"backbone": "test_efficientnet.r160_in1k", "crop_size": 32, "num_epochs": 1, "batch_size": 8,
             "images_per_epoch": 8, "pretrained": "false", "workers": 0, "track": "none"}  # fmt: skip
    settings = [text for name, value in small.items() for text in ("-p", name, value)]
    for command in (["scan", tiny_data], ["train", "stage1", "--data", tiny_data, "--out", "run", *settings]):
        ran = without_extras(*command, cwd=tmp_path)
        assert ran.returncode == 0, ran.stderr
    image = next(Path(tiny_data).glob("RealPhotos/*"))
    ran = without_extras("predict", "--model", "run", "--case", "case", image, cwd=tmp_path)
    assert ran.returncode == 0 and (tmp_path / "case" / "index.html").exists(), ran.stderr


@pytest.mark.parametrize(
    ("command", "extra"), [("run", "notebooks"), ("notebooks", "notebooks"), ("score in --out out", "scale")]
)
def test_what_needs_an_extra_says_which(command, extra, tmp_path):
    ran = without_extras(*command.split(), cwd=tmp_path)
    assert ran.returncode == 2 and ran.stderr.splitlines()[-1].endswith(f"pip install 'dfd[{extra}]'"), ran.stderr
    assert "Traceback" not in ran.stderr


def test_every_import_of_tests_benchmarks_and_scripts_is_declared():
    folders = [config.ROOT / name for name in ("tests", "benchmarks", "scripts")]
    siblings = {path.stem for folder in folders for path in folder.rglob("*.py")} | {"helpers"}
    modules = imported(text for folder in folders for text in texts(folder)) - siblings
    declared = names(PROJECT["dependencies"]) | names(EXTRAS["dev"]) | names(EXTRAS["docs"])
    assert undeclared(modules, declared) == set()


def test_nothing_is_declared_in_vain():
    modules = imported([*texts(config.ROOT / "dfd"), *cells(config.ROOT / "notebooks")])
    used = set().union(*distributions(modules).values())
    assert names(PROJECT["dependencies"]) - used - UNIMPORTED == set()


def test_conda_adds_only_python_to_what_pyproject_says():
    environment = yaml.safe_load((config.ROOT / "environment.yml").read_text())
    assert environment["name"] == PROJECT["name"]
    assert environment["dependencies"] == [
        f"python{PROJECT['requires-python']}",
        "pip",
        {"pip": ["--constraint constraints.txt", "-e .[dev]"]},
    ]


PINS = dict(re.findall(r"^([\w.-]+)==(\S+)$", (config.ROOT / "constraints.txt").read_text(), re.MULTILINE))


def needed(requirements):
    """The names of what these requirements install on this machine, with all that those need, by what is installed."""
    waiting, found = [(Requirement(text), "") for text in requirements], set()
    while waiting:
        requirement, extra = waiting.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        for wanted in ["", *requirement.extras]:
            if (name, wanted) not in found:
                found.add((name, wanted))
                waiting += [(Requirement(text), wanted) for text in metadata.requires(name) or []]
    return {name for name, _ in found}


def test_no_version_is_pinned_that_is_kept_out_on_purpose():
    """That of c2pa-python is one without a wheel for Windows."""
    tools = tomllib.loads((config.ROOT / "pyproject.toml").read_text("utf-8"))["tool"]
    rules = map(Requirement, tools["uv"]["constraint-dependencies"])
    names = {rule.name for rule in rules if rule.specifier.contains(PINS[rule.name])}
    assert names == {"jsonschema", "c2pa-python"}


def test_what_the_environments_install_is_pinned():
    environment = yaml.safe_load((config.ROOT / "environment.yml").read_text())["dependencies"][-1]["pip"]
    assert environment == ["--constraint constraints.txt", "-e .[dev]"]
    assert needed(["dfd[dev]"]) - set(PINS) == {"dfd"}
    declared = [text for text in [*PROJECT["dependencies"], *sum(EXTRAS.values(), [])] if not OURS.fullmatch(text)]
    for requirement in map(Requirement, declared):
        assert requirement.specifier.contains(PINS[canonicalize_name(requirement.name)]), requirement


def test_the_image_copies_what_is_there_and_runs_without_rights():
    lines = (config.ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    copied = [name for step, rest in steps if step == "COPY" for name in rest.split()[:-1]]
    kept = (config.ROOT / ".dockerignore").read_text().splitlines()
    assert all((config.ROOT / name).exists() and f"!{name}" in kept for name in copied)
    assert {"dfd", "notebooks", "configs", "data/simulators", "data/detector", "constraints.txt"} <= set(copied)
    (user,) = (rest for step, rest in steps if step == "USER")
    assert user not in ("root", "0")
    (volumes,) = (json.loads(rest) for step, rest in steps if step == "VOLUME")
    assert volumes == ["/work/data", "/work/reports"]
    (entry,) = (json.loads(rest) for step, rest in steps if step == "ENTRYPOINT")
    assert entry[0] in PROJECT["scripts"]


def test_every_dependency_has_a_lower_bound_and_no_other():
    for text in [*PROJECT["dependencies"], *(text for extra in EXTRAS.values() for text in extra)]:
        assert OURS.fullmatch(text) or re.fullmatch(r"[\w.-]+(\[\w+\])?>=[\d.]+", text)


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
    assert os.access(script, os.X_OK) and "make lint\n" in script.read_text() and "make test" in script.read_text()


def test_the_workflow_runs_what_ci_runs_on_each_python_and_may_only_read():
    workflow = yaml.safe_load((config.ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8"))
    assert set(workflow[True]) == {"push", "pull_request"}  # YAML takes `on` for true
    assert workflow["permissions"] == {"contents": "read"} and workflow["concurrency"]["cancel-in-progress"] is True
    jobs = workflow["jobs"]
    assert all(job["timeout-minutes"] <= 180 for job in jobs.values())
    steps = {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs.items()}
    assert ".ci/run" in steps["linux"] and (config.ROOT / ".ci" / "run").exists()
    low, high = (int(text) for text in re.findall(r"3\.(\d+)", PROJECT["requires-python"]))
    assert jobs["linux"]["strategy"]["matrix"]["python"] == [f"3.{minor}" for minor in range(low, high)]
    assert jobs["others"]["strategy"]["matrix"]["os"] == ["macos-latest", "windows-latest"]
    assert steps["others"] == [
        'python -m pip install -c constraints.txt -e ".[dev]"',
        'python -m pytest -m "not slow" -n 2',
    ]
    versions = [
        step["with"]["python-version"] for step in jobs["others"]["steps"] if "python-version" in step.get("with", {})
    ]
    assert versions == [f"3.{high - 1}"]


def test_files_that_name_the_version_agree():
    citation = yaml.safe_load((config.ROOT / "CITATION.cff").read_text())
    latest = re.search(r"^## (\S+)", (config.ROOT / "CHANGELOG.md").read_text(), re.MULTILINE).group(1)
    assert citation["version"] == latest == __version__


def test_the_commit_hook_runs_what_make_lint_runs():
    (repository,) = yaml.safe_load((config.ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [(hook["entry"], hook["language"]) for hook in repository["hooks"]] == [("make lint", "system")]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of this checkout, built without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, config.ROOT]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


def test_a_wheel_carries_notebooks_profiles_templates_and_simulators_and_nothing_else(wheel):
    inside = {name.removeprefix("dfd/") for name in zipfile.ZipFile(wheel).namelist() if name.startswith("dfd/")}
    folders = {"notebooks": "*.ipynb", "configs": "*.yaml", "data/simulators": "*.safetensors", "data/detector": "*"}
    carried = [path for name, pattern in folders.items() for path in (config.ROOT / name).glob(pattern)]
    expected = {str(path.relative_to(config.ROOT)) for path in carried}
    package = config.ROOT / "dfd"
    expected |= {
        str(path.relative_to(package))
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and ".ipynb_checkpoints" not in path.parts
    }
    assert inside == expected
    assert {"notebooks/00_eda.ipynb", "data/simulators/ProGAN.safetensors", "templates/style.css"} <= inside


@pytest.mark.slow
def test_an_installed_wheel_finds_what_it_carries(wheel, tmp_path):
    target = tmp_path / "elsewhere"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target, wheel]
    subprocess.run(install, check=True, capture_output=True)
    script = (
        "from dfd import config\n"
        "from dfd.models import simulators\n"
        "assert all((config.ROOT / 'notebooks' / f'{stem}.ipynb').exists() for stem in config.NOTEBOOKS)\n"
        "assert all((simulators.WEIGHTS / f'{name}.safetensors').exists() for name in simulators.NAMES)\n"
        "print(config.__file__)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert Path(ran.stdout.strip()).is_relative_to(target)


def test_make_clean_takes_reports_and_nothing_that_is_linked_there(tmp_path):
    (tmp_path / "precious" / "deep").mkdir(parents=True)
    (tmp_path / "precious" / "deep" / "thesis.txt").write_text("years")
    (tmp_path / "reports" / "old run" / "cells").mkdir(parents=True)
    (tmp_path / "reports" / "README.md").write_text("stays")
    (tmp_path / "reports" / "from them").symlink_to(tmp_path / "precious")
    subprocess.run(
        ["make", "-s", "-f", config.ROOT / "Makefile", "clean"], cwd=tmp_path, check=True, capture_output=True
    )
    assert (tmp_path / "precious" / "deep" / "thesis.txt").exists()
    assert sorted(path.name for path in (tmp_path / "reports").iterdir()) == ["README.md", "from them"]


def test_make_report_takes_any_folder(tmp_path):
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\nprintf "[%s]" "$@"\n')
    fake.chmod(0o755)
    command = ["make", "-s", "report", f"PY={fake}", "DATA=it's here #1"]
    rest = {
        name: value for name, value in os.environ.items() if name not in ("DATA", "OUT", "PROFILE", "ARGS", "MAKEFLAGS")
    }
    printed = subprocess.run(command, cwd=config.ROOT, capture_output=True, text=True, check=True, env=rest).stdout
    assert printed == "[-m][dfd][run][--data][it's here #1][--out][reports/it's here #1][--profile][quick]"


def test_nbdiff_shows_what_changed_between_two_executed_notebooks_and_nothing_else(tmp_path):
    """Times, counts and papermill's records differ in any two; the checkout's nbdime_config.json leaves them out."""
    for name, number, printed in (("a", 1, "0.9"), ("b", 2, "0.9"), ("c", 1, "0.8")):
        cell = new_code_cell(
            "x", outputs=[new_output("execute_result", {"text/plain": printed}, execution_count=number)]
        )
        cell.metadata = {"papermill": {"duration": number}, "execution": {"iopub.execute_input": str(number)}}
        cell.update(id=f"cell-{name}", execution_count=number)
        book = new_notebook(cells=[cell], metadata={"papermill": {"duration": number}})
        nbformat.write(book, tmp_path / f"{name}.ipynb")
    differ = [Path(sys.executable).with_name("nbdiff"), "--no-color"]
    for other, shown in (("b", False), ("c", True)):
        command = [*differ, tmp_path / "a.ipynb", tmp_path / f"{other}.ipynb"]
        printed = subprocess.run(command, cwd=config.ROOT, capture_output=True, text=True, check=True).stdout
        assert bool(printed.strip()) == shown == ("0.8" in printed) and "papermill" not in printed, printed
