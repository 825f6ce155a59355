"""Every kind of file that a data folder may hold, made on the spot."""

from __future__ import annotations

import os
import socket
import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pillow_heif
from PIL import Image

pillow_heif.register_heif_opener()
GOOD = None  # the expectation for a file that must be accepted


def make(folder: Path) -> dict[str, str | None]:
    """Fill a folder with good and bad files; give, by name, GOOD or a word of the reason for which it is rejected."""
    folder.mkdir(parents=True, exist_ok=True)
    return {**_good(folder), **_damaged(folder), **_no_images(folder), **_no_files(folder)}


def picture(seed: int, width: int = 64, height: int = 48, detail: int = 6) -> Image.Image:
    """A random RGB picture of detail x detail soft spots; another seed gives one that looks quite different."""
    small = np.random.default_rng(seed).integers(0, 256, (detail, detail, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    """The bytes of an image file."""
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """One of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def animated(image: Image.Image, other: Image.Image) -> bytes:
    """A PNG whose one frame, of another picture, stands before its own pixels, and which says nothing of animation."""
    (width, height), data, raw = other.size, encoded(image, "PNG"), other.convert("RGB").tobytes()
    frame = struct.pack(">IIIIIHHBB", 0, width, height, 0, 0, 1, 1, 0, 0)
    rows = b"".join(b"\0" + raw[3 * width * y : 3 * width * (y + 1)] for y in range(height))
    return data[:33] + chunk(b"fcTL", frame) + chunk(b"fdAT", b"\0\0\0\1" + zlib.compress(rows)) + data[33:]


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises many pixels and holds none."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def _good(folder: Path) -> dict[str, str | None]:
    names = [
        "plain.png",
        "with space.png",
        'it\'s "quoted", with comma.png',
        "new\nline.png",
        "carriage\rreturn.png",
        "tab\t#%;.png",
        "back\\slash.png",
        "Grüße 写真 🙂.png",
        "-dash.png",
        "no_extension",
        "png_content.jpg",
        ".hidden.png",
    ]
    files = {name: encoded(picture(i), "PNG") for i, name in enumerate(names)}
    rotated = Image.Exif()
    rotated[0x0112] = 6
    wide = np.asarray(picture(20).convert("L"), dtype=np.uint16) * 257
    files |= {
        "rotated.jpg": encoded(picture(21), "JPEG", exif=rotated.tobytes()),
        "grey.png": encoded(picture(22).convert("L"), "PNG"),
        "palette.png": encoded(picture(23).quantize(32), "PNG", transparency=0),
        "alpha.png": encoded(picture(24).convert("RGBA"), "PNG"),
        "cmyk.jpg": encoded(picture(25).convert("CMYK"), "JPEG"),
        "sixteen.png": encoded(Image.fromarray(wide), "PNG"),
        "one_bit.png": encoded(picture(26).convert("1"), "PNG"),
        "animated.gif": encoded(picture(27), "GIF", save_all=True, append_images=[picture(28)]),
        "pages.tiff": encoded(picture(29), "TIFF", save_all=True, append_images=[picture(30)]),
        "photo.webp": encoded(picture(31), "WEBP", quality=80),
        "photo.bmp": encoded(picture(32), "BMP"),
        "photo.avif": encoded(picture(34), "AVIF"),
        "phone.heic": encoded(picture(35), "HEIF"),
        "broken_exif.jpg": encoded(picture(33), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01"),
        "no_exif.png": encoded(picture(36), "PNG", exif=b"Exif\0\0garbage!"),
        "no_exif.webp": encoded(picture(37), "WEBP", exif=b"Exif\0\0garbage!"),
        "no_exif.jpg": encoded(picture(38), "JPEG", exif=b"Exif\0\0garbage!", dpi=(72, 72)),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    os.symlink("plain.png", folder / "link.png")
    return dict.fromkeys([*files, "link.png"], GOOD)


def _damaged(folder: Path) -> dict[str, str | None]:
    noisy = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    expected = {}
    for format in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "HEIF"):
        data = encoded(noisy, format)
        (folder / f"half.{format.lower()}").write_bytes(data[: len(data) // 2])
        expected[f"half.{format.lower()}"] = "damaged or truncated"
    png = bytearray(encoded(noisy, "PNG"))
    png[len(png) // 2] ^= 0xFF
    floats = Image.fromarray(np.linspace(0, 9, 1024, dtype=np.float32).reshape(32, 32))
    files = {
        "flipped_bits.png": (bytes(png), "damaged"),
        "header_only.jpg": (encoded(noisy, "JPEG")[:20], "truncated"),
        "phone.jpg": (b"\0\0\0\x20ftypheic" + bytes(100), "truncated"),
        "bomb.png": (png_header(60_000, 60_000), "oversized"),
        "large.png": (png_header(12_000, 11_000), "oversized"),
        "dot.png": (encoded(picture(40, 1, 1), "PNG"), "too small"),
        "line.png": (encoded(picture(41, 200, 3), "PNG"), "too small"),
        "floats.tiff": (encoded(floats, "TIFF"), "32-bit"),
    }
    for name, (data, reason) in files.items():
        (folder / name).write_bytes(data)
        expected[name] = reason
    return expected


def _no_images(folder: Path) -> dict[str, str | None]:
    files = {
        "empty.jpg": (b"", "empty"),
        "text.jpg": (b"this was a photo once", "not an image"),
        "notes.txt": (b"remember the milk", "not an image"),
        "page.jpg": (b"\n<!DOCTYPE html><html><body>403</body></html>", "HTML"),
        "drawing.svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        "drawing.png": (b'<?xml version="1.0"?><svg/>', "SVG"),
        "paper.pdf": (b"%PDF-1.7\n%\xe2\xe3", "not an image"),
        "video.gif": (b"\0\0\0\x20ftypisom" + bytes(100), "a video"),
        "photo.jxl": (b"\xff\x0a\xfa\x1f\x01" + bytes(50), "JPEG XL; save it as PNG"),
        "boxed.jpg": (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(50), "JPEG XL; save it as PNG"),
        "archive.zip": (b"PK\x03\x04" + bytes(30), "not an image"),
        "pointer.png": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "LFS"),
        ".settings": (b"\0\0\0\1Bud1" + bytes(50), "not an image"),
        "noise.png": (bytes(range(256)), "not an image"),
    }
    for name, (data, _) in files.items():
        (folder / name).write_bytes(data)
    return {name: reason for name, (_, reason) in files.items()}


def _no_files(folder: Path) -> dict[str, str | None]:
    os.symlink("nowhere.png", folder / "broken.png")
    os.symlink("circle.png", folder / "circle.png")
    os.symlink("..", folder / "upwards")
    (folder / "folder.jpg").mkdir()
    (folder / ".thumbnails").mkdir()
    os.mkfifo(folder / "pipe.png")
    here = os.open(".", os.O_RDONLY)
    try:
        os.chdir(folder)  # the path of a socket may hold 107 bytes at most
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("socket.png")
    finally:
        os.fchdir(here)
        os.close(here)
    (folder / os.fsdecode(b"latin1_\xe9.png")).write_bytes(encoded(picture(50), "PNG"))
    return {
        "broken.png": "broken link",
        "circle.png": "broken link",
        "upwards": "link back",
        "folder.jpg": "a folder",
        ".thumbnails": "hidden folder",
        "pipe.png": "not a regular file",
        "socket.png": "not a regular file",
        "latin1_\\xe9.png": "UTF-8",
    }
