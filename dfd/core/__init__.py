"""Images decoded safely, files written whole, and runs: folder lock, stop flag, progress, record.

Everything else may import this room; it imports nothing of the package but `dfd.config`.
"""

from dfd.core.images import ImageError, as_rgb, inspect, load_rgb
from dfd.core.io import atomic_write, digest, read_json, template, write_json, write_text
from dfd.core.runs import Interrupted, InUse, Stop, bar, deferred, run_lock

__all__ = [
    "ImageError", "InUse", "Interrupted", "Stop", "as_rgb", "atomic_write", "bar", "deferred", "digest",
    "inspect", "load_rgb", "read_json", "run_lock", "template", "write_json", "write_text",
]  # fmt: skip
