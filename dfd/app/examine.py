"""One image, one answer that can be defended: both stages' verdict in words, and the page that shows it.

The probe and the pages of a case show the same Examination. Its pictures are drawn apart, by `dfd.app.evidence`: they
take longer than the answer. Pages hold them as data, and escape all text.
"""

import base64
import io
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image

from dfd.app.evidence import Examination
from dfd.app.metadata import lines, plain, read_metadata, sentence
from dfd.core import ImageError, Source, as_rgb, printable, template
from dfd.inference.decide import decide, limits
from dfd.inference.detector import Detector, Verdict
from dfd.inference.likelihood import rate_of


def examine(detector: Detector, source: Source, name: str | None = None, crops: int | None = None,
        mode: str | None = None) -> Examination:  # fmt: skip
    """Judge one image, and say what the answer rests on; `name` is its path's last part unless given.

    The source, and its errors, are as in `as_rgb`; crops and mode are as in `Stage.stream`.
    """
    image, metadata = as_rgb(source), read_metadata(source)
    if metadata.sha256 != image.info.get("sha256"):
        raise ImageError(f"{source}: it was changed while it was read")
    path = str(source) if isinstance(source, str | Path) else None
    first, *second = detector.scored(image, crops, mode)
    verdict, stage = detector.judge(path, first, *second), detector.stage1
    p_crops = decide(first.crop_logits.numpy(), stage).probabilities[:, 1].tolist()
    scored = tuple(zip(p_crops, first.corners, strict=True))
    name, side = printable(name or (Path(path).name if path else "image")), min(image.size)
    rate = rate_of(stage.rates, side, first.quality)
    text = lines("answer", verdict, detector.threshold, stage, detector.stage2, p_crops, first.needed, rate, side)
    return Examination(name, verdict, limits(stage, detector.threshold), text, scored, metadata, image)


def examine_or_refuse(detector: Detector, source: str | Path | bytes, name: str, *how: Any,
        errors: type[Exception] = ImageError) -> Examination:  # fmt: skip
    """As `examine`, but where it raises one of these errors the reason stands in the Examination's verdict."""
    try:
        return examine(detector, source, name, *how)
    except errors as error:
        reason = str(error).removeprefix(f"{'the given bytes' if isinstance(source, bytes) else source}: ")
        if not isinstance(error, ImageError):
            reason = f"it could not be examined: {type(error).__name__}: {error}"
        return Examination(printable(name), Verdict(name, error=plain(reason, 400)))


def fragment(macro: str, *values: Any) -> Markup:
    """A piece of a page or of the probe: a macro of pieces.html.j2 with its values."""
    pieces = template("pieces.html.j2").make_module({"address": address, "sentence": sentence})
    return Markup(str(getattr(pieces, macro)(*values)).strip())


def address(content: Image.Image | Path, side: int | None = None, format: str = "PNG") -> str:
    """An image, its longer side at most `side` pixels, or a case's archive, as an address that needs no server."""
    if isinstance(content, Path):
        return f"data:application/zip;base64,{base64.b64encode(content.read_bytes()).decode()}"
    small = content.copy()
    small.thumbnail((side or content.width, side or content.height), Image.Resampling.LANCZOS)
    small.save(buffer := io.BytesIO(), format, quality=90, compress_level=4)  # 6: 1 % less, thrice as long
    return f"data:image/{format.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
