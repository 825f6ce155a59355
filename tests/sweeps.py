"""A fabricated parameter sweep: folders as its runs leave them, with scores, a failed run and one still waiting."""

import json

import numpy as np
from score_tables import noisy_table, stage2_table

from dfd.reports import sweep

GRID = """
data: {data}
profile: quick
notebooks: [0, 1, 2]
parameters:
  01.lr_gc: [0.001, 0.0003]
  backbone: [tf_efficientnet_lite0, resnet50]
seeds: [0, 1]
"""


def fabricate(folder, images=60):
    """Write a sweep of eight runs into `folder`/sweep and give its page."""
    (folder / "images").mkdir(parents=True)
    grid = folder / "learning_rates.yaml"
    grid.write_text(GRID.format(data=folder / "images"))
    read = sweep.read(grid)
    out, rng = folder / "sweep", np.random.default_rng(0)
    entries = sweep.entries_of(read, out)
    for number, (name, entry) in enumerate(entries.items()):
        if number == 6:
            lines = ["01_stage1_real_fake failed in cell 9:", "    ValueError: the loss became nan; " + "x" * 200]
            entry |= {"status": "failed", "seconds": 80.0, "last_lines": lines}
        elif number < 6:
            entry |= {"status": "finished", "seconds": 100.0 + 37 * number}
            measure(out / name, number, images, rng)
    return sweep.write(read, entries, out)


def measure(run, number, images, rng):
    """Leave what a run leaves: scores of both stages, some worse than others, and metrics."""
    run.mkdir(parents=True)
    (run / "index.html").write_text("<title>a run</title>")
    done = {f"0{i}": {"status": "finished", "seconds": 30.0 + 12 * number} for i in range(3)}
    (run / "config.json").write_text(json.dumps({"notebooks": done}))
    names = [f"{i}.png" for i in range(images)]
    first, second = noisy_table(images), stage2_table(number, images, push=1 + number / 2).assign(path=names)
    first["logit_fake"] += rng.normal(0, 1 + number, images)
    metrics = {}
    for stage, table, name in (("stage1", first, "auc"), ("stage2", second, "accuracy")):
        table.to_parquet(run / f"scores_{stage}.parquet", index=False)
        value = 0.6 + 0.05 * number
        splits = {"val": value, "test": value - 0.02}
        metrics[stage] = {s: {name: {"value": v, "low": v - 0.08, "high": v + 0.05}} for s, v in splits.items()}
    (run / "metrics.json").write_text(json.dumps(metrics))
