"""What an image file says of itself, without a look at its pixels: size, format, JPEG tables, EXIF, credentials.

All of it can be forged by anybody, but for verified credentials. No network of this project sees it.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image

from dfd import credentials
from dfd.credentials import Credentials, plain
from dfd.images import FORMATS, jpeg_quality, open_file, subsampling

MOST = 60  # tags of a file that are listed
SKIPPED = ("MakerNote", "UserComment", "PrintImageMatching")  # long and binary
SUB_TABLES = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)
NO_FILE = Credentials("none", "There is no file to look into: the image came as pixels.")


@dataclass(frozen=True)
class Facts:
    """What is known of one file; None where it does not apply or cannot be told. All text is one printable line."""

    width: int | None = None  # as stored, before EXIF turns it
    height: int | None = None
    mode: str | None = None  # Pillow's: RGB, L, CMYK …
    format: str | None = None  # by content
    bytes: int | None = None
    sha256: str | None = None
    frames: int | None = None  # of an animation or of pages; the first one is judged
    jpeg_quality: int | None = None  # nearest quality of libjpeg
    jpeg_tables: dict[str, list[int]] = field(default_factory=dict)  # 64 entries each, row by row
    subsampling: str | None = None
    exif: dict[str, str] = field(default_factory=dict)
    text: dict[str, str] = field(default_factory=dict)  # comments, and texts that PNG keeps
    note: str | None = None  # what of it could not be read
    credentials: Credentials = NO_FILE

    def asdict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def read(source: str | Path | bytes | Any) -> Facts:
    """Gather the facts of a file; nothing is decoded for it but the header.

    Args:
        source: a path or a file's bytes; of a PIL image, an array or a tensor the size is all that can be told.

    Returns:
        Facts; those of a file that is no image hold its bytes and hash.

    Raises:
        ImageError: a path that cannot be read, or a file above the limit on bytes.
        OSError: the trust file of the credentials cannot be read.
    """
    if isinstance(source, Image.Image):
        return Facts(source.width, source.height, source.mode)
    if not isinstance(source, str | Path | bytes):
        shape = source.shape[-2:] if source.shape[0] in (1, 3) and source.ndim > 2 else source.shape[:2]
        return Facts(int(shape[-1]), int(shape[-2]), "RGB")
    with open_file(source) as file:
        data = file.read()
        basic = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        file.seek(0)
        with warnings.catch_warnings(action="ignore"):
            try:
                image = Image.open(file, formats=FORMATS)
            except Exception:  # damaged headers raise nearly anything
                return Facts(**basic, note="no image that can be opened", credentials=credentials.NONE)
            return Facts(**basic, **_header(image), credentials=credentials.read(data, image.format))


def _header(image: Image.Image) -> dict[str, Any]:
    is_jpeg, notes = image.format in ("JPEG", "MPO"), []
    found: dict[str, Any] = {"width": image.width, "height": image.height, "mode": image.mode}
    found["format"] = "JPEG" if is_jpeg else image.format
    if is_jpeg:
        names = {0: "luminance", 1: "chrominance"}
        tables = {names.get(key, f"table {key}"): list(map(int, one)) for key, one in image.quantization.items()}
        found |= {"jpeg_tables": tables, "jpeg_quality": jpeg_quality(image.quantization)}
        found["subsampling"] = _attempt("subsampling", notes, lambda: subsampling(image))
    found["frames"] = _attempt("frames", notes, lambda: int(getattr(image, "n_frames", 1)))
    found["exif"] = _attempt("EXIF", notes, lambda: _exif(image)) or {}
    texts = {key: value for key, value in image.info.items() if isinstance(key, str) and isinstance(value, str)}
    if isinstance(comment := image.info.get("comment"), bytes):
        texts["comment"] = comment.decode("utf-8", "replace")
    found["text"] = _tidy(texts.items())
    return found | {"note": "; ".join(notes) or None}


def _attempt(what: str, notes: list[str], get):
    try:
        return get()
    except Exception as error:  # Pillow's readers raise nearly anything on damaged metadata
        notes.append(f"{what} cannot be read: {plain(error)}")
        return None


def _exif(image: Image.Image) -> dict[str, str]:
    """Tags by name, those of the sub-tables after those of the main one."""
    exif = image.getexif()
    found = [(ExifTags.TAGS.get(tag, f"tag {tag}"), value) for tag, value in exif.items() if tag not in SUB_TABLES]
    for table in SUB_TABLES:
        names = ExifTags.GPSTAGS if table is ExifTags.IFD.GPSInfo else ExifTags.TAGS
        found += [(names.get(tag, f"tag {tag}"), value) for tag, value in exif.get_ifd(table).items()]
    return _tidy(found)


def _tidy(pairs: Iterable[tuple[str, Any]]) -> dict[str, str]:
    return {plain(name, 60): _value(value) for name, value in list(pairs)[:MOST] if name not in SKIPPED}


def _value(value: Any) -> str:
    if isinstance(value, bytes):
        text = value.rstrip(b"\0")
        return plain(text.decode("ascii")) if text.isascii() and text.isalnum() else f"{len(value)} bytes"
    if isinstance(value, Mapping):
        return f"{len(value)} entries"
    if isinstance(value, tuple) and len(value) > 8:
        return f"{len(value)} values"
    try:
        return plain(value)
    except Exception:  # a rational number over zero, for instance
        return "not readable"
