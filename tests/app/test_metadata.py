"""What a file says of itself, however broken or hostile it is."""

import io
import json
import struct
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from bad_files import GOOD, encoded, make, picture
from networks import noise
from PIL import ExifTags, Image, ImageOps, PngImagePlugin

from dfd.app import metadata
from dfd.core import images
from dfd.core.images import load_rgb
from dfd.data import sample


def test_facts_of_a_jpeg(tmp_path):
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = "Maker", "<script>alert(1)</script>\x07\nnext"
    path = tmp_path / "photo.jpg"
    path.write_bytes(encoded(picture(0, 64, 48), "JPEG", quality=80, exif=exif, comment=b"made \xff here"))
    found = metadata.read_metadata(path)
    assert (found.width, found.height, found.mode, found.format, found.frames) == (64, 48, "RGB", "JPEG", 1)
    assert (found.jpeg_quality, found.subsampling) == (80, "4:2:0")
    assert found.exif == {"Make": "Maker", "Model": "<script>alert(1)</script> next"}
    assert found.text["comment"] == "made \ufffd here"
    assert found.bytes == path.stat().st_size and len(found.sha256) == 64
    assert found == metadata.read_metadata(path.read_bytes()) and found.note is None


def test_text_of_a_png_is_shown_and_cut_short():
    kept = PngImagePlugin.PngInfo()
    kept.add_text("parameters", "a castle " * 500)
    found = metadata.read_metadata(encoded(picture(1), "PNG", pnginfo=kept))
    assert found.text["parameters"].startswith("a castle") and len(found.text["parameters"]) == 200
    assert found.jpeg_quality is None and found.subsampling is None


def test_what_a_png_says_behind_its_pixels_is_shown_too():
    exif = Image.Exif()
    exif[0x0112] = 6
    told = PngImagePlugin.PngInfo()
    told.add_text("parameters", "a castle, Steps: 20")
    data = encoded(picture(1), "PNG", pnginfo=told, exif=exif)
    before, parts = data.index(b"IDAT") - 4, []
    for name in (b"tEXt", b"eXIf"):
        start = data.index(name) - 4
        parts.append(data[start : start + 12 + int.from_bytes(data[start : start + 4])])
    end = data.index(b"IEND") - 4
    assert before > 0 and all(data.count(part) == 1 for part in parts)
    moved = data[:end] + b"".join(parts) + data[end:]
    for part in parts:
        moved = moved.replace(part, b"", 1)
    found = metadata.read_metadata(moved)
    assert found == replace(metadata.read_metadata(data), sha256=found.sha256)
    assert found.exif == {"Orientation": "6"} and found.text == {"parameters": "a castle, Steps: 20"}
    assert any("programs for generating images" in line for line in found.warnings)


def test_pillows_word_for_a_tiffs_compression_is_no_text_of_the_file():
    assert metadata.read_metadata(encoded(picture(1), "TIFF", compression="tiff_lzw")).text == {}


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("kind, is_told", [("trainedAlgorithmicMedia", True), ("digitalCapture", False)])
def test_what_xmp_says_of_the_making_is_shown_and_named(format, kind, is_told):
    address = f"http://cv.iptc.org/newscodes/digitalsourcetype/{kind}"
    xmp = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r DigitalSourceType="{address}"/><r>{address}</r></x:xmpmeta>'
    told = PngImagePlugin.PngInfo()
    told.add_itxt("XML:com.adobe.xmp", xmp)
    how = {"PNG": {"pnginfo": told}, "TIFF": {"tiffinfo": {700: xmp.encode()}}}.get(format, {"xmp": xmp.encode()})
    found = metadata.read_metadata(encoded(picture(1), format, **how))
    assert found.text["DigitalSourceType in XMP"] == kind
    assert any("Its XMP says that it was made" in line for line in found.warnings) == is_told


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
@pytest.mark.parametrize(
    ("mark", "codec"), [("UNICODE\0", "utf-16-be"), ("UNICODE\0", "utf-16-le"), ("ASCII\0\0\0", "utf-8")]
)
def test_a_prompt_in_exif_is_shown_and_named(format, mark, codec):
    for text, is_prompt in (
        ("a château, " * 40 + "Steps: 20, Sampler: Euler a", True),
        ("一个女孩, best quality Steps: 20", True),
        ("a photo of us", False),
        ("", False),
    ):
        exif = Image.Exif()
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = mark.encode() + text.encode(codec)
        found = metadata.read_metadata(encoded(picture(1), format, exif=exif))
        assert found.exif.get("UserComment", "").startswith(text[:10]) and ("UserComment" in found.exif) == bool(text)
        assert any("programs for generating images" in line for line in found.warnings) == is_prompt
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = bytes(range(200, 240))
    assert metadata.read_metadata(encoded(picture(1), format, exif=exif)).exif == {"UserComment": "40 bytes"}


def test_a_size_in_exif_that_is_no_whole_number_hides_nothing_else():
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif).update({0xA002: "64.0", 0xA003: 48, 0x9286: b"ASCII\0\0\0a castle, Steps: 20"})
    found = metadata.read_metadata(encoded(picture(1), "JPEG", exif=exif))
    assert found.exif["ExifImageWidth"] == "64.0"
    assert any("programs for generating images" in line for line in found.warnings)
    assert not any("another size" in line for line in found.warnings)


@pytest.mark.parametrize("key", ["parameters", "prompt", "workflow", "Dream", "sd-metadata", "Title", "Software"])
def test_texts_of_programs_that_generate_are_named(key):
    """As AUTOMATIC1111, ComfyUI and InvokeAI write them, beside what any program writes."""
    texts = PngImagePlugin.PngInfo()
    texts.add_text(key, "a castle in the clouds")
    found = metadata.read_metadata(encoded(picture(1), "PNG", pnginfo=texts))
    assert found.text == {key: "a castle in the clouds"}
    named = any("programs for generating images" in line for line in found.warnings)
    assert named == (key not in ("Title", "Software"))


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "AVIF"])
@pytest.mark.parametrize(
    ("tags", "is_prompt"),
    [
        ({0x110: 'prompt:{"3": {"class_type": "KSampler"}}', 0x10F: 'workflow:{"nodes": []}'}, True),  # ComfyUI's
        ({0x9286: b"UNICODE\0" + '{"sui_image_params": {"prompt": "a castle"}}'.encode("utf-16-be")}, True),  # SwarmUI
        ({0x110: "Dream", 0x10F: "HTC"}, False),
        ({0x110: "Prompt 3"}, False),
        ({0x9286: b"ASCII\0\0\0Steps: 8452, 6.1 km"}, False),
        ({0x9286: b"ASCII\0\0\0Spanish Steps: from below"}, False),
        ({0x9286: b"ASCII\0\0\0a cat\nSteps: 20, Sampler: Euler a"}, True),
        ({0x110: "Pixel 9", 0x10F: "Google", 0x9286: b"ASCII\0\0\0a prompt answer"}, False),
    ],
)
def test_a_prompt_where_other_programs_put_it_is_named(format, tags, is_prompt):
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif).update({tag: value for tag, value in tags.items() if tag == 0x9286})
    exif.update({tag: value for tag, value in tags.items() if tag != 0x9286})
    found = metadata.read_metadata(encoded(picture(1), format, exif=exif.tobytes()))
    assert any("programs for generating images" in line for line in found.warnings) == is_prompt


@pytest.mark.parametrize(("key", "value"), [("invokeai_metadata", "{}"), ("Software", "NovelAI")])
def test_a_prompt_in_texts_of_other_programs_is_named(key, value):
    texts = PngImagePlugin.PngInfo()
    texts.add_text(key, value)
    found = metadata.read_metadata(encoded(picture(1), "PNG", pnginfo=texts))
    assert any("programs for generating images" in line for line in found.warnings)


def test_an_animation_counts_its_frames():
    data = encoded(picture(1), "GIF", save_all=True, append_images=[picture(2), picture(3)])
    assert metadata.read_metadata(data).frames == 3


def test_pixels_have_no_file():
    for source in (picture(1, 30, 20), np.zeros((20, 30, 3), np.uint8), torch.zeros(3, 20, 30)):
        found = metadata.read_metadata(source)
        assert (found.width, found.height, found.bytes) == (30, 20, None)


def test_malformed_exif_is_a_note_and_no_error():
    exif = Image.Exif()
    exif[0x010F] = "Maker" * 10
    exif.get_ifd(0x8769)[0x9003] = "2020:01:01 00:00:00"
    for start in (6, 14, 22, 30, 60):
        raw = bytearray(exif.tobytes())
        raw[start : start + 8] = b"\xff" * 8
        found = metadata.read_metadata(encoded(picture(4), "JPEG", exif=bytes(raw)))
        assert found.format == "JPEG" and all(text.isprintable() for text in found.exif.values())
    found = metadata.read_metadata(encoded(picture(4), "JPEG", exif=b"Exif\0\0garbage!", dpi=(72, 72)))
    assert found.note.startswith("not all could be read: ") and not found.exif
    assert metadata.read_metadata(b"\xff\xd8\xff").note.startswith("its header, texts or profile cannot be read")


def test_every_kind_of_file_has_facts_or_a_reason(tmp_path):
    for name, expected in make(tmp_path).items():
        path = tmp_path / name
        if not path.exists() or not path.is_file():
            with pytest.raises(images.ImageError):
                metadata.read_metadata(path)
            continue
        found = metadata.read_metadata(path)
        json.dumps(asdict(found))
        assert found.bytes is not None and (found.format is not None or expected is not GOOD)


def test_a_file_above_the_limit_is_refused_unread(tmp_path, monkeypatch):
    path = tmp_path / "photo.png"
    path.write_bytes(encoded(picture(5), "PNG"))
    monkeypatch.setattr(images, "MAX_BYTES", path.stat().st_size - 1)
    for read in (metadata.read_metadata, images.load_rgb, images.inspect):
        with pytest.raises(images.ImageError, match="oversized: 0 MB"):
            read(path)
    with pytest.raises(images.ImageError, match="oversized"):
        images.load_rgb(path.read_bytes())


def history(image, format, **options):
    return " ".join(metadata.read_metadata(encoded(image, format, **options)).warnings)


def test_a_files_past_is_told():
    camera = Image.Exif()
    camera[ExifTags.Base.Make] = "Maker"
    camera.get_ifd(ExifTags.IFD.Exif).update({ExifTags.Base.ExifImageWidth: 130, ExifTags.Base.ExifImageHeight: 100})
    image = noise(130, 100)
    assert "carries no EXIF" in history(image, "JPEG") and history(image, "JPEG", exif=camera) == ""
    assert "carries no EXIF" not in history(image, "JPEG", exif=b"Exif\0\0garbage!", dpi=(72, 72))
    assert "Its EXIF records another size" in history(noise(100, 100), "JPEG", exif=camera)
    assert history(noise(100, 130), "JPEG", exif=camera) == ""  # turned
    camera.get_ifd(ExifTags.IFD.Exif).update({ExifTags.Base.ExifImageWidth: 0, ExifTags.Base.ExifImageHeight: 0})
    assert history(image, "JPEG", exif=camera) == ""  # unset
    assert "may be a screenshot" in history(Image.new("RGB", (1080, 1920)), "PNG")
    assert history(Image.new("RGB", (2048, 1536)), "PNG") == ""  # as sites limit any photo
    assert history(Image.new("RGB", (1080, 1921)), "PNG") == ""
    texts = PngImagePlugin.PngInfo()
    texts.add_text("parameters", "a cat, masterpiece")
    assert "with the words that they were given" in history(image, "PNG", pnginfo=texts)


def shrunk(photo):
    """320 pixels of an installed photo, shrunk, so that no earlier codec's blocks are left."""
    image = load_rgb(photo.path)
    return image.resize([side * 2 // 3 for side in image.size], Image.Resampling.LANCZOS).crop((0, 0, 320, 240))


def test_a_jpeg_that_was_saved_as_png_is_noticed():
    found = []
    for photo in [photo for photo in sample.PHOTOS if min(load_rgb(photo.path).size) > 480][:8]:
        image = shrunk(photo)
        again = Image.open(io.BytesIO(encoded(image, "JPEG", quality=50)))
        found.append(["8 × 8 blocks" in history(picture, "PNG") for picture in (image, again)])
        assert "8 × 8 blocks" not in history(image, "AVIF", quality=60)  # which has blocks of its own
    clean, saved = np.sum(found, axis=0)
    assert len(found) == 8 and clean <= 1 and saved >= 6


def with_thumbnail(small):
    """EXIF with a maker and a picture of its own, as cameras write it: two directories of big-endian entries."""
    jpeg, first, second = encoded(small, "JPEG"), 8, 8 + 2 + 12 + 4
    at = second + 2 + 2 * 12 + 4
    head = b"MM\0*" + struct.pack(">I", first)
    head += struct.pack(">HHHI4sI", 1, ExifTags.Base.Make, 2, 4, b"Abc\0", second)
    head += struct.pack(">H", 2)
    for tag, value in ((ExifTags.Base.JpegIFOffset, at), (ExifTags.Base.JpegIFByteCount, len(jpeg))):
        head += struct.pack(">HHII", tag, 4, 1, value)
    return b"Exif\0\0" + head + struct.pack(">I", 0) + jpeg


def test_a_thumbnail_is_read_in_the_formats_of_images_alone(monkeypatch):
    """Of PostScript Pillow would ask Ghostscript."""
    asked = []
    monkeypatch.setattr(Image, "open", lambda file, formats=None, really=Image.open: asked.append(formats) or really(
        file, formats=formats))  # fmt: skip
    image = shrunk(sample.PHOTOS[0])
    history(image, "JPEG", exif=with_thumbnail(image.resize((64, 48))))
    assert len(asked) > 1 and all(formats and "EPS" not in formats for formats in asked[-2:])


def test_a_thumbnail_of_another_picture_is_noticed():
    image, other = (shrunk(photo) for photo in sample.PHOTOS[:2])
    own, foreign = (with_thumbnail(picture.resize((64, 48))) for picture in (image, other))
    assert history(image, "JPEG", exif=own) == ""
    turned = with_thumbnail(image.transpose(Image.Transpose.ROTATE_90).resize((64, 48)))
    assert "shows something else" not in history(image, "HEIF", exif=turned)  # whose pixels are turned when they come
    wide = image.crop((0, 60, image.width, 60 + image.width * 9 // 16))
    barred = ImageOps.pad(wide, (160, 120), color="black")  # as cameras make them of 16:9
    assert history(wide, "JPEG", exif=with_thumbnail(barred)) == ""
    assert "shows something else" in history(wide, "JPEG", exif=foreign)
    assert "shows something else" in history(image, "JPEG", exif=foreign)


def test_where_it_was_taken_is_told():
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "N"
    assert metadata.read_metadata(encoded(picture(0), "JPEG", exif=exif)).exif["GPSLatitudeRef"] == "N"


def test_what_names_a_camera_is_no_screenshot():
    camera = Image.Exif()
    camera[ExifTags.Base.Make] = "Maker"
    assert "screenshot" not in history(Image.new("RGB", (1080, 1920)), "JPEG", exif=camera)
