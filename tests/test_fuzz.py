"""Damaged image files through predict, scan and the probe: each is answered or refused, none hangs, memory is bounded.

A thousand of them, or as many as DFD_FUZZ says; docs/reliability.md has the figures for 20,000.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from bad_files import encoded, picture
from networks import content
from PIL import Image

from dfd.config import CHECKPOINTS
from dfd.inference import files as files_module

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "HEIF")
FILES = int(os.environ.get("DFD_FUZZ", "1000"))
SEED = 20
LIMIT = 2048  # megabytes on top of those before the first file: some damage makes an image of 128 million pixels

RUN = """
import faulthandler, json, resource, sys, time
from dataclasses import asdict
from pathlib import Path
from dfd.app.examine import examine_or_refuse
from dfd.app.metadata import read_metadata
from dfd.core import images
from dfd.data import manifest
from dfd.inference import Detector
from dfd.scale.score import Item, decode

run, data, files = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
faulthandler.dump_traceback_later(240 + files // 4, exit=True)  # a hang ends with a traceback
detector = Detector.load(run)
list(detector.predict([str(data / "ProGAN" / "good.png")]))

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

def passed(verdicts):
    last, counts = time.monotonic(), {"answered": 0, "refused": 0, "slowest": 0.0}
    for verdict in verdicts:
        assert (verdict.error is None) == (verdict.p_fake is not None)
        assert verdict.error is None or (len(verdict.error) > 8 and "\\n" not in verdict.error), verdict.error
        counts["answered" if verdict.error is None else "refused"] += 1
        counts["slowest"], last = max(counts["slowest"], time.monotonic() - last), time.monotonic()
    return counts | {"megabytes": peak() - before}

before, paths = peak(), [data / "RealPhotos" / str(number) for number in range(files)]
print(json.dumps({"predict": passed(detector.predict(map(str, paths)))}))
uploads = (examine_or_refuse(detector, path.read_bytes(), path.name, 1).verdict for path in paths)
print(json.dumps({"upload": passed(uploads)}))
how = None, None, print, decode  # as an actor of `score` reads and judges
print(json.dumps({"score": passed(detector.predict([Item(path) for path in paths], *how))}))
last, slowest = time.monotonic(), 0.0
for path in paths:
    json.dumps(asdict(read_metadata(path)))
    try:
        images.inspect(path)  # as a scan does, one by one
    except images.ImageError:
        pass
    slowest, last = max(slowest, time.monotonic() - last), time.monotonic()
table = manifest.scan(data, progress=False)
refused = len(table.attrs["rejected"])
rows = {"answered": len(table) - 1, "refused": refused, "slowest": slowest}
print(json.dumps({"scan": rows | {"megabytes": peak() - before}}))
"""


def originals():
    """One file of each format, and some of their varieties, as bytes."""
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Maker", 6
    exif.get_ifd(0x8769)[0x9003] = "2020:01:01 00:00:00"
    base = picture(7, 72, 56)
    made = [encoded(base, name) for name in FORMATS]
    made += [encoded(base, name, exif=exif.tobytes()) for name in ("JPEG", "PNG", "WEBP", "TIFF")]
    made += [encoded(base, "JPEG", progressive=True), encoded(base.convert("CMYK"), "JPEG")]
    made += [encoded(base.quantize(16), "PNG", transparency=0), encoded(base.convert("RGBA"), "WEBP", lossless=True)]
    made += [encoded(base, "TIFF", compression=name) for name in ("tiff_lzw", "jpeg", "tiff_deflate")]
    made += [encoded(base, name, save_all=True, append_images=[picture(8, 72, 56)]) for name in ("GIF", "WEBP", "PNG")]
    return made


def mutated(data, rng):
    """Damage bytes anywhere, or in the header; cut, double, swap or insert a piece; or set a number to an extreme."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        reach = len(data) if rng.random() < 0.5 else min(len(data), 128)  # as often in the header as anywhere
        at, kind = int(rng.integers(max(reach, 1))), int(rng.integers(6))
        length = int(rng.integers(1, 64))
        piece = bytes(data[at : at + length])
        if kind == 0:
            data[at : at + 1] = bytes([int(rng.integers(256))])
        elif kind == 1:
            data[at : at + length] = rng.bytes(len(piece))
        elif kind == 2:
            del data[at : len(data) if rng.random() < 0.3 else at + length]
        elif kind == 3:
            data[at:at] = piece * int(rng.integers(1, 20))
        elif kind == 4:
            extreme = (b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\0\0\xff\xff", b"\x80\0\0\0")[rng.integers(5)]
            data[at : at + 4] = extreme
        else:
            other = int(rng.integers(max(len(data), 1)))
            data[at : at + length], data[other : other + length] = data[other : other + length], piece
    return bytes(data)


def test_mutations_are_seeded_and_reach_header_and_body():
    data = encoded(picture(7), "JPEG")
    first, again = ([mutated(data, np.random.default_rng(seed)) for seed in range(50)] for _ in range(2))
    assert first == again and len(set(first)) > 45
    assert sum(one[:64] != data[:64] for one in first) > 10 and sum(one[:64] == data[:64] for one in first) > 5


@pytest.mark.slow
@pytest.mark.timeout(300 + FILES // 2)
def test_damaged_files_are_answered_or_refused_everywhere(tmp_path):
    for stage, name in CHECKPOINTS.items():
        files_module.save_checkpoint(content(stage), tmp_path / name)
    data, rng, sources = tmp_path / "data", np.random.default_rng(SEED), originals()
    for label in ("RealPhotos", "ProGAN"):
        (data / label).mkdir(parents=True)
    picture(1).save(data / "ProGAN" / "good.png")
    for number in range(FILES):
        (data / "RealPhotos" / str(number)).write_bytes(mutated(sources[number % len(sources)], rng))
    call = [sys.executable, "-W", "error", "-c", RUN, str(tmp_path), str(data), str(FILES)]
    result = subprocess.run(call, capture_output=True, text=True, timeout=280 + FILES // 2)
    assert result.returncode == 0, result.stderr[-2000:]
    found = {}
    for line in result.stdout.splitlines():
        found |= json.loads(line) if line.startswith("{") else {}
    print(found)
    for way in ("predict", "score", "upload", "scan"):
        assert found[way]["answered"] + found[way]["refused"] == FILES
        assert found[way]["answered"] > FILES / 10 and found[way]["refused"] > FILES / 10  # neither all whole nor dead
        assert found[way]["slowest"] < 10 and found[way]["megabytes"] < LIMIT  # seconds between two answers; the peak
    assert len({found[way]["answered"] for way in ("predict", "score", "upload", "scan")}) == 1
