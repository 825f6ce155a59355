"""What an image file says of itself: size, format, JPEG tables, EXIF, and content credentials (C2PA).

The networks see none of it: a page shows the two apart. Of credentials only what is embedded in the file is read, and
nothing is asked of a network: no remote manifests, no revocation lists.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image
from PIL.JpegImagePlugin import JpegImageFile

from dfd.core.images import FORMATS, Source, jpeg_quality, open_file, subsampling
from dfd.core.io import template

MARK = b"c2pa"  # stands in every embedded manifest store (ISO 22144, C2PA 2.x: the label of its JUMBF box)
TRUST = "DFD_C2PA_TRUST"  # environment variable: a PEM file with the certificates that may vouch for a signer
MIME = {name: f"image/{name.lower()}" for name in ("JPEG", "PNG", "WEBP", "TIFF", "GIF")} | {"MPO": "image/jpeg"}
MAX_TEXT = 200  # characters of a text that comes from a file
MAX_TAGS = 60  # tags of a file that are listed
SKIPPED = ("MakerNote", "UserComment", "PrintImageMatching")  # long and binary
SUB_TABLES = {ExifTags.IFD.Exif: ExifTags.TAGS, ExifTags.IFD.GPSInfo: ExifTags.GPSTAGS}
JPEG_TABLES = {0: "luminance", 1: "chrominance"}


def lines(macro: str, *values: Any) -> tuple[str, ...]:
    """The lines of a text in words.txt.j2, filled in with values."""
    text = str(getattr(template("words.txt.j2").module, macro)(*values))
    return tuple(" ".join(line.split()) for line in text.splitlines() if line.strip())


def sentence(macro: str, *values: Any) -> str:
    """A text in words.txt.j2 as one line."""
    return " ".join(lines(macro, *values))


def plain(value: Any, longest: int = MAX_TEXT) -> str:
    """A foreign value as one line of printable text, of bounded length; direction marks and controls are dropped.

    >>> plain("pass\\nwd \\u202egnp.exe")
    'pass wd gnp.exe'
    """
    text = " ".join("".join(c if c.isprintable() else " " for c in str(value)[: 4 * longest]).split())
    return text if len(text) <= longest else text[: longest - 1] + "…"


@dataclass(frozen=True)
class Credentials:
    """What the credentials of one file say, and how far that can be relied on."""

    state: str  # none, verified, not verified or not checked
    reason: str  # one sentence: what was checked, or what failed
    signer: str | None = None  # as the certificate names itself
    made_with: str | None = None  # the software that wrote the claim
    says: tuple[str, ...] = ()  # what the claim says was done, in order
    signed_at: str | None = None


NO_CREDENTIALS = Credentials("none", "The file carries no content credentials. Most do not, so that says nothing.")
NO_FILE = Credentials("none", "There is no file to look into: the image came as pixels.")


@dataclass(frozen=True)
class Metadata:
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


def read_metadata(source: Source) -> Metadata:
    """Gather what a file says; nothing is decoded for it but the header. Of pixels the size is all that can be told.

    Raises:
        ImageError: a path that cannot be read, or a file above the limit on bytes.
        OSError: the trust file of the credentials cannot be read.
    """
    if isinstance(source, Image.Image):
        return Metadata(source.width, source.height, source.mode)
    if not isinstance(source, str | Path | bytes):
        height, width = source.shape[-2:] if source.shape[0] in (1, 3) and source.ndim > 2 else source.shape[:2]
        return Metadata(int(width), int(height), "RGB")
    with open_file(source) as file:
        data = file.read()
    basic = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    with warnings.catch_warnings(action="ignore"):
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except Exception:  # damaged headers raise nearly anything
            return Metadata(**basic, note="no image that can be opened", credentials=NO_CREDENTIALS)
        return Metadata(**basic, **_header(image), credentials=read_credentials(data, image.format))


def _header(image: Image.Image) -> dict[str, Any]:
    texts = {key: value for key, value in image.info.items() if isinstance(key, str) and isinstance(value, str)}
    if isinstance(comment := image.info.get("comment"), bytes):
        texts["comment"] = comment.decode("utf-8", "replace")
    values: dict[str, Any] = {"width": image.width, "height": image.height, "mode": image.mode, "format": image.format}
    values["text"] = _tidy(texts.items())
    try:
        if isinstance(image, JpegImageFile):  # MPO too
            tables = image.quantization
            named = {JPEG_TABLES.get(key, f"table {key}"): list(map(int, table)) for key, table in tables.items()}
            values |= {"format": "JPEG", "jpeg_tables": named, "jpeg_quality": jpeg_quality(image)}
            values["subsampling"] = subsampling(image)
        values["frames"] = int(getattr(image, "n_frames", 1))
        values["exif"] = _exif(image)
    except Exception as error:  # Pillow's readers raise nearly anything on damaged metadata
        values["note"] = f"not all could be read: {plain(error)}"
    return values


def _exif(image: Image.Image) -> dict[str, str]:
    """Tags by name, those of the sub-tables after those of the main one."""
    exif = image.getexif()
    tags = [(ExifTags.TAGS.get(tag, f"tag {tag}"), value) for tag, value in exif.items() if tag not in SUB_TABLES]
    for table, names in SUB_TABLES.items():
        tags += [(names.get(tag, f"tag {tag}"), value) for tag, value in exif.get_ifd(table).items()]
    return _tidy(tags)


def _tidy(pairs: Iterable[tuple[str, Any]]) -> dict[str, str]:
    return {plain(name, 60): _text(value) for name, value in list(pairs)[:MAX_TAGS] if name not in SKIPPED}


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        text = value.rstrip(b"\0")
        return plain(text.decode("ascii")) if text.isascii() and text.isalnum() else f"{len(value)} bytes"
    if isinstance(value, Mapping) or (isinstance(value, tuple) and len(value) > 8):
        return f"{len(value)} values"
    try:
        return plain(value)
    except Exception:  # a rational number over zero, for instance
        return "not readable"


def read_credentials(data: bytes, format: str | None, trust: str | Path | None = None) -> Credentials:
    """Read the credentials in an image file, whatever is in it, and verify signature, signer and content.

    Args:
        data: the whole file, of Pillow's format.
        trust: PEM file with the certificates that may vouch for a signer; none takes $DFD_C2PA_TRUST. Without one no
            file can be verified: anybody can sign, under any name.

    Raises:
        OSError: the trust file cannot be read.
    """
    if MARK not in data or format not in MIME:
        return NO_CREDENTIALS
    try:
        import c2pa
    except ImportError:
        return Credentials("not checked", "The file seems to carry credentials; `pip install c2pa-python` reads them.")
    settings: dict[str, Any] = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False, "verify_trust": True}}
    if trust := trust or os.environ.get(TRUST):
        settings["trust"] = {"trust_anchors": Path(trust).read_text("utf-8")}
    try:
        context = c2pa.Context.from_dict(settings)
        with c2pa.Reader(MIME[format], io.BytesIO(data), context=context) as reader:
            state, manifest = reader.get_validation_state(), reader.get_active_manifest() or {}
            results = reader.get_validation_results() or {}
    except Exception as error:  # a native parser's errors on foreign data, of many kinds
        if type(error).__name__.endswith("ManifestNotFound"):
            return NO_CREDENTIALS
        return Credentials("not verified", f"The credentials cannot be read: {plain(error)}")
    failures = results.get("activeManifest", {}).get("failure", [])
    failures = [failure for failure in failures if failure.get("code") != "signingCredential.untrusted"]
    reason = plain(sentence("credentials", state, failures, bool(trust)), 3 * MAX_TEXT)
    verdict = "verified" if state == "Trusted" else "not verified"
    with contextlib.suppress(AttributeError, TypeError, KeyError, ValueError):  # a signed manifest may hold any JSON
        return Credentials(verdict, reason, **_claims(manifest))
    return Credentials(verdict, reason)


def _claims(manifest: dict) -> dict[str, Any]:
    """Signer, software, actions and time of a manifest, as it says; raises nearly anything where it is malformed."""
    signature = manifest.get("signature_info") or {}
    names = [plain(signature[key]) for key in ("common_name", "issuer") if signature.get(key)]
    tools = manifest.get("claim_generator_info") or [{"name": manifest.get("claim_generator") or ""}]
    software = [plain(f"{tool.get('name', '')} {tool.get('version', '')}") for tool in tools[:3]]
    actions = []
    for assertion in manifest.get("assertions") or []:
        if str(assertion.get("label", "")).startswith("c2pa.actions"):
            for action in assertion["data"].get("actions", []):
                kind = str(action.get("digitalSourceType", "")).rsplit("/", 1)[-1]
                what = plain(str(action.get("action", "")).removeprefix("c2pa."))
                actions.append(f"{what}: {plain(sentence('source_type', kind))}" if kind else what)
    return {
        "signer": ", ".join(dict.fromkeys(names)) or None,
        "made_with": ", ".join(filter(None, software)) or None,
        "says": tuple(actions[:20]),
        "signed_at": plain(signature["time"]) if signature.get("time") else None,
    }
