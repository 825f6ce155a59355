"""The seed's networks beside the detector that ships, by its own joint hold-outs: `hold_out_networks.py DATA RUN`.

RUN is the folder from which scripts/ship_detector.py made the detector. For each of the first DRAWS draws both stages
train as the profile quick has it, but shorter, without the sources that the draw leaves out, and judge images of these;
the table compares them with the tuned CLIP heads and with the mean of both, on the same images. A stopped run goes on.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pandas as pd

from dfd import config
from dfd.core.io import atomic_write
from dfd.core.runs import bar
from dfd.data import manifest
from dfd.evaluate import holdouts
from dfd.evaluate.scores import score
from dfd.inference import Stage
from dfd.inference.decide import class_names, logit_columns
from dfd.train import fit
from dfd.train.bank import CONDITIONS
from dfd.train.heads import sources_of

DRAWS, IMAGES = 6, 40  # draws, and images of a source that are judged
STEMS = {"stage1": "01_stage1_real_fake", "stage2": "02_stage2_attribution"}
SHORT = {"num_epochs": 3, "images_per_epoch": 1600, "crops": 3, "patience": 9, "track": "none"}


def of_sources(table: pd.DataFrame, paths: pd.Series) -> pd.Series:
    """Which images are of the sources of these, those too that nobody judged."""
    return table["source"].isin(table.loc[table["path"].isin(paths), "source"])


def judge(stage: str, table: pd.DataFrame, held: pd.Series, data: str, out: Path, change: dict = {}) -> pd.DataFrame:  # noqa: B006
    """Train a stage without the held images, and its score table on some of each source; `change` sets parameters."""
    table = table.assign(split=table["split"].replace("test", "train").mask(held, "test"))
    values: Any = config.profile("quick", STEMS[stage]) | SHORT | change | {"data": data, "out": str(out)}
    fit(table, config.NOTEBOOKS[STEMS[stage]](**values))
    test = table[held & (table["is_fake"] | (stage == "stage1"))]
    test = test.groupby("source").sample(frac=1, random_state=0).groupby(["label", "source"]).head(IMAGES)
    test.attrs = table.attrs
    network = Stage.load(out / config.CHECKPOINTS[stage])
    parts = [score(network, test, condition.degradation, condition.level) for condition in CONDITIONS]
    return pd.concat([part.assign(source=part["path"].map(table.set_index("path")["source"])) for part in parts])


def both(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """The score table whose logits are the mean of two tables' on the same rows, each of unit deviation in a draw."""
    mean, columns = first.copy(), logit_columns(first)
    scaled = [part[columns] / part.groupby("draw")[columns].transform("std").mean(axis=1).to_numpy()[:, None]
              for part in (first, second)]  # fmt: skip
    mean[columns] = (scaled[0].to_numpy() + scaled[1].to_numpy()) / 2
    return mean.assign(prediction=mean[columns].to_numpy().argmax(1)).replace(
        {"prediction": dict(enumerate(class_names(first)))}
    )


def main(data: str, run: Path) -> None:
    table, left_out = manifest.load(run), pd.read_parquet(run / "hold_outs_stage1.parquet")
    table = table.assign(source=sources_of(table))
    table.attrs["root"] = str(Path(data).resolve())
    for stage in config.CHECKPOINTS:
        judged = []
        for number in bar(range(DRAWS), desc=f"{stage} hold-outs", unit="draw"):
            out = run / "networks" / f"{number:02}"
            if not (path := out / f"judged_{stage}.parquet").exists():
                held = of_sources(table, left_out.loc[left_out["draw"] == number, "path"])
                rows = judge(stage, table, held, data, out).assign(draw=number)
                with atomic_write(path) as draft:
                    rows.to_parquet(draft, index=False)
            judged.append(pd.read_parquet(path))
        key = ["draw", "path", "degradation", "level"]
        networks = pd.concat(judged, ignore_index=True)
        clip = networks[key].merge(pd.read_parquet(run / f"hold_outs_{stage}.parquet"), on=key, validate="1:1")
        for name, rows in (("network", networks), ("tuned CLIP", clip), ("mean of both", both(networks, clip))):
            print(f"{stage}, {name}\n{holdouts.summary(rows).round(3).to_string()}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
