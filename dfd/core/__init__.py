"""Images decoded safely, files written whole, and runs: folder lock, stop flag, progress, record.

Everything else may import this room; it imports nothing of the package but `dfd.config`.
"""

from dfd.core.images import ImageError, as_rgb, inspect, jpeg_quality, load_rgb, perceptual_hash
from dfd.core.io import atomic_write, digest, read_json, write_json, write_text
from dfd.core.runs import Interrupted, InUse, Stop, bar, cores, deferred, run_lock, terminable

__all__ = [
    "ImageError", "InUse", "Interrupted", "Stop", "as_rgb", "atomic_write", "bar", "cores", "deferred", "digest",
    "inspect", "jpeg_quality", "load_rgb", "perceptual_hash", "read_json", "run_lock", "terminable",
    "write_json", "write_text",
]  # fmt: skip
