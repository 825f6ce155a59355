"""Finding the files of a data folder, and reading label and split off their folders."""

import glob
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from unicodedata import normalize

from dfd.config import REAL
from dfd.core import TEMPLATES, begins_like_image, digest, io
from dfd.core.runs import PROVENANCE

SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}
SPLITS |= {"test": "test", "testing": "test"}
BY_CLASS = f"{REAL} and one folder per generator"
FOREN_SYNTHS, GEN_IMAGE = ("0_real", "1_fake"), ("nature", "ai")  # folders of the real images and of the fake ones
MARKERS = {
    "CNNDetection / ForenSynths (<generator>/[<class>/]0_real and 1_fake)": FOREN_SYNTHS,
    "GenImage (<generator>/<split>/nature and ai)": GEN_IMAGE,
}
ASIDE, BESIDE = ("readme", "licence", "license"), {"groups.csv", "provenance.csv", "sample.json"}  # beside the classes
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
SUFFIXES += (".avif", ".heic", ".heif")
COPIES = {"__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found"}  # of a system's
NOT_ENTERED, SIDE_FILE, LOOP = "hidden folder, not entered", "side file, no image", "link back to one above it"
UNREADABLE = "unreadable folder"
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
    """List a data folder, links too unless they lead back up, and know its layout; one of none is a ManifestError."""
    if not root.is_dir():
        raise ManifestError(f"{root} is {'no folder' if root.exists() else 'missing'}; {EXPECTED}")
    stamps, folders, refused = _walk(root, ASIDE)
    folders = [parts for parts in folders if printable("/".join(parts)) == "/".join(parts)]
    if "." in refused:
        raise ManifestError(f"{root}: {refused['.']}")
    layout, place = _recognise(root, folders)
    beside = {name for name in stamps if name.lower() in BESIDE and (root / name.lower()).exists()}  # else unread
    placed = []
    for path in sorted(stamps):
        *parts, name = path.split("/")
        if printable(path) != path:
            refused[path] = "name is not valid UTF-8"  # no table or report would hold it
        elif position := place(tuple(parts)):
            placed.append((path, *position))
        elif path not in beside and (parts or not name.lower().startswith(ASIDE)):
            refused[path] = "outside every class folder"
    labels = {position[0] for position in map(place, folders) if position}
    rejected = [{"path": printable(path), "reason": reason} for path, reason in refused.items()]
    return Listing(layout, placed, sorted(labels), rejected, stamps)


def fingerprint(root: Path) -> str:
    """A hash over names, sizes, times and rights of the files that a scan meets, and a provenance table above them."""
    above, files = root.parent / PROVENANCE, _walk(root)[0].items()
    stamps = sorted((name, stamp, os.access(root / name, os.R_OK)) for name, stamp in files)
    return digest(stamps, above.exists() and above.read_bytes())


def printable(name: str) -> str:
    """Write bytes that are not UTF-8 as escapes, so that any text file can hold the name."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def find_images(paths: Iterable[str], suffixes: Parts = SUFFIXES, tell: Callable[[str], None] = print) -> list[str]:
    """The files as given; of a folder, entered as by a scan, all images below it; of a pattern all that it matches.

    An image is known by its suffix, else by how it begins. So that it is named, what should be one and cannot be read
    is given too; of the rest, `tell` gets a line a folder. What gives no image is a FileNotFoundError.
    """
    files: list[str] = []
    for path in [paths] if isinstance(paths, str) else paths:
        matches = [path]
        if "://" in path and not os.path.lexists(path):
            raise FileNotFoundError(f"{path} is an address; save the picture, and give the file")
        if os.path.isdir(path):
            matches, left_out = _images_below(Path(path), suffixes)
            if left_out:
                some = ", ".join(map(repr, map(printable, left_out)))
                tell(io.printable(f"{printable(path)}: {len(left_out)} hidden or no images, left out ({some})"))
        elif glob.has_magic(path) and not os.path.lexists(path):
            names = (name for name in glob.glob(path, recursive=True) if "**" not in path or not os.path.isdir(name))
            matches = find_images(sorted(names), suffixes, tell)
        if not matches:
            raise FileNotFoundError(f"{'no images below' if os.path.isdir(path) else 'no file matches'} {path}")
        files += [f"./{name}" if name[:1] in "=+-@" and name not in "-" else name for name in matches]  # no formula
    return files


def _images_below(root: Path, suffixes: Parts) -> tuple[list[str], list[str]]:
    """The images in a folder, with what should be one and cannot be read, and the names of all else."""
    stamps, _, refused = _walk(root)
    images, others = [], []
    for name, why in sorted({**dict.fromkeys(stamps, ""), **refused}.items()):
        is_image = name.lower().endswith(suffixes) or (not why and begins_like_image(root / name))
        is_given = why.startswith(UNREADABLE) or (is_image and why not in (NOT_ENTERED, SIDE_FILE, LOOP))
        (images if is_given else others).append(name)
    return [os.path.join(root, name) for name in images], others


def _walk(root: Path, aside: Parts = ()) -> tuple[dict[str, tuple[int, int]], list[Parts], dict[str, str]]:
    """Every file with its size and time (ns), every folder but those `aside` at the top, and why some are refused."""
    files, folders, refused, closed = {}, [], {}, []
    for folder, names, rest in os.walk(root, followlinks=True, onerror=closed.append):
        parts = Path(folder).relative_to(root).parts
        for name in rest:
            path, known_as = os.path.join(folder, name), "/".join((*parts, name))
            if name.startswith("._") or name in (".DS_Store", "Thumbs.db", "desktop.ini"):  # they change unasked
                refused[known_as] = SIDE_FILE
                continue
            try:
                info = os.stat(path)
                files[known_as] = info.st_size, info.st_mtime_ns
            except OSError as error:
                refused[known_as] = f"{'broken link' if os.path.islink(path) else 'cannot be read'}: {error.strerror}"
        for name in list(names):
            known_as, target = "/".join((*parts, name)), Path(folder, name).resolve()
            if any(above.resolve().is_relative_to(target) for above in (Path(folder), *Path(folder).parents)):
                refused[known_as] = LOOP
            elif name.startswith(".") or name.lower() in COPIES:
                refused[known_as] = NOT_ENTERED
            elif Path(name).suffix.lower() in SUFFIXES:
                refused[known_as] = "a folder with an image's name, not entered"
            if known_as in refused or (not parts and name.lower().removesuffix("_files").removesuffix("s") in aside):
                names.remove(name)
            else:
                folders.append((*parts, name))
    unread = {Path(error.filename).relative_to(root).as_posix(): error for error in closed}
    return files, folders, {name: f"{UNREADABLE}: {error.strerror}" for name, error in unread.items()} | refused


def _hint(tops: set[str], folders: list[Parts]) -> str:
    """What to rename, or where to point, where a layout is nearly one."""
    if tops == {"0", "1"}:
        return f": rename the folder of the photos, 0 or 1, to {REAL}, and the other one to its generator"
    for top in sorted(tops):
        below = {parts[1].lower() for parts in folders if parts[0] == top and len(parts) > 1}
        if REAL.lower() in below or {"real", "fake"} <= below:
            return f": it is one level too high, give {top} below it"
    squeezed = {re.sub(r"[^a-z]", "", top.lower()): top for top in tops}
    like = [squeezed[name] for name in ("realphotos", "real", "photos", "nature", "original") if name in squeezed]
    return f": rename {like[0]!r} to {REAL}, if it holds the photos" if like else ""


def _recognise(root: Path, folders: list[Parts]) -> tuple[str, Place]:
    """Name the layout and give the function from a file's folders to its label and split."""
    tops = {parts[0] for parts in folders}
    above = {top for top in tops if top.lower() in SPLITS}
    if above and above != tops:
        beside = f"split folders ({', '.join(sorted(above))}) beside others ({', '.join(sorted(tops - above))})"
        raise ManifestError(f"{root} has {beside}; {EXPECTED}")
    depth = 1 if above else 0
    inner = {parts[depth:] for parts in folders if len(parts) > depth}
    names, classes = {part for parts in inner for part in parts}, {parts[0].lower() for parts in inner}
    by_class = REAL.lower() in classes or {"real", "fake"} <= classes
    marked = next((name for name, pair in MARKERS.items() if names.issuperset(pair)), None)
    if (layout := BY_CLASS if by_class else marked) is None:
        seen, hint = ", ".join(sorted(tops)) or "no folders", _hint(tops, folders)
        raise ManifestError(f"{root} has no known layout (no {REAL}){hint}; {EXPECTED}\nfound: {seen}")
    real, fake = ({name} for name in MARKERS.get(layout, FOREN_SYNTHS))
    if by_class:
        real, fake = {*real, REAL.lower(), "real"}, {*fake, "fake"}
    spelt = dict[str, str]()  # a generator that train/ and test/ spell in other cases or Unicode forms is one

    def marks(above: Parts, name: str) -> bool:
        return name.lower() in real | fake or (name in GEN_IMAGE and {(*above, part) for part in GEN_IMAGE} <= inner)

    def place(parts: Parts) -> tuple[str, str | None] | None:
        below = parts[depth:]
        at = next((i for i, part in enumerate(below) if marks(below[:i], part)), None)
        if at is None and not (by_class and below):
            return None
        generator = below[0] if by_class or at else root.name
        split = next((SPLITS[part.lower()] for part in parts[:depth] or below[1:] if part.lower() in SPLITS), None)
        is_real = at is not None and below[at].lower() in real | {GEN_IMAGE[0]}
        return REAL if is_real else spelt.setdefault(normalize("NFC", generator).lower(), generator), split

    return layout + (f", below {', '.join(sorted(tops))}" if depth else ""), place
