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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image

from dfd.core.images import FORMATS, Source, jpeg_quality, open_file, subsampling

MARK = b"c2pa"  # stands in every embedded manifest store (ISO 22144, C2PA 2.x: the label of its JUMBF box)
TRUST = "DFD_C2PA_TRUST"  # environment variable: a PEM file with the certificates that may vouch for a signer
MIME = {name: f"image/{name.lower()}" for name in ("JPEG", "PNG", "WEBP", "TIFF", "GIF")} | {"MPO": "image/jpeg"}
MAX_TEXT = 200  # characters of a text that comes from a file
MAX_TAGS = 60  # tags of a file that are listed
SKIPPED = ("MakerNote", "UserComment", "PrintImageMatching")  # long and binary
SUB_TABLES = {ExifTags.IFD.Exif: ExifTags.TAGS, ExifTags.IFD.GPSInfo: ExifTags.GPSTAGS}
SOURCE_TYPES = {  # digital source types of the IPTC, the last part of their address -> what they mean
    "trainedAlgorithmicMedia": "made by a trained model",
    "compositeWithTrainedAlgorithmicMedia": "partly made by a trained model",
    "algorithmicMedia": "made by an algorithm",
    "digitalCapture": "taken by a camera",
    "computationalCapture": "taken by a camera, with computation",
    "negativeFilm": "scanned from film",
    "digitalCreation": "drawn by a person with digital tools",
    "humanEdits": "edited by a person",
    "composite": "a composite",
}


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


def read_facts(source: Source) -> Facts:
    """Gather the facts of a file; nothing is decoded for it but the header.

    Of a PIL image, an array or a tensor the size is all that can be told; of a file that is no image, bytes and hash.

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
                return Facts(**basic, note="no image that can be opened", credentials=NO_CREDENTIALS)
            return Facts(**basic, **_header(image), credentials=read_credentials(data, image.format))


def read_credentials(data: bytes, format: str | None, trust: str | Path | None = None) -> Credentials:
    """Read the credentials in an image file, whatever is in it, and verify signature, signer and content.

    Args:
        data: the whole file.
        format: Pillow's name of its format; none where it is unknown.
        trust: PEM file with the certificates that may vouch for a signer; none takes $DFD_C2PA_TRUST. Without one no
            file can be verified: anybody can sign, under any name.

    Raises:
        OSError: the trust file cannot be read.
    """
    if MARK not in data or format not in MIME:
        return NO_CREDENTIALS
    trust = trust or os.environ.get(TRUST)
    anchors = Path(trust).read_text("utf-8") if trust else None
    try:
        import c2pa
    except ImportError:
        return Credentials("not checked", "The file seems to carry credentials; `pip install c2pa-python` reads them.")
    settings: dict[str, Any] = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False, "verify_trust": True}}
    if anchors:
        settings["trust"] = {"trust_anchors": anchors}
    try:
        context = c2pa.Context.from_dict(settings)
        with c2pa.Reader(MIME[format], io.BytesIO(data), context=context) as reader:
            state, manifest = reader.get_validation_state(), reader.get_active_manifest() or {}
            results = reader.get_validation_results() or {}
    except Exception as error:  # a native parser's errors on foreign data, of many kinds
        if type(error).__name__.endswith("ManifestNotFound"):
            return NO_CREDENTIALS
        return Credentials("not verified", f"The credentials cannot be read: {plain(error)}")
    verdict = _judged(state, results, anchors is not None)
    with contextlib.suppress(AttributeError, TypeError, KeyError, ValueError):  # a signed manifest may hold any JSON
        return Credentials(*verdict, *_claims(manifest))
    return Credentials(*verdict)


def _judged(state: str | None, results: dict, has_anchors: bool) -> tuple[str, str]:
    if state == "Trusted":
        return "verified", "The signature holds, the file is unchanged since, and a trusted certificate vouches for it."
    failures = results.get("activeManifest", {}).get("failure", [])
    other = [failure for failure in failures if failure.get("code") != "signingCredential.untrusted"]
    if state == "Valid" and not other:
        who = "no certificate in the trust list" if has_anchors else f"no trust list is set ({TRUST}), so nobody"
        return "not verified", f"The signature holds and the file is unchanged since, but {who} vouches for the signer."
    reasons = [plain(failure.get("explanation") or failure.get("code")) for failure in other[:3]]
    why = "; ".join(reasons) or "no reason given"
    if any(failure.get("code", "").startswith("assertion.dataHash") for failure in other):
        why = f"the file was changed after it was signed ({why})"
    return "not verified", f"The credentials do not hold: {why}."


def _claims(manifest: dict) -> tuple[str | None, str | None, tuple[str, ...], str | None]:
    """Signer, software, actions and time of a manifest, as it says; raises nearly anything where it is malformed."""
    signature = manifest.get("signature_info") or {}
    names = (signature.get("common_name"), signature.get("issuer"))
    signer = ", ".join(dict.fromkeys(plain(name) for name in names if name)) or None
    tools = manifest.get("claim_generator_info") or [{"name": manifest.get("claim_generator") or ""}]
    software = [plain(f"{tool.get('name', '')} {tool.get('version', '')}") for tool in tools[:3]]
    actions = []
    for assertion in manifest.get("assertions") or []:
        if str(assertion.get("label", "")).startswith("c2pa.actions"):
            for action in assertion["data"].get("actions", []):
                kind = str(action.get("digitalSourceType", "")).rsplit("/", 1)[-1]
                what = plain(str(action.get("action", "")).removeprefix("c2pa."))
                actions.append(f"{what}: {SOURCE_TYPES.get(kind, plain(kind))}" if kind else what)
    signed_at = plain(signature["time"]) if signature.get("time") else None
    return signer, ", ".join(filter(None, software)) or None, tuple(actions[:20]), signed_at


def plain(value: Any, longest: int = MAX_TEXT) -> str:
    """A foreign value as one line of printable text, of bounded length; direction marks and controls are dropped."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(value)[: 4 * longest]).split())
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _header(image: Image.Image) -> dict[str, Any]:
    notes: list[str] = []

    def attempt(what: str, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except Exception as error:  # Pillow's readers raise nearly anything on damaged metadata
            notes.append(f"{what} cannot be read: {plain(error)}")
            return None

    facts: dict[str, Any] = {"width": image.width, "height": image.height, "mode": image.mode, "format": image.format}
    if image.format in ("JPEG", "MPO"):
        names = {0: "luminance", 1: "chrominance"}
        tables = {names.get(key, f"table {key}"): list(map(int, row)) for key, row in image.quantization.items()}
        facts |= {"format": "JPEG", "jpeg_tables": tables, "jpeg_quality": jpeg_quality(image.quantization)}
        facts["subsampling"] = attempt("subsampling", lambda: subsampling(image))
    facts["frames"] = attempt("frames", lambda: int(getattr(image, "n_frames", 1)))
    facts["exif"] = attempt("EXIF", lambda: _exif(image)) or {}
    texts = {key: value for key, value in image.info.items() if isinstance(key, str) and isinstance(value, str)}
    if isinstance(comment := image.info.get("comment"), bytes):
        texts["comment"] = comment.decode("utf-8", "replace")
    return facts | {"text": _tidy(texts.items()), "note": "; ".join(notes) or None}


def _exif(image: Image.Image) -> dict[str, str]:
    """Tags by name, those of the sub-tables after those of the main one."""
    exif = image.getexif()
    tags = [(ExifTags.TAGS.get(tag, f"tag {tag}"), value) for tag, value in exif.items() if tag not in SUB_TABLES]
    for table, names in SUB_TABLES.items():
        tags += [(names.get(tag, f"tag {tag}"), value) for tag, value in exif.get_ifd(table).items()]
    return _tidy(tags)


def _tidy(pairs: Iterable[tuple[str, Any]]) -> dict[str, str]:
    return {plain(name, 60): _value(value) for name, value in list(pairs)[:MAX_TAGS] if name not in SKIPPED}


def _value(value: Any) -> str:
    if isinstance(value, bytes):
        text = value.rstrip(b"\0")
        return plain(text.decode("ascii")) if text.isascii() and text.isalnum() else f"{len(value)} bytes"
    if isinstance(value, Mapping) or (isinstance(value, tuple) and len(value) > 8):
        return f"{len(value)} values"
    try:
        return plain(value)
    except Exception:  # a rational number over zero, for instance
        return "not readable"
