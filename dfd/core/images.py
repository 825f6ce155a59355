"""Reading image files: one way to become RGB, one full check, one reason for each file that fails."""

import hashlib
import os
import re
import stat
import warnings
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import PIL
from PIL import ExifTags, Image, ImageFile, JpegImagePlugin, features

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", *(("AVIF",) if features.check("avif") else ()))
with suppress(ImportError):  # a machine that only trains may lack it
    import pillow_heif

    pillow_heif.register_heif_opener(thumbnails=False)
    FORMATS += ("HEIF",)
MAX_PIXELS = 128_000_000  # above: rejected from the header alone, before anything is decoded
MAX_BYTES = 400_000_000  # of a file; above: rejected unread. MAX_PIXELS of an uncompressed BMP fit
MIN_SIDE = 8  # pixels; below one JPEG block a side there is no trace to look for
HASH_SIZE, HASH_SIDE = 16, 64  # the perceptual hash has HASH_SIZE ** 2 bits, of a thumbnail of HASH_SIDE ** 2 pixels
COSINES = np.cos(np.pi / HASH_SIDE * np.outer(np.arange(HASH_SIZE), np.arange(HASH_SIDE) + 0.5)).astype(np.float32)
DESCRIPTION = f"6 {PIL.__version__} {FORMATS}"  # of what `inspect` says; with another, a cache does not count
FLAT = 2.0  # grey standard deviation (of 255) of the hashed thumbnail, below which an image has no perceptual hash
MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # starts, of damaged ones too
TURNS = dict(zip(range(2, 9), (0, 3, 1, 5, 4, 6, 2), strict=True))  # EXIF's orientation -> Image.Transpose
UNUSED = (b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"acTL", b"fcTL", b"fdAT")  # of a PNG: texts, profile and animation
HDR_IN, HDR = ("AVIF", "HEIF", "PNG"), re.compile(rb"colrnclx..\0[\x10\x12]|cICP.[\x10\x12]", re.S)  # PQ or HLG
OTHERS = {b"<": "an HTML page or SVG drawing", b"version https://git-lfs": "a Git LFS pointer; fetch the real file"}
OTHERS |= {b"ftyp": "a video, or a raw photo (CR3)", b"\xff\x0a": (jxl := "JPEG XL; save it as PNG"), b"JXL ": jxl}
Source: TypeAlias = Any  # str, Path, bytes, PIL image, array or tensor; see as_rgb
BRANDS = (b"hei", b"hev", b"mif", b"msf", b"avi")  # starts of those that a HEIF or AVIF names behind ftyp
warnings.filterwarnings("ignore", module="PIL")  # of files; to catch them in threads would silence the process for good
Image.core.set_blocks_max(8)  # of 16 MB, kept for the next image: new pages cost as much as decoding a JPEG


class ImageError(ValueError):
    """A file is no image that can be used; the text says why, in one line."""


def load_rgb(path: str | Path | bytes) -> Image.Image:
    """Read a file, or the content of one, in any of FORMATS as an upright RGB image, or raise ImageError.

    First frame, or a PNG's own; alpha over white; 16 bits keep the high byte; no profile. Info: jpeg_quality, sha256.
    """
    try:
        image = _to_rgb(decoded := _decode(BytesIO(data := content_of(path))))
        image.info = {"jpeg_quality": jpeg_quality(decoded), "sha256": hashlib.sha256(data).hexdigest()}
        return image
    except ImageError as error:
        raise ImageError(f"{'the given bytes' if isinstance(path, bytes) else path}: {error}") from error.__cause__


def as_rgb(source: Source) -> Image.Image:
    """Make an upright RGB image of what `load_rgb` takes, a PIL image, an array or a tensor; raises ImageError.

    Arrays are uint8 (H, W, 3) or (H, W), tensors float (3, H, W) in [0, 1]; others are a ValueError or a TypeError.
    """
    if isinstance(source, str | Path | bytes):
        return load_rgb(source)
    if isinstance(source, Image.Image):
        rgb = _to_rgb(_decode(source))
        known = source.info.get("jpeg_quality")  # of `load_rgb`, and no text in a PNG
        rgb.info = {"jpeg_quality": jpeg_quality(source) or (known if isinstance(known, int) else None)}
        return rgb
    if hasattr(source, "is_floating_point"):  # a tensor; torch takes seconds to import, and a path needs none of it
        is_rgb = source.is_floating_point() and source.ndim == 3 and source.shape[0] == 3 and source.numel()
        if not (is_rgb and source.min() >= 0 and source.max() <= 1):  # NaN fails too
            raise ValueError(f"a tensor: float (3, H, W) in [0, 1], not normalised; got {source.dtype} {source.shape}")
        source = (source.detach().float().cpu() * 255).round().byte().permute(1, 2, 0).numpy()
    if not isinstance(source, np.ndarray):
        raise TypeError(f"an image is a path, bytes, a PIL image, an array or a tensor; got {type(source).__name__}")
    if source.dtype != np.uint8 or not (source.ndim == 2 or (source.ndim == 3 and source.shape[2] == 3)):
        raise ValueError(f"an array is uint8 (H, W, 3) or (H, W); got {source.dtype} {source.shape}")
    _check_size(*source.shape[1::-1])
    return Image.fromarray(np.ascontiguousarray(source)).convert("RGB")


def inspect(path: str | Path) -> dict[str, Any]:
    """Read a file completely and describe it, upright, or raise ImageError without its name; Pillow may warn."""
    image = _decode(BytesIO(data := content_of(path)), draft=True)
    width, height = image.info["header_size"][:: -1 if _orientation(image) in (5, 6, 7, 8) else 1]
    return {"width": width, "height": height, "jpeg_quality": jpeg_quality(image), "subsampling": subsampling(image),
            "format": "JPEG" if image.format == "MPO" else image.format,  # a JPEG that holds further ones
            "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data),
            "phash": perceptual_hash(_to_rgb(image, ("L", "RGB")))}  # fmt: skip


def perceptual_hash(image: Image.Image) -> str | None:
    """Hash an RGB or grey image's low frequencies, in hexadecimal; None for a flat one, whose hash would be noise."""
    thumbnail = image.resize((HASH_SIDE, HASH_SIDE), Image.Resampling.LANCZOS, reducing_gap=1).convert("L")
    if (pixels := np.asarray(thumbnail, dtype=np.float32)).std() < FLAT:
        return None
    waves = COSINES @ pixels @ COSINES.T
    return np.packbits(waves > np.median(waves)).tobytes().hex()


def jpeg_quality(image: Image.Image) -> int | None:
    """Give the libjpeg quality, 1 to 100, whose luminance table is nearest by ratios; None without a usable one."""
    number = (getattr(image, "layer", None) or [(0, 0, 0, 0)])[0][3]  # of the first component's table
    if (table := np.maximum(getattr(image, "quantization", {}).get(number, []), 1)).size != 64:  # row by row
        return None
    return 1 + int((np.log(_libjpeg_tables() / table) ** 2).sum(axis=1).argmin())


@cache
def _libjpeg_tables() -> np.ndarray:
    """Ask libjpeg for its luminance tables at qualities 1 to 100, (100, 64)."""
    tables = []
    for quality in range(1, 101):
        Image.new("L", (8, 8)).save(file := BytesIO(), "JPEG", quality=quality)
        tables.append(JpegImagePlugin.JpegImageFile(BytesIO(file.getvalue())).quantization[0])
    return np.array(tables)


def subsampling(image: Image.Image) -> str | None:
    """Name a JPEG's chroma subsampling; None for grey ones and other formats."""
    is_other = not isinstance(image, JpegImagePlugin.JpegImageFile) or image.layers == 1
    return None if is_other else {0: "4:4:4", 1: "4:2:2", 2: "4:2:0"}.get(JpegImagePlugin.get_sampling(image), "other")


def content_of(path: str | Path | bytes, limit: int = -1) -> bytes:
    """The content of a regular file, or its first bytes, or the bytes given; else an ImageError without its name."""
    try:
        if not isinstance(path, bytes) and not stat.S_ISREG(os.stat(path).st_mode):  # a pipe could wait for ever
            raise ImageError("not a regular file (a folder, a pipe, a device)")
        if (size := len(path) if isinstance(path, bytes) else os.stat(path).st_size) > MAX_BYTES:
            raise ImageError(f"oversized: {size / 1e6:.0f} MB, the limit is {MAX_BYTES / 1e6:.0f} MB")
        with BytesIO(path) if isinstance(path, bytes) else open(path, "rb") as file:
            return file.read(limit)
    except (OSError, ValueError, MemoryError) as error:  # ValueError: a name with a zero byte, or those above
        raise ImageError(("" if isinstance(error, ImageError) else "cannot be read: ") + one_line(error)) from error


def begins_like_image(path: str | Path | bytes) -> bool:
    """Whether a regular file begins as images of the usual formats do; one that cannot be read does not."""
    with suppress(ImageError):
        start = content_of(path, 16)
        is_other = start[8:12] == b"WEBP" or start[:2] + start[6:10] == b"BM\0\0\0\0"
        return is_other or start.startswith(MAGIC) or (start[4:8] == b"ftyp" and start[8:11] in BRANDS)
    return False


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(f"oversized: {width} x {height} pixels, the limit is {MAX_PIXELS / 1e6:.0f} million")
    if min(width, height) < MIN_SIDE:
        raise ImageError(f"too small: {width} x {height} pixels, each side needs at least {MIN_SIDE}")


def _decode(source: Any, draft: bool = False) -> Image.Image:
    """Decode what viewers show first of a file or picture; of a JPEG's draft what a hash needs; errors become one."""
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # another library may have set it
    data = b"" if (is_picture := isinstance(source, Image.Image)) else source.getvalue()  # then no file to mend
    try:
        image: Any = source if is_picture else Image.open(_plain_png(source) or source, formats=FORMATS)
        _check_size(*image.size)
        is_part = image.format == "AVIF" and b"\0\0" in [part[-4:-2] for part in data.split(b"clap")[:-1]]  # a box
        is_small = data[:3] == b"GIF" and image.tile[0][1] != (0, 0, *image.size)  # Pillow fills the rest, no viewer
        head = re.split(b"IDAT|mpvd", data)[0] if image.format in HDR_IN else b""  # before pixels, or a photo's film
        is_hdr = HDR.search(head) and not re.search(b"infe.{8,10}tmap", head, re.S)  # which is of a gain map's picture
        if is_part or is_hdr or (is_small and "transparency" not in image.info):
            what = "in HDR (PQ or HLG)" if is_hdr else "that shows more or less than its pixels"
            raise ImageError(f"{image.format} {what}; save what it shows as PNG")
        if draft:
            image.info["header_size"] = image.size
            _ = jpeg_quality(image) and image.draft("L", (HASH_SIDE, HASH_SIDE))  # all bits are read, few pixels made
        _ = image is source or image.info.pop("xmp", None)  # Pillow would turn a TIFF by it
        image.load()
        return image
    except ImageError:
        raise
    except (ValueError, Image.UnidentifiedImageError) as error:
        is_known = is_picture or isinstance(error, ValueError)
        raise ImageError(f"damaged or truncated: {one_line(error)}" if is_known else _what_it_is(source)) from error
    except Exception as error:  # Pillow's readers raise nearly anything on damaged files
        what = "cannot be read" if getattr(error, "errno", None) else "damaged or truncated"
        what = "oversized" if type(error).__name__.startswith("DecompressionBomb") else what
        raise ImageError(f"{what}: {one_line(error)}") from error


def _plain_png(file: BytesIO) -> BytesIO | None:
    """A PNG without what would have Pillow decode another picture than viewers show; None where nothing is left out."""
    data, kept, seen = memoryview(file.getvalue()), [], {b""}
    place = 8 if data[:4] == b"\x89PNG" else len(data)
    while place < len(data) and b"IEND" not in seen:
        chunk = data[place : place + int.from_bytes(data[place : place + 4]) + 12]  # with length, name and checksum
        name, place = bytes(chunk[4:8]), place + len(chunk)
        is_stray = name == b"tRNS" and (seen & {b"tRNS", b"IDAT"} or (data[25:26] == b"\3" and b"PLTE" not in seen))
        kept += [] if name in UNUSED or is_stray else [chunk]
        seen.add(name)
    return BytesIO(b"".join([data[:8], *kept])) if kept and sum(map(len, kept)) + 8 < len(data) else None


def _orientation(image: Image.Image) -> int:
    """As EXIF has it, not XMP, by which no viewer turns; 1, upright, where there is none or a damaged one."""
    with suppress(Exception):
        (exif := Image.Exif()).load(image.info["exif"])
        return exif.get(ExifTags.Base.Orientation, 1)
    return 1


def _to_rgb(image: Image.Image, as_it_is: Sequence[str] = ()) -> Image.Image:
    """Turn a decoded image upright and into RGB; see `load_rgb` for the rules. Some modes may stay as they are."""
    tags, is_wide = getattr(image, "tag_v2", {}), image.mode.startswith("I;16")  # 262: white is 0; 258: bits
    is_odd = tags.get(262) == 0 or tags.get(258, (16,)) != (16,) or "transparency" in image.info
    if image.mode in ("I", "F") or (is_wide and (is_odd or np.asarray(image).max() < 4096)):  # of 12 bits
        raise ImageError(f"{16 if is_wide else 32}-bit pixels (mode {image.mode}) have no agreed white")
    is_plain, bits = tags.get(259, 1) == 1, max(tags.get(258, (1,)))  # not compressed; Pillow has checked the bits
    if tags.get(254) in (1, 3, 5, 7) or (tags.get(284) == 2 and (image.mode == "LA" or (is_plain and bits > 8))):
        raise ImageError("a raw photo's preview, or planes that are read wrongly; save it as a plain TIFF or PNG")
    try:
        if (turn := TURNS.get(_orientation(image))) is not None:
            image = image.transpose(Image.Transpose(turn))
        if image.mode.startswith("I;16"):
            return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
        if image.has_transparency_data:
            image = image.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
        return image if image.mode in as_it_is else image.convert("RGB")
    except Exception as error:
        raise ImageError(f"cannot become RGB: {one_line(error)}") from error


def _what_it_is(file: Any) -> str:
    if not (start := file.getvalue()[:512]):
        return "empty file (0 bytes)"
    if begins_like_image(start):
        return "damaged or truncated header, or an unsupported variety"
    kinds = [kind for magic, kind in OTHERS.items() if start.lstrip().startswith(magic) or start[4:8] == magic]
    return f"not an image{': ' + kinds[0] if kinds else ', or of another kind'}; supported are {', '.join(FORMATS)}"


def one_line(error: Exception) -> str:
    """What an error says, without the system's number."""
    return " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
