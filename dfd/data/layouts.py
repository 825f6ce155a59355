"""Finding the files of a data folder, and reading label and split off their folders."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dfd.config import REAL
from dfd.core.io import TEMPLATES

SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}
SPLITS |= {"test": "test", "testing": "test"}
BY_CLASS = f"{REAL} and one folder per generator"
MARKERS = {  # layout -> (folder of the real images, folder of the fake ones)
    "CNNDetection / ForenSynths (<generator>/[<class>/]0_real and 1_fake)": ("0_real", "1_fake"),
    "GenImage (<generator>/<split>/nature and ai)": ("nature", "ai"),
}
ASIDE = ("groups.csv", "provenance.csv", "sample.json", "readme", "licen")  # starts of names beside the class folders
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
EXPECTED = (TEMPLATES / "layouts.txt").read_text("utf-8").rstrip()
Parts = tuple[str, ...]  # of a path
Place = Callable[[Parts], tuple[str, str | None] | None]  # folders -> label and split, or None outside every class


class ManifestError(ValueError):
    """A data folder that cannot be used; the text says why and what would be right."""


@dataclass
class Listing:
    """What lies in a data folder, before any file is opened."""

    layout: str  # one line for people
    files: list[tuple[str, str, str | None]]  # path, label, split that the folders give
    labels: list[str]  # every class folder, empty ones included
    rejected: list[dict[str, str]]  # path and reason
    stamps: dict[str, tuple[int, int]]  # size and time (ns) by path: a file that has changed is known by them


def find(root: Path) -> Listing:
    """List a data folder and recognise its layout; one that has none is a ManifestError.

    Links are followed, unless they lead back up. Names that are not UTF-8 are rejected: no table or report holds them.
    """
    if not root.is_dir():
        raise ManifestError(f"{root} is {'no folder' if root.exists() else 'missing'}; {EXPECTED}")
    files, folders, rejected = _walk(root)
    if rejected and rejected[0]["path"] == ".":
        raise ManifestError(f"{root}: {rejected[0]['reason']}")
    if not files and not folders:
        raise ManifestError(f"{root} is empty; {EXPECTED}")
    layout, place = _recognise(root, folders)
    placed = []
    for path in sorted(files):
        *parts, name = path.split("/")
        if position := place(tuple(parts)):
            placed.append((path, *position))
        elif parts or not name.lower().startswith(ASIDE):
            rejected.append({"path": path, "reason": "outside every class folder"})
    labels = {position[0] for position in map(place, folders) if position}
    return Listing(layout, placed, sorted(labels), rejected, files)


def printable(name: str) -> str:
    """Write bytes that are not UTF-8 as escapes, so that any text file can hold the name."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def find_images(paths: Iterable[str], suffixes: Iterable[str] = SUFFIXES) -> list[str]:
    """The files as given; of a folder all images below it, by name; of a pattern all that it matches.

    A folder without an image, or a pattern that matches nothing, is a FileNotFoundError.
    """
    files: list[str] = []
    for path in paths:
        matches, reason = [path], "no file matches"
        if os.path.isdir(path):
            below, reason = sorted(_files_below(path)), "no images below"
            matches = [name for name in below if name.lower().endswith(tuple(suffixes))]
        elif glob.has_magic(path) and not os.path.lexists(path):
            names = sorted(glob.glob(path, recursive=True))
            matches = find_images((name for name in names if not (os.path.isdir(name) and "**" in path)), suffixes)
        if not matches:
            raise FileNotFoundError(f"{reason} {path}")
        files += matches
    return files


def _files_below(folder: str) -> Iterator[str]:
    """All files below a folder, broken links too; links are followed, unless they lead back up."""
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if not os.path.isdir(path):
            yield path
        elif not Path(folder).resolve().is_relative_to(Path(path).resolve()):
            yield from _files_below(path)


def _walk(root: Path) -> tuple[dict[str, tuple[int, int]], list[Parts], list[dict[str, str]]]:
    """List every file, with its stamp, and every folder below root; what cannot be entered becomes a row."""
    files, folders, rejected = {}, [], []

    def reject(parts: Parts, reason: str) -> None:
        rejected.append({"path": printable("/".join(parts)) or ".", "reason": reason})

    stack: list[tuple[Parts, Path, list[os.stat_result]]] = [((), root, [root.stat()])]
    while stack:
        parts, folder, above = stack.pop()
        try:
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            reject(parts, f"unreadable folder: {error.strerror}")
            continue
        for entry in entries:
            here = (*parts, entry.name)
            try:
                info = entry.stat()
            except OSError as error:
                reject(here, f"{'broken link' if entry.is_symlink() else 'cannot be read'}: {error.strerror}")
                continue
            if printable(entry.name) != entry.name:
                reject(here, "name is not valid UTF-8")
            elif not stat.S_ISDIR(info.st_mode):
                files["/".join(here)] = info.st_size, info.st_mtime_ns
            elif any(os.path.samestat(info, folder) for folder in above):
                reject(here, "link back to a folder above it")
            elif entry.name.startswith(".") or entry.name == "__MACOSX":
                reject(here, "hidden folder, not entered")
            elif Path(entry.name).suffix.lower() in SUFFIXES:
                reject(here, "a folder with an image's name, not entered")
            elif parts or not entry.name.lower().startswith(ASIDE):
                folders.append(here)
                stack.append((here, Path(entry.path), [*above, info]))
    return files, folders, rejected


def _recognise(root: Path, folders: list[Parts]) -> tuple[str, Place]:
    """Name the layout and give the function from a file's folders to its label and split."""
    tops = {parts[0] for parts in folders}
    above = {top for top in tops if top.lower() in SPLITS}
    if above and above != tops:
        beside = f"split folders ({', '.join(sorted(above))}) beside others ({', '.join(sorted(tops - above))})"
        raise ManifestError(f"{root} has {beside}; {EXPECTED}")
    depth = 1 if above else 0
    inner = [parts[depth:] for parts in folders if len(parts) > depth]
    names = {part for parts in inner for part in parts}
    by_class = any(parts[0].lower() == REAL.lower() for parts in inner)
    layout = BY_CLASS if by_class else next((name for name, pair in MARKERS.items() if names.issuperset(pair)), None)
    if layout is None:
        seen = ", ".join(sorted(tops)) or "files without folders"
        raise ManifestError(f"{root} has no known layout (no {REAL}); {EXPECTED}\nfound: {seen}")
    real, fake = MARKERS.get(layout, (REAL, ""))

    def place(parts: Parts) -> tuple[str, str | None] | None:
        below = parts[depth:]
        at = next((i for i, part in enumerate(below) if by_class or part in (real, fake)), None)
        if at is None:
            return None
        generator = below[0] if by_class or at else root.name
        splits = [SPLITS[part.lower()] for part in parts[:depth] or below[1:at] if part.lower() in SPLITS]
        return REAL if below[at].lower() == real.lower() else generator, splits[0] if splits else None

    return layout + (f", below {', '.join(sorted(tops))}" if depth else ""), place
