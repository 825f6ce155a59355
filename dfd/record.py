"""What is kept of a run beside its reports: what it was made from and what it was made with."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from dfd import __version__, config
from dfd.atomic import whole

PACKAGES = "torch torchvision timm numpy pandas scikit-learn scikit-image pillow imagehash papermill nbconvert".split()

PROVENANCE = "provenance.csv"  # in the data folder or the one above it; see dfd.provenance


def environment() -> dict[str, Any]:
    """The content of a run folder's environment.json but for the manifest's hash; what cannot be told is None."""
    return {
        "dfd": __version__,
        "commit": commit(config.ROOT),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device(),
        "cpus": os.cpu_count(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def commit(folder: Path) -> str | None:
    """The short hash that git has checked out, with a `+` where files differ from it; None outside a repository."""
    try:
        command = ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def device() -> str:
    """The name of the GPU that torch would use, or `cpu`."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def manifest_digest(out: Path) -> str | None:
    """The hash of the run folder's manifest, or None before there is one."""
    if not (out / "manifest.parquet").exists():
        return None
    from dfd import manifest

    return manifest.digest(manifest.load(out))


def fingerprint(folder: Path) -> str:
    """A hash over the names, sizes and times of all files below a folder, and of a provenance table above it."""
    found, seen = [], set()
    with contextlib.suppress(OSError):  # there is none
        status = os.stat(folder.parent / PROVENANCE)
        found.append(("..", status.st_size, status.st_mtime_ns))
    for base, folders, names in os.walk(folder, followlinks=True):  # as the scan does; each folder once
        folders[:] = [name for name in folders if os.path.realpath(os.path.join(base, name)) not in seen]
        seen.update(os.path.realpath(os.path.join(base, name)) for name in folders)
        for name in names:
            with contextlib.suppress(OSError):  # a broken link
                status = os.stat(os.path.join(base, name))
                found.append((os.path.relpath(os.path.join(base, name), folder), status.st_size, status.st_mtime_ns))
    return hashlib.sha256(repr(sorted(found)).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def code_of(notebook: Path) -> str:
    """A hash over a notebook's cells and the package's own code."""
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    digest = hashlib.sha256(repr([cell["source"] for cell in cells]).encode())
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return f"{__version__}+{digest.hexdigest()[:12]}"


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file; empty when there is none."""
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def write_json(path: Path, content: Any) -> None:
    """Write plain values as JSON; see write_text."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, text: str) -> Path:
    """Write a text file whole or not at all; see atomic.whole."""
    with whole(path) as draft:
        draft.write_text(text, "utf-8")
    return path
