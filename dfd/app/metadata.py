"""What an image file says of itself: size, format, JPEG quality, EXIF, and content credentials (C2PA).

The networks see none of it. Of credentials what is embedded is read; no network is asked for manifests or lists.
"""

import contextlib
import hashlib
import io
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, JpegImagePlugin

from dfd.core import FORMATS, Source, as_rgb, content_of, jpeg_quality, subsampling, template

MARK = b"c2pa"  # stands in every embedded manifest store (ISO 22144, C2PA 2.x: the label of its JUMBF box)
TRUST = "DFD_C2PA_TRUST"  # environment variable: a PEM file with the certificates that may vouch for a signer
MIME = {name: f"image/{name.lower()}" for name in "JPEG PNG WEBP TIFF GIF AVIF HEIF".split()} | {"MPO": "image/jpeg"}
GENERATED = {"trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia", "algorithmicMedia"}  # terms of the IPTC
MAX_TEXT, MAX_TAGS = 200, 60  # characters of a text that comes from a file; tags of a file that are listed
SCREENS = "1080x1920 1170x2532 1179x2556 1080x2340 1080x2400 1440x3120 1290x2796 750x1334 828x1792 1125x2436 1242x2688"
SCREENS += " 768x1366 900x1440 1440x2560 2160x3840 1200x1920 1620x2160 1668x2388 2048x2732"
PROMPTS = {*"parameters prompt workflow dream sd-metadata invokeai_metadata novelai".split()}  # of diffusion programs
BLOCKY = 2.8  # of `blockiness`, across and down, from which on a picture was saved as JPEG before
CHARACTERS = {b"ASCII\0\0\0": "utf-8", b"UNICODE\0": "utf-16-be"}  # how a UserComment begins, and what it is in
SKIPPED, SHOWN = ("MakerNote", "PrintImageMatching"), ("comment", "icc_profile", "gamma")  # of EXIF; beside texts
SUB_TABLES = {ExifTags.IFD.Exif: ExifTags.TAGS, ExifTags.IFD.GPSInfo: ExifTags.GPSTAGS}


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

    state: str  # none, verified or not verified
    reason: str  # one sentence: what was checked, or what failed
    signer: str | None = None  # as the certificate names itself
    says_generated: bool = False  # whether an action of the claim says that a model or an algorithm made it


NO_CREDENTIALS = Credentials("none", "The file carries no content credentials. Most do not, so that says nothing.")


@dataclass(frozen=True)
class Metadata:
    """What is known of one file; None where it does not apply or cannot be told. All text is one printable line."""

    width: int | None = None  # as stored, before EXIF turns it (a TIFF: after)
    height: int | None = None
    mode: str | None = None  # Pillow's: RGB, L, CMYK …
    format: str | None = None  # by content
    bytes: int | None = None
    sha256: str | None = None
    frames: int | None = None  # of an animation, or pages
    jpeg_quality: int | None = None  # nearest quality of libjpeg
    subsampling: str | None = None
    exif: dict[str, str] = field(default_factory=dict)
    text: dict[str, str] = field(default_factory=dict)  # comments, texts that PNG keeps, XMP's digital source type
    warnings: tuple[str, ...] = ()  # what a careful reader should know of the file's history, in sentences
    note: str | None = None  # what of it could not be read
    credentials: Credentials = Credentials("none", "There is no file to look into: the image came as pixels.")


def read_metadata(source: Source) -> Metadata:
    """Gather what a file says; it is decoded for signs of an earlier JPEG. Of pixels alone only the size is told.

    A path that cannot be read, or a file above the limit on bytes, is an ImageError; of the trust file, an OSError.
    """
    if not isinstance(source, str | Path | bytes):
        image = source if isinstance(source, Image.Image) else as_rgb(source)
        return Metadata(image.width, image.height, image.mode)
    data = content_of(source)
    basic = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    with warnings.catch_warnings(action="ignore"):
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except Exception:  # damaged headers raise nearly anything
            told: dict[str, Any] = {"note": "its header, texts or profile cannot be read, so none of them is shown"}
            return Metadata(**basic, **told, credentials=read_credentials(data, "PNG"))
        values = _header(image)
        values["warnings"] = lines("history", values, _history(image, values))
        return Metadata(**basic, **values, credentials=read_credentials(data, image.format))


def _header(image: Image.Image) -> dict[str, Any]:
    values: dict[str, Any] = {"width": image.width, "height": image.height, "mode": image.mode, "format": image.format}
    with contextlib.suppress(Exception):  # what a PNG says may stand behind its pixels
        _ = image.format == "PNG" and image.load()
    texts = {k: v for k, v in image.info.items() if k in SHOWN or (k != "compression" and isinstance(v, str))}
    kinds = re.findall(r"digitalsourcetype/(\w+)", str(image.info.get("xmp")))  # of the IPTC, in any place of it
    values["text"] = _tidy({"DigitalSourceType in XMP": ", ".join(dict.fromkeys(kinds))} | texts, {})
    try:
        if isinstance(image, JpegImagePlugin.JpegImageFile):  # MPO too
            values |= {"format": "JPEG", "jpeg_quality": jpeg_quality(image), "subsampling": subsampling(image)}
        values["frames"] = int(getattr(image, "n_frames", 1))
        image.info, image._exif = {k: v for k, v in image.info.items() if "xmp" not in str(k)}, None
        exif = image.getexif()  # without the orientation of XMP, by which no viewer turns
        values["exif"] = _tidy({tag: value for tag, value in exif.items() if tag not in SUB_TABLES}, ExifTags.TAGS)
        for table, names in SUB_TABLES.items():
            values["exif"] |= _tidy(exif.get_ifd(table), names)
    except Exception as error:  # Pillow's readers raise nearly anything on damaged metadata
        values["note"] = f"not all could be read: {plain(error)}"
    return values


def _history(image: Image.Image, values: Mapping[str, Any]) -> set[str]:
    """What the file tells of its past, as keys of the text `history`; what cannot be told is left out."""
    exif, texts, size = values.get("exif", {}), values["text"], sorted(image.size)  # short side, long side
    told = {"stripped"} if "exif" not in image.info and values["format"] == "JPEG" else set()
    told |= {"screenshot"} if "x".join(map(str, size)) in SCREENS.split() and "Make" not in exif else set()
    told |= {"generated"} if GENERATED & {*texts.get("DigitalSourceType in XMP", "").split(", ")} else set()
    is_named = texts.get("Software") == "NovelAI" or exif.get("Model", "").startswith("prompt:")  # ComfyUI's, in a WebP
    told |= {"prompt"} if is_named or not PROMPTS.isdisjoint(map(str.lower, texts)) else set()
    with contextlib.suppress(Exception):  # damaged pixels or metadata raise nearly anything, and are told elsewhere
        recorded = sorted((v := exif.get(f"ExifImage{n}", "")).isdecimal() and int(v) for n in ("Width", "Height"))
        told |= {"resized"} if recorded[0] and recorded != size else set()
        said = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)  # in JPEG and WebP
        told |= {"prompt"} if re.search(r"Steps: \d{1,3}(?!,?\d)|sui_image", str(said).replace("\\x00", "")) else set()
        pixels = np.asarray(image.convert("L"), dtype=np.float32)[:2048, :2048]
        is_blocky = min(blockiness(pixels), blockiness(pixels.T)) > BLOCKY
        told |= {"blocks"} if is_blocky and values["format"] in ("PNG", "TIFF", "BMP", "GIF") else set()
        thumbnail = image.getexif().get_ifd(ExifTags.IFD.IFD1) if values["format"] != "HEIF" else {}  # turned already
        start, length = thumbnail[ExifTags.Base.JpegIFOffset], thumbnail[ExifTags.Base.JpegIFByteCount]
        small = Image.open(io.BytesIO(image.info["exif"][6:][start : start + length]), formats=FORMATS)
        barless = ImageOps.fit(small, (160 * image.width // size[1] or 1, 160 * image.height // size[1] or 1))  # of 4:3
        greys = [np.asarray(picture.convert("L").resize((16, 16))).ravel() for picture in (image, small, barless)]
        told |= {"thumbnail"} if np.corrcoef(greys)[0, 1:].max() < 0.8 else set()
    return told


def blockiness(pixels: np.ndarray) -> float:
    """How far steps across the columns of one 8 x 8 grid of (H, W) grey levels stand out from those of the other seven.

    In their deviations: of the 480 that chose it, 1 % of shrunk pictures reach BLOCKY, and 65 % behind quality 75.
    """
    steps = np.minimum(np.abs(np.diff(pixels, axis=1)), 20).mean(0)
    excess = steps[1:-1] - (steps[:-2] + steps[2:]) / 2
    phases = np.sort([excess[phase::8].mean() for phase in range(8)])
    return float((phases[-1] - phases[:-1].mean()) / (phases[:-1].std() + 0.02))


def _tidy(entries: Mapping[Any, Any], names: Mapping[int, str]) -> dict[str, str]:
    """The first MAX_TAGS entries as lines of text, tags by their names."""
    tidy = {}
    for tag, value in list(entries.items())[:MAX_TAGS]:
        name = plain(names.get(tag, f"tag {tag}") if isinstance(tag, int) else tag, 60)
        if name == "UserComment" and isinstance(value, bytes) and value[:8] in CHARACTERS:
            is_little = value[:1] == b"U" and value[9::2].count(0) > value[8::2].count(0)  # in a file of any order
            value = value[8:].decode("utf-16-le" if is_little else CHARACTERS[value[:8]], "replace").strip("\0 ")
        if isinstance(value, bytes):
            is_text = name == "comment" or value.rstrip(b"\0").isalnum()
            value = value.rstrip(b"\0").decode("utf-8", "replace") if is_text else f"{len(value)} bytes"
        if name not in SKIPPED and value != "":
            tidy[name] = plain(value)
    return tidy


def read_credentials(data: bytes, format: str | None) -> Credentials:
    """Read the credentials in a file of Pillow's format, and verify signature, signer and content.

    $DFD_C2PA_TRUST names a PEM file with the certificates that may vouch for a signer. Without one no file can be
    verified: anybody can sign, under any name. A trust file that cannot be read is an OSError.
    """
    if MARK not in data or format not in MIME:
        return NO_CREDENTIALS
    import c2pa  # takes a while

    verify = {"remote_manifest_fetch": False, "ocsp_fetch": False, "verify_trust": True}
    settings: Any = {"verify": verify, "core": {"decode_identity_assertions": False}}  # these ask their issuers' hosts
    if trust := os.environ.get(TRUST):
        settings["trust"] = {"trust_anchors": Path(trust).read_text("utf-8")}
    try:
        with c2pa.Reader(MIME[format], io.BytesIO(data), context=c2pa.Context.from_dict(settings)) as reader:
            state, manifest = reader.get_validation_state(), reader.get_active_manifest() or {}
            failures = (reader.get_validation_results() or {}).get("activeManifest", {}).get("failure", [])
    except Exception as error:  # a native parser's errors on foreign data, of many kinds
        if type(error).__name__.endswith("ManifestNotFound"):
            return NO_CREDENTIALS
        return Credentials("not verified", f"The credentials cannot be read: {plain(error)}")
    failures = [failure for failure in failures if failure.get("code") != "signingCredential.untrusted"]
    reason = plain(sentence("credentials", state, failures, bool(trust)), 3 * MAX_TEXT)
    signer, says_generated = None, False
    with contextlib.suppress(Exception):  # a signed manifest may hold any JSON
        signature = manifest.get("signature_info") or {}
        names = dict.fromkeys(plain(signature.get(key) or "") for key in ("common_name", "issuer"))
        signer = ", ".join(filter(None, names)) or None
        assertions = [row for row in manifest["assertions"] if str(row.get("label", "")).startswith("c2pa.actions")]
        actions = [action for assertion in assertions for action in assertion["data"].get("actions", [])]
        says_generated = any(str(row.get("digitalSourceType")).split("/")[-1] in GENERATED for row in actions)
    return Credentials("verified" if state == "Trusted" else "not verified", reason, signer, says_generated)
