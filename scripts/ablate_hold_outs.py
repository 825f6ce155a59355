"""What each loss brings on unseen sources: `ablate_hold_outs.py DATA RUN [STAGE]`, RUN as in hold_out_networks.py.

For each of the first DRAWS joint hold-outs, with the draw's number as its seed, a stage trains as hold_out_networks.py
has it, as configured and without one part at a time, and judges the sources left out. The table has the mean over the
draws of what the part brings, and its interval by Student's t over the draws. In stage 2 residuals of the fakes left
out are also put on the photos left out; beside the network itself the one without a UNet, which learnt by itself, says
what it sees in them. A stopped run goes on.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
from hold_out_networks import judge, of_sources
from scipy.stats import t

from dfd import config
from dfd.analysis import fingerprint
from dfd.core.io import atomic_write
from dfd.data import manifest
from dfd.inference import Stage, decide
from dfd.train.heads import sources_of

DRAWS, PAIRS = 3, 60  # of each generator
JUDGE = "UNet"
LOSSES = ("carried_weight", "adversarial_weight", "perceptual_weight", "consistency_weight")
ALL = {name: config.Stage2.model_fields[name].default for name in LOSSES}  # profile quick leaves them out
SHORT = {  # beside those of hold_out_networks.py
    "stage1": {"perceptual_weight": config.Stage1.model_fields["perceptual_weight"].default},
    "stage2": {"num_epochs": 2, "carried_every": 1} | ALL,
}
PARTS = {
    "stage1": {"adversaries": {"adversarial": False}, "perceptual loss": {"perceptual_weight": 0.0}},
    "stage2": {
        JUDGE: {"extractor": "highpass"},
        "carried loss": {"carried_weight": 0.0},
        "adversarial loss": {"adversarial_weight": 0.0},
        "perceptual loss": {"perceptual_weight": 0.0},
        "consistency loss": {"consistency_weight": 0.0},
        "all but the source loss": dict.fromkeys(LOSSES, 0.0),
    },
}


def judged(stage: str, part: str, number: int, data: str, run: Path, table: pd.DataFrame) -> pd.DataFrame:
    """The score table of a draw without a part, or as configured; what an earlier call judged is read."""
    out = run / "ablation" / f"{number:02}" / part.replace(" ", "_")
    if not (path := out / f"judged_{stage}.parquet").exists():
        left_out = pd.read_parquet(run / "hold_outs_stage1.parquet", columns=["draw", "path"])
        held = of_sources(table, left_out.loc[left_out["draw"] == number, "path"])
        change = {"seed": number} | SHORT[stage] | PARTS[stage].get(part, {})
        rows = judge(stage, table, held, data, out, change).assign(draw=number)
        with atomic_write(path) as draft:
            rows.to_parquet(draft, index=False)
    return pd.read_parquet(path)


def carried(part: str, number: int, run: Path, table: pd.DataFrame) -> pd.DataFrame:
    """What becomes of a draw's fingerprints put on photos, all of sources left out: a row, a column a measure."""
    out, names = run / "ablation" / f"{number:02}", [name.replace(" ", "_") for name in (part, JUDGE)]
    if not (path := out / names[0] / "carried.parquet").exists():
        left_out = pd.read_parquet(run / "hold_outs_stage1.parquet", columns=["draw", "path"])
        held = table[table["path"].isin(left_out.loc[left_out["draw"] == number, "path"])].assign(split="test")
        held.attrs = table.attrs
        stage, judge = (Stage.load(out / name / config.CHECKPOINTS["stage2"]) for name in names)
        summary = fingerprint.summary(fingerprint.carry(stage, held, PAIRS, number, judge))
        row = {name: measure["value"] for name, measure in summary.items()}
        with atomic_write(path) as draft:
            pd.DataFrame([row | {"draw": number, "part": part}]).to_parquet(draft, index=False)
    return pd.read_parquet(path)


def brought(measured: pd.DataFrame, metric: str) -> pd.DataFrame:
    """What each part brings under each condition: mean, low and high of "as configured" less "without"."""
    wide = measured.pivot_table(index=["draw", "condition"], columns="part", values=metric, sort=False)
    gains = wide.drop(columns="none").rsub(wide["none"], axis=0).stack().dropna().rename("gain").reset_index()
    groups = gains.groupby(["part", "condition"], sort=False)["gain"].agg(["mean", "sem", "size"])
    reach = groups["sem"] * t.ppf(0.975, groups["size"] - 1)
    return groups.assign(low=groups["mean"] - reach, high=groups["mean"] + reach)[["mean", "low", "high", "size"]]


def main(data: str, run: Path, stages: list[str]) -> None:
    table = manifest.load(run)
    table = table.assign(source=sources_of(table))
    table.attrs["root"] = str(Path(data).resolve())
    for stage in stages:
        rows, put_on = [], []
        for number in range(DRAWS):
            for part in (*PARTS[stage], "none"):
                draws = decide.by_draw(judged(stage, part, number, data, run, table))
                rows.append(draws.assign(part=part))
                print(stage, number, part, draws.iloc[:, -1].round(3).tolist(), flush=True)
                if stage == "stage2" and part != JUDGE:
                    put_on.append(carried(part, number, run, table))
        metric = "auc" if stage == "stage1" else "accuracy"
        print(brought(pd.concat(rows, ignore_index=True), metric).round(3).to_string())
        if put_on:
            print(pd.concat(put_on).drop(columns="draw").groupby("part", sort=False).mean().round(3).to_string())


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:] or list(config.CHECKPOINTS))
