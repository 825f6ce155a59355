"""Data folders for tests, made on the spot."""

import zlib

from bad_files import picture

from dfd.data import manifest


def fill(folder, count=6, start=0):
    """Put distinct small PNGs into a folder; give their names."""
    folder.mkdir(parents=True, exist_ok=True)
    seed = zlib.crc32(str(folder).rpartition("/data/")[2].encode())  # the same in every run
    for i in range(start, start + count):
        picture(seed + i, 32, 24).save(folder / f"{i}.png")


def classes(data, count=6, start=0, names=("RealPhotos", "ProGAN", "BigGAN")):
    for name in names:
        fill(data / name, count, start)
    return data


def scan(folder, *args, **options):
    return manifest.scan(folder, *args, progress=False, **options)


def reasons(table):
    return {row["path"]: row["reason"] for row in table.attrs["rejected"]}
