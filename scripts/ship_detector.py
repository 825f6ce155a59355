"""Make the detector that ships, in data/detector, from a run of profile clip: `ship_detector.py reports/ship`.

data/detector/README.md, which this writes, has the command that makes the run.
"""

from __future__ import annotations

import sys
from pathlib import Path

from dfd import config
from dfd.core.io import template, write_text
from dfd.data import manifest
from dfd.evaluate import holdouts
from dfd.inference.detector import Detector
from dfd.inference.stage import ship
from dfd.models.clip import BLOCKS, WHEEL


def card(run: Path) -> str:
    """The model card: what it is, its numbers by joint hold-outs, and its rates by source."""
    detector, table = Detector.load(config.DETECTOR), manifest.load(run)
    judged = {stage: holdouts.load(run, getattr(detector, stage)) for stage in config.SHIPPED}
    sources = {stage: holdouts.by_source(rows, getattr(detector, stage)) for stage, rows in judged.items()}
    return template("detector_card.md.j2").render(
        blocks=BLOCKS,
        wheel=WHEEL,
        stage1=detector.stage1,
        stage2=detector.stage2,
        images=table["label"].value_counts().to_dict(),
        sources=judged["stage1"]["source"].nunique(),
        summary1=holdouts.summary(judged["stage1"]).reset_index(),
        summary2=holdouts.summary(judged["stage2"]).reset_index(),
        sources1=sources["stage1"],
        sources2=sources["stage2"],
    )


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    ship(folder, config.DETECTOR)
    print(f"Wrote {write_text(config.DETECTOR / 'README.md', card(folder))}")
