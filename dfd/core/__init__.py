"""Images decoded safely, files written whole, and runs: folder lock, stop flag, progress, record.

Everything else may import this room; it imports nothing of the package.
"""

from dfd.core.images import FORMATS, ImageError, Source, as_rgb, begins_like_image, inspect, jpeg_quality, load_rgb
from dfd.core.images import content_of, perceptual_hash, subsampling
from dfd.core.io import PART, TEMPLATES, atomic_write, digest, explained, printable, read_json, read_table, sha256_of
from dfd.core.io import code, template, write_json, write_text
from dfd.core.runs import HEADLESS, Interrupted, InUse, bar, command_line, cores, deferred, elapsed, now, run_lock
