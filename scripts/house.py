"""How large `dfd` is, room by room, and whether it keeps to its bounds.

    python scripts/house.py            # the table
    python scripts/house.py --check    # also end with 1 beyond a bound, as `make lint` does

A circle is a set of modules each of which imports, directly or through others, every other one. Imports inside
functions and under TYPE_CHECKING count.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections import Counter
from pathlib import Path

import grimp
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

ROOT = Path(__file__).resolve().parents[1]
LINES = 10_000  # of Python in dfd, blank lines and docstrings too; the rebuild left 8,474 in 61 files
FILES = 72
LINES_A_FILE = 300
AT_THE_ROOT = {"__init__.py", "__main__.py", "cli.py", "config.py", "losses.py"}


def count_lines(package: Path) -> dict[Path, int]:
    """The lines of each Python file, by its path relative to the package."""
    return {
        path.relative_to(package): len(path.read_text(encoding="utf-8").splitlines())
        for path in sorted(package.rglob("*.py"))
    }


def import_circles(package: Path) -> list[list[str]]:
    """The sets of modules that import one another, each sorted, the largest first."""
    sys.path.insert(0, str(package.parent))
    graph = grimp.build_graph(package.name, exclude_type_checking_imports=False, cache_dir=None)
    sys.path.pop(0)
    modules = sorted(graph.modules)
    position = {name: number for number, name in enumerate(modules)}
    imports = [
        (position[name], position[imported])
        for name in modules
        for imported in graph.find_modules_directly_imported_by(name)
    ]
    rows, columns = zip(*imports, strict=True) if imports else ((), ())
    matrix = csr_array(([1] * len(rows), (rows, columns)), shape=(len(modules), len(modules)))
    _, circle_of = connected_components(matrix, directed=True, connection="strong")
    sizes = Counter(circle_of.tolist())
    circles = [
        [name for name in modules if circle_of[position[name]] == number] for number, size in sizes.items() if size > 1
    ]
    return sorted(circles, key=len, reverse=True)


def problems(package: Path, lines: dict[Path, int], circles: list[list[str]]) -> list[str]:
    """What goes beyond a bound, one sentence each."""
    sentences = []
    if sum(lines.values()) > LINES:
        sentences.append(f"{sum(lines.values()):,} lines; at most {LINES:,}")
    if len(lines) > FILES:
        sentences.append(f"{len(lines)} files; at most {FILES}")
    for path, count in lines.items():
        if count > LINES_A_FILE:
            sentences.append(f"{path} has {count} lines; at most {LINES_A_FILE}")
        if len(path.parts) == 1 and path.name not in AT_THE_ROOT:
            sentences.append(f"{path} stands at the root; it belongs in a room")
    for room in sorted({path.parts[0] for path in lines if len(path.parts) > 1}):
        init = package / room / "__init__.py"
        if not init.exists() or not ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))):
            sentences.append(f"{room}/__init__.py does not say what lives there")
    for circle in circles:
        sentences.append(f"{len(circle)} modules import one another in a circle: {', '.join(circle)}")
    return sentences


def table(lines: dict[Path, int], circles: list[list[str]]) -> str:
    """The rooms with their files, lines and longest file, and the sums."""
    rooms: dict[str, dict[Path, int]] = {}
    for path, count in lines.items():
        rooms.setdefault(path.parts[0] if len(path.parts) > 1 else "(root)", {})[path] = count
    rows = [("room", "files", "lines", "longest file")]
    for name, files in [*rooms.items(), ("all", lines)]:
        longest = max(files, key=files.__getitem__)
        rows.append((name, str(len(files)), f"{sum(files.values()):,}", f"{longest} ({files[longest]})"))
    text = [f"{name:<11}{files:>6}{count:>8}  {longest}" for name, files, count, longest in rows]
    modules = sum(len(circle) for circle in circles)
    return "\n".join([*text, "", f"circles: {len(circles)}" + (f", of {modules} modules" if circles else "")])


def main() -> None:
    parser = argparse.ArgumentParser(description="How large dfd is, room by room, and whether it keeps to its bounds.")
    parser.add_argument("--check", action="store_true", help="end with 1 beyond a bound")
    parser.add_argument("--package", type=Path, default=ROOT / "dfd", help="the folder to measure")
    options = parser.parse_args()
    package = options.package.resolve()
    lines, circles = count_lines(package), import_circles(package)
    print(table(lines, circles))
    sentences = problems(package, lines, circles) if options.check else []
    for sentence in sentences:
        print(f"beyond the bounds: {sentence}", file=sys.stderr)
    raise SystemExit(1 if sentences else 0)


if __name__ == "__main__":
    main()
