"""Reading image files."""

import contextlib
import hashlib
import io
import os
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tifffile
from bad_files import GOOD, animated, chunk, encoded, make, picture, png_header
from PIL import Image, ImageFile, ImageOps, PngImagePlugin, TiffImagePlugin
from scipy.fft import dctn

from dfd.app import metadata
from dfd.core import images
from dfd.data import splits


@pytest.fixture
def save(tmp_path):
    """Write an image or bytes under a name, and give the path."""

    def write(name, content, **options):
        path = tmp_path / name
        content.save(path, **options) if isinstance(content, Image.Image) else path.write_bytes(content)
        return path

    return write


@pytest.mark.parametrize("format", images.FORMATS)
def test_format_comes_from_the_content(save, format):
    assert images.inspect(save("photo.xyz", encoded(picture(0), format)))["format"] == format


def test_inspect_describes_the_file(save):
    path = save("photo.png", picture(0, 64, 48))
    found = images.inspect(path)
    assert (found["width"], found["height"]) == (64, 48)
    assert found["bytes"] == len(path.read_bytes())
    assert found["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (found["jpeg_quality"], found["subsampling"]) == (None, None)


@pytest.mark.parametrize("quality", [1, 10, 30, 49, 50, 51, 75, 85, 90, 95, 99, 100])
def test_jpeg_quality_is_what_pillow_saved(save, quality):
    found = images.inspect(save("photo.jpg", picture(0), quality=quality))
    assert abs(found["jpeg_quality"] - quality) <= (1 if quality < 10 else 0)  # at 1 the tables are all clipped at 255


def test_an_opened_picture_has_the_quality_of_its_file(save):
    path = save("photo.jpg", picture(0), quality=35)
    assert images.as_rgb(Image.open(path)).info["jpeg_quality"] == images.load_rgb(path).info["jpeg_quality"] == 35
    assert images.as_rgb(Image.open(path).convert("RGB").crop((0, 0, 40, 40))).info["jpeg_quality"] is None


def test_jpeg_quality_of_other_tables_is_near(save):
    tables = [[2] * 64, [3] * 64]
    assert 90 < images.inspect(save("photo.jpg", picture(0), qtables=tables))["jpeg_quality"] <= 100


@pytest.mark.parametrize(("preset", "low", "high"), [("low", 70, 86), ("medium", 75, 91), ("web_low", 33, 54)])
def test_jpeg_quality_of_photoshops_tables_is_of_like_damage(preset, low, high, save):
    found = images.inspect(save("photo.jpg", picture(0), qtables=preset))  # by PSNR on pictures: within these bounds
    assert low <= found["jpeg_quality"] <= high


@pytest.mark.parametrize("sampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_subsampling_is_what_pillow_saved(save, sampling):
    assert images.inspect(save("photo.jpg", picture(0), subsampling=sampling))["subsampling"] == sampling


def test_photo_of_several_pictures_is_a_jpeg(save):
    path = save("photo.jpg", encoded(picture(0), "MPO", save_all=True, append_images=[picture(1)], quality=80))
    found = images.inspect(path)
    assert (found["format"], found["jpeg_quality"], found["width"]) == ("JPEG", 80, 64)


def test_a_lossless_jpeg_is_described_as_it_is_read(save):
    """Of its kind (SOF3) libjpeg cannot make a draft; 8 x 8 pixels of one colour, by libjpeg-turbo."""
    header = "ffd8ffee000e41646f626500640000000000ffc30011080008000803521100471100421100ffc400160001010100000000000000"
    pixels = "000000000000000705ffda000c03520047004200010000846152000000000000000000000000000000000000000000000001ffd9"
    path = save("scan.jpg", bytes.fromhex(header + pixels))
    assert images.load_rgb(path).getpixel((3, 3)) == (9, 99, 200)
    found = images.inspect(path)
    assert (found["width"], found["height"], found["jpeg_quality"]) == (8, 8, None)


def test_grey_jpeg_has_no_subsampling(save):
    assert images.inspect(save("photo.jpg", picture(0).convert("L")))["subsampling"] is None


def apart(one, two):
    """Differing bits of two hashes."""
    return (int(one, 16) ^ int(two, 16)).bit_count()


def test_near_duplicates_hash_alike_and_others_do_not():
    photo, other = picture(0, 256, 256), picture(1, 256, 256)
    small = photo.resize((128, 128), Image.Resampling.BICUBIC)
    photo, small, other = map(images.perceptual_hash, (photo, small, other))
    assert apart(photo, small) <= splits.NEAR < apart(photo, other)


def test_hash_has_the_signs_of_the_lowest_cosines_beside_their_median():
    side = images.HASH_SIDE
    low = dctn(np.asarray(picture(0, side, side).convert("L"), dtype=float))[: images.HASH_SIZE, : images.HASH_SIZE]
    bits = "".join("01"[int(value > np.median(low))] for value in low.ravel())
    assert apart(images.perceptual_hash(picture(0, side, side)), hex(int(bits, 2))) <= 2  # rounding at the median


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_large_jpeg_is_described_as_it_would_be_after_whole_decoding(mode, orientation, save):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save("photo.jpg", picture(0, 520, 330, 24).convert(mode), exif=exif, quality=85)
    found, whole = images.inspect(path), images.load_rgb(path)
    assert (found["width"], found["height"]) == whole.size
    assert apart(found["phash"], images.perceptual_hash(whole)) <= 12
    assert found["jpeg_quality"] == 85
    assert found["subsampling"] == {"RGB": "4:2:0", "L": None, "CMYK": "other"}[mode]


@pytest.mark.parametrize("share", [0.2, 0.6, 0.98])
def test_large_jpeg_that_ends_early_is_rejected(share, save):
    content = encoded(picture(0, 520, 330), "JPEG", quality=85)
    with pytest.raises(images.ImageError, match="truncated"):
        images.inspect(save("photo.jpg", content[: int(share * len(content))]))


def test_flat_image_has_no_perceptual_hash():
    assert images.perceptual_hash(Image.new("RGB", (64, 64), (90, 120, 200))) is None


def test_exif_orientation_is_applied(save):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    wide = Image.new("RGB", (64, 32), "black")
    wide.paste("white", (0, 0, 32, 32))
    path = save("photo.png", wide, exif=exif)
    found, pixels = images.inspect(path), np.asarray(images.load_rgb(path))
    assert (found["width"], found["height"]) == (32, 64)
    assert pixels.shape == (64, 32, 3)
    assert pixels[:32].min() == 255 and pixels[32:].max() == 0  # the left half has become the upper one


def test_alpha_is_composited_over_white(save):
    image = Image.new("RGBA", (16, 16), (200, 100, 0, 255))
    image.paste((200, 100, 0, 0), (0, 0, 8, 16))
    image.paste((200, 100, 0, 51), (0, 8, 8, 16))  # a fifth opaque
    rgb = images.load_rgb(save("photo.png", image))
    assert rgb.mode == "RGB"
    assert rgb.getpixel((12, 4)) == (200, 100, 0)
    assert rgb.getpixel((4, 4)) == (255, 255, 255)
    assert rgb.getpixel((4, 12)) == (244, 224, 204)  # 255 + (colour - 255) / 5


def test_palette_transparency_is_composited_over_white(save):
    image = Image.new("P", (16, 16), 0)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.paste(1, (8, 0, 16, 16))
    rgb = images.load_rgb(save("photo.png", image, transparency=0))
    assert rgb.getpixel((0, 0)) == (255, 255, 255)
    assert rgb.getpixel((15, 0)) == (40, 50, 60)


@pytest.mark.parametrize("name", ["photo.png", "photo.tiff"])
def test_sixteen_bit_keeps_the_high_byte(save, name):
    pixels = np.full((16, 16), 0x12FF, dtype=np.uint16)
    pixels[:, 8:] = 0xFFFF
    rgb = images.load_rgb(save(name, Image.fromarray(pixels)))
    assert rgb.getpixel((0, 0)) == (0x12,) * 3
    assert rgb.getpixel((15, 0)) == (255,) * 3


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("planes", ["contig", "separate"])
def test_sixteen_bits_by_planes_are_refused_where_they_are_read_wrongly(planes, compression, save):
    pixels = np.asarray(picture(3)).astype(np.uint16) * 257
    stored = np.moveaxis(pixels, 2, 0) if planes == "separate" else pixels
    tifffile.imwrite(file := io.BytesIO(), stored, photometric="rgb", planarconfig=planes, compression=compression)
    path = save("scan.tif", file.getvalue())
    if planes == "separate" and not compression:
        for read in (images.load_rgb, images.inspect):
            with pytest.raises(images.ImageError, match="planes that are read wrongly; save it as"):
                read(path)
    else:
        assert np.array_equal(images.load_rgb(path), picture(3))


@pytest.mark.parametrize(("kind", "is_read"), [(0, True), (1, False), (2, True)])
def test_the_preview_of_a_raw_photo_is_not_judged_for_it(kind, is_read, save):
    path = save("photo.dng", encoded(picture(3), "TIFF", tiffinfo={254: kind}))
    if is_read:
        assert images.load_rgb(path).size == (64, 48) and images.inspect(path)["width"] == 64
        return
    for read in (images.load_rgb, images.inspect, lambda path: images.as_rgb(Image.open(path))):
        with pytest.raises(images.ImageError, match="a raw photo's preview"):
            read(path)


@pytest.mark.parametrize("tag", [254, 284])
@pytest.mark.parametrize(("kind", "value"), [(2, "x"), (12, 1.5), (7, b"\0"), (4, 2**31)])
def test_odd_tags_of_a_tiff_are_no_crash(tag, kind, value, save):
    odd = TiffImagePlugin.ImageFileDirectory_v2()
    odd.tagtype[tag], odd[tag] = kind, value
    path = save("scan.tif", encoded(picture(3), "TIFF", tiffinfo=odd))
    for read in (images.load_rgb, images.inspect):
        with contextlib.suppress(images.ImageError):
            read(path)


def test_images_without_a_suffix_are_known_by_their_beginning(save):
    tifffile.imwrite(file := io.BytesIO(), np.asarray(picture(3)), bigtiff=True)
    for content in (encoded(picture(3), "BMP"), file.getvalue()):
        assert images.begins_like_image(save("photo", content))
    assert not images.begins_like_image(save("notes", b"BMW and other cars, a list"))


@pytest.mark.parametrize("how", [{"tiffinfo": {262: 0}}, {"transparency": 0xFFFF}])
def test_sixteen_bits_that_pillow_reads_otherwise_than_they_are_meant_are_refused(how, save):
    """White is 0, and inverted for 8 bits alone; or one grey is transparent."""
    pixels = Image.fromarray(np.full((16, 16), 0x12FF, dtype=np.uint16))
    path = save("photo.png" if "transparency" in how else "photo.tiff", pixels, **how)
    with pytest.raises(images.ImageError, match=r"16-bit pixels \(mode I;16B?\) have no agreed white"):
        images.load_rgb(path)


def test_twelve_bits_in_sixteen_are_refused(save):
    pixels = np.random.default_rng(0).integers(0, 4096, (16, 16)).astype(np.uint16)
    with pytest.raises(images.ImageError, match="have no agreed white"):
        images.load_rgb(save("photo.png", Image.fromarray(pixels)))


def test_comments_of_a_file_are_left_behind(save):
    path = save("photo.gif", Image.new("L", (16, 16)), comment=b"x" * 70_000)
    expected = {"jpeg_quality": None, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert images.load_rgb(path).info == images.load_rgb(path.read_bytes()).info == expected
    with Image.open(path) as opened:
        assert images.as_rgb(opened).info == {"jpeg_quality": None}


@pytest.mark.parametrize("format", ["AVIF", "HEIF"])
def test_what_phones_and_the_web_give_is_upright_and_of_its_colours(format, save):
    """A wide picture, red on the left; its EXIF says that the camera was turned."""
    wide = Image.new("RGB", (96, 64), (40, 90, 200))
    wide.paste((200, 30, 40), (0, 0, 48, 64))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned to the right: red comes on top
    path = save("photo.bin", encoded(wide, format, exif=exif.tobytes(), quality=95))
    image = np.asarray(images.load_rgb(path)).astype(int)
    assert image.shape == (96, 64, 3) and images.inspect(path)["format"] == format
    assert np.abs(image[8:40].mean((0, 1)) - [200, 30, 40]).max() < 6
    assert np.abs(image[56:88].mean((0, 1)) - [40, 90, 200]).max() < 6


def test_cmyk_becomes_rgb(save):
    rgb = images.load_rgb(save("photo.tiff", Image.new("CMYK", (16, 16), (255, 0, 0, 0))))
    assert rgb.getpixel((3, 3)) == (0, 255, 255)


def test_first_frame_counts(save):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    rgb = images.load_rgb(save("photo.gif", frames[0], save_all=True, append_images=frames[1:]))
    assert rgb.getpixel((3, 3)) == (255, 0, 0)


def test_error_names_file_and_reason(save):
    path = save("photo.jpg", b"<html>404</html>")
    with pytest.raises(images.ImageError, match=r"photo\.jpg: not an image: an HTML page or SVG drawing"):
        images.load_rgb(path)
    with pytest.raises(images.ImageError, match=r"missing\.jpg: cannot be read: No such file"):
        images.load_rgb(path.with_name("missing.jpg"))


@pytest.mark.timeout(10)
def test_pipe_is_never_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(images.ImageError, match="not a regular file"):
        images.inspect(tmp_path / "pipe.png")


def test_truncated_file_is_an_error_even_if_a_library_allows_it(save, monkeypatch):
    data = encoded(picture(0, 256, 256), "JPEG")
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(images.ImageError, match="truncated"):
        images.load_rgb(save("photo.jpg", data[: len(data) // 2]))


@pytest.mark.parametrize("what", ["text", "international text", "many texts", "profile"])
def test_a_sound_png_with_much_metadata_is_read(what, save):
    """Above a megabyte of text or profile Pillow gives up, of pixels that are sound."""
    info, image = PngImagePlugin.PngInfo(), picture(3)
    for number in range(80 if what == "many texts" else 1):
        add = info.add_itxt if what == "international text" else info.add_text
        add(f"key {number}", "x" * (900_000 if what == "many texts" else 3_000_000), zip=True)
    options = {"icc_profile": bytes(3_000_000)} if what == "profile" else {"pnginfo": info}
    path = save("photo.png", image, **options)
    with pytest.raises(ValueError, match="MAX_TEXT"), Image.open(path) as opened:
        opened.load()
    assert np.array_equal(np.asarray(images.load_rgb(path)), np.asarray(image.convert("RGB")))
    assert images.inspect(path)["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("key", ["interlace", "exif", "transparency", "gamma", "bbox", "icc_profile", "xmp"])
@pytest.mark.parametrize("behind", [False, True])
def test_a_text_called_like_a_fact_changes_no_pixel(key, behind, save):
    """Pillow keeps texts beside what it decodes by: one called interlace makes another picture than viewers show."""
    exif, image = Image.Exif(), picture(3)
    exif[0x0112] = 3
    text, data = key.encode() + b"\0" + (exif.tobytes() if key == "exif" else b"no"), encoded(image, "PNG")
    place = len(data) - 12 if behind else 33  # before the end, or after the header
    path = save("photo.png", data[:place] + chunk(b"tEXt", text) + data[place:])
    assert np.array_equal(np.asarray(images.load_rgb(path)), np.asarray(image.convert("RGB")))
    assert images.inspect(path) == images.inspect(save("plain.png", data)) | {
        name: images.inspect(path)[name] for name in ("sha256", "bytes")
    }


def test_what_viewers_without_animation_show_of_a_png_is_judged(save):
    """Pillow takes the first frame, before the pixels of the picture itself; libpng knows of none."""
    image = picture(3, 80, 60).convert("RGB")
    path = save("photo.png", animated(image, picture(4, 80, 60)))
    with Image.open(path) as opened:
        assert not np.array_equal(np.asarray(opened), np.asarray(image))  # so this test would see it
    assert np.array_equal(np.asarray(images.load_rgb(path)), np.asarray(image))
    assert images.inspect(path)["phash"] == images.inspect(save("plain.png", image))["phash"]
    (moving := [picture(1), picture(2)])[0].save(path, save_all=True, append_images=moving[1:])
    assert np.array_equal(np.asarray(images.load_rgb(path)), np.asarray(moving[0].convert("RGB")))


@pytest.mark.parametrize("place", ["behind the pixels", "before the palette", "twice"])
def test_a_transparency_out_of_place_changes_no_pixel(place, save):
    image = picture(3).convert("RGB").quantize(64)
    data = encoded(image, "PNG")
    at = {"behind the pixels": data.index(b"IEND"), "before the palette": 37, "twice": data.index(b"IDAT")}[place] - 4
    first = chunk(b"tRNS", bytes([255])) if place == "twice" else b""
    path = save("photo.png", data[:at] + first + chunk(b"tRNS", bytes(64)) + data[at:])
    assert np.array_equal(np.asarray(images.load_rgb(path)), np.asarray(image.convert("RGB")))
    clear = images.load_rgb(save("clear.png", image, transparency=bytes(64)))  # in its place it counts
    assert np.asarray(clear).min() == 255


def test_an_avif_that_shows_a_part_of_its_pixels_is_refused(save):
    """Pillow gives all of them; libheif, and so what reads HEIC, the part alone."""
    data, box = encoded(picture(3, 64, 64), "AVIF"), b"\0\0\0(clap" + bytes(32)
    start = int.from_bytes(data[:4])  # behind ftyp; free space is where a reader finds no box of its own
    images.load_rgb(save("photo.avif", data))
    long = b"\0\0\0\1clap" + (48).to_bytes(8) + bytes(32)  # a size of 64 bits
    wide, late = b"\0\0\0\x30clap" + bytes(40), bytes(70_000) + box
    for content in (box, long, wide, late):
        free = (8 + len(content)).to_bytes(4) + b"free" + content
        with pytest.raises(images.ImageError, match="AVIF that shows more or less than its pixels"):
            images.load_rgb(save("part.avif", data[:start] + free + data[start:]))


@pytest.mark.parametrize("format", ["AVIF", "HEIF", "PNG"])
@pytest.mark.parametrize(("transfer", "is_read"), [(13, True), (1, True), (16, False), (18, False)])
def test_hdr_is_refused_for_its_values_are_no_srgb(format, transfer, is_read, save):
    """PQ (16) and HLG (18) of ITU-T H.273: viewers show other greys, by 20 to 60 levels on a photo."""
    data = encoded(picture(3), format)
    if format == "PNG":
        data = data[:33] + chunk(b"cICP", bytes([9, transfer, 0, 1])) + data[33:]
    else:
        start = data.index(b"colrnclx") + 10
        data = data[:start] + transfer.to_bytes(2) + data[start + 2 :]
    path = save("photo.bin", data)
    for read in (images.load_rgb, images.inspect):
        if is_read:
            read(path)
        else:
            with pytest.raises(images.ImageError, match=rf"{format} in HDR \(PQ or HLG\); save what it shows as PNG"):
                read(path)
    if format != "PNG":  # the transfer of what a gain map makes of it, not of its own pixels
        entry = b"\0\0\0\x15infe\2\0\0\0\0\2\0\0tmap\0"
        images.load_rgb(save("map.bin", data + entry))
        images.load_rgb(save("film.bin", encoded(picture(3), format) + b"\0\0\0\x1bmpvdcolrnclx\0\x09\0\x10\0\x09\0"))
    if not is_read:
        with pytest.raises(images.ImageError, match="in HDR"):  # of that item alone
            images.load_rgb(save("free.bin", data + b"\0\0\0\x0cfreetmap"))


@pytest.mark.parametrize("is_transparent", [False, True])
def test_a_gif_whose_first_frame_leaves_its_screen_open_is_refused(is_transparent, tmp_path):
    options = {"transparency": 255} if is_transparent else {}
    Image.effect_mandelbrot((40, 30), (-2, -1, 1, 1), 50).convert("P").save(file := io.BytesIO(), "GIF", **options)
    data = bytearray(file.getvalue())
    data[6:10] = (97).to_bytes(2, "little") + (71).to_bytes(2, "little")  # the screen, larger than the frame
    (path := tmp_path / "part.gif").write_bytes(data)
    if is_transparent:  # so is the rest, in Pillow as in viewers
        assert images.load_rgb(path).getpixel((90, 60)) == (255, 255, 255)
    else:
        with pytest.raises(images.ImageError, match="GIF that shows more or less than its pixels"):
            images.load_rgb(path)


def test_what_stands_behind_a_png_costs_nothing(save):
    data = encoded(picture(1), "PNG")
    path = save("padded.png", data + bytes(24_000_000))
    tracemalloc.start()
    assert np.array_equal(np.asarray(images.load_rgb(path)), np.asarray(picture(1).convert("RGB")))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 24_000_000  # a chunk for each twelve zeros took twenty times as much


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_pixel_limit_is_checked_before_decoding(save, monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("decoded"))
    with pytest.raises(images.ImageError, match="oversized: 12000 x 11000"):
        images.inspect(save("photo.png", png_header(12_000, 11_000)))


def test_a_40_megapixel_photo_passes(save):
    path = save("photo.png", Image.new("L", (8000, 5000)), compress_level=1)
    assert images.inspect(path)["width"] == 8000


@pytest.mark.filterwarnings("ignore")
def test_load_rgb_takes_exactly_what_inspect_takes(tmp_path):
    for name, expected in make(tmp_path).items():
        path = tmp_path / name
        for read in (images.inspect, images.load_rgb):
            if expected is GOOD:
                read(path)
            elif path.exists() and path.is_file():
                with pytest.raises(images.ImageError, match=f"(?i){expected}"):
                    read(path)


def test_a_text_whose_checksum_is_wrong_does_not_make_a_sound_png_damaged(tmp_path):
    data = encoded(picture(1), "PNG")
    text = b"\0\0\0\x05tEXtA\0abc" + b"\0\0\0\0"  # its CRC is not that
    (tmp_path / "a.png").write_bytes(data[:33] + text + data[33:])
    assert images.load_rgb(tmp_path / "a.png").tobytes() == picture(1).convert("RGB").tobytes()
    (tmp_path / "b.png").write_bytes(data[:33] + text + data[33:50])
    with pytest.raises(images.ImageError, match="damaged"):
        images.load_rgb(tmp_path / "b.png")


def test_reading_in_threads_leaves_warnings_as_they_were(save):
    path, before = save("photo.jpg", picture(0)), warnings.filters[:]
    with ThreadPoolExecutor(4) as pool:
        for _ in pool.map(images.load_rgb, [path] * 200):
            pass
    assert warnings.filters == before


def test_a_quality_is_that_of_the_table_which_the_first_component_names():
    data = encoded(picture(0, 64, 64), "JPEG", quality=20, subsampling=0)
    parts, at = bytearray(data), 2
    while parts[at + 1] != 0xDA:  # number each table one higher, in DQT and SOF0
        size = int.from_bytes(parts[at + 2 : at + 4])
        if parts[at + 1] == 0xDB:
            for place in range(at + 4, at + 2 + size, 65):
                parts[place] += 1
        if parts[at + 1] == 0xC0:
            for place in range(at + 12, at + 2 + size, 3):
                parts[place] += 1
        at += 2 + size
    plain, renumbered = images.load_rgb(data), images.load_rgb(bytes(parts))
    assert np.array_equal(plain, renumbered)
    assert plain.info["jpeg_quality"] == renumbered.info["jpeg_quality"] == 20


@pytest.mark.parametrize("format", ["JPEG", "JPEG with EXIF", "PNG", "WEBP", "TIFF"])
def test_an_orientation_in_xmp_turns_nothing_as_in_viewers(format, save):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="6"/></x:xmpmeta>'
    maker, told = Image.Exif(), PngImagePlugin.PngInfo()
    maker[0x010F] = "Maker"
    told.add_itxt("XML:com.adobe.xmp", xmp.decode())
    options = {
        "PNG": {"pnginfo": told},
        "TIFF": {"tiffinfo": {700: xmp}},
        "JPEG with EXIF": {"exif": maker, "xmp": xmp},
    }
    data = encoded(picture(0, 40, 20), format.split()[0], **options.get(format, {"xmp": xmp}))
    path = save("photo", data)
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.getexif().get(0x0112) == 6  # Pillow would turn it
    with Image.open(io.BytesIO(data)) as opened:
        assert format == "TIFF" or images.as_rgb(opened).size == (40, 20)  # a TIFF is turned where it is loaded
    found = images.inspect(path)
    assert images.load_rgb(path).size == (found["width"], found["height"]) == (40, 20)
    assert "Orientation" not in metadata.read_metadata(path).exif


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_each_orientation_of_exif_turns_as_pillow_does(orientation, format):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(0, 40, 24), format, exif=exif)
    with Image.open(io.BytesIO(data)) as opened:
        assert np.array_equal(images.load_rgb(data), ImageOps.exif_transpose(opened).convert("RGB"))
    found = images.inspect(data)
    assert (found["width"], found["height"]) == images.load_rgb(data).size


def test_pixels_that_were_read_here_keep_their_quality():
    image = images.load_rgb(encoded(picture(0, 64, 64), "JPEG", quality=20))
    assert images.as_rgb(image).info == {"jpeg_quality": 20}
    claims = PngImagePlugin.PngInfo()
    claims.add_text("jpeg_quality", "75")
    with Image.open(io.BytesIO(encoded(picture(0), "PNG", pnginfo=claims))) as opened:
        assert images.as_rgb(opened).info == {"jpeg_quality": None}
