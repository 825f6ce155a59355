"""Shrinkage of heads on CLIP's frozen tokens, by joint hold-outs: `hold_out_shrinkage.py DATA OUT`.

At most 80 images a source, one crop enlarged to 224 px as it is, as JPEG 95, 75 and 50, and one degraded, on which the
heads learn: what `tune_clip.py --size small` takes. OUT keeps the tokens, which take 17 minutes on two cores; a draw
takes ten seconds. Printed are means over the draws: stage 1's AUC, the mean recall of names, and the AUROC of telling a
generator that is left out altogether from unseen sources of the others, by how little speaks for any name.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from tune_clip import DEVICE, SMALL, features, kept_as, listed, pooled, views

from dfd.core.runs import bar
from dfd.models.clip import BLOCKS, Trunk
from dfd.train.bank import CONDITIONS
from dfd.train.heads import Discriminants, joint_hold_outs

TRIED = (0.1, 0.5, 2.0, 8.0, 32.0)


def tokens(table: pd.DataFrame, out: Path) -> np.ndarray:
    """Tokens (N, V, D) float16 of the conditions and of one degraded view, kept in OUT."""
    pool = views(table, out / "views.npy", SMALL)
    return kept_as(out / "tokens.npy", lambda: features(Trunk(BLOCKS).to(DEVICE), pool, range(SMALL.views + 1)))


def measured(table: pd.DataFrame, seen: np.ndarray, draws: list[dict[str, str]]) -> pd.DataFrame:
    """A row a measure, draw, condition and shrinkage."""
    rows, is_fake = [], table["is_fake"].to_numpy()
    stage1 = Discriminants(seen, is_fake.astype(int), table["source"].to_numpy(), TRIED[0])
    fakes, generators = table[is_fake].reset_index(drop=True), pd.Categorical(table["label"][is_fake])
    stage2 = Discriminants(seen[is_fake], generators.codes.astype(int), fakes["source"].to_numpy(), TRIED[0])
    cases = [("stage 1", None), ("names", None), *(("unknown", g) for g in range(len(generators.categories)))]
    for measure, unknown in cases:
        heads, images = (stage1, table) if measure == "stage 1" else (stage2, fakes)
        truth = images["is_fake"] if measure == "stage 1" else generators.codes
        weight = 1 / images.groupby(["label", "source"])["label"].transform("size").to_numpy()
        for number, draw in enumerate(bar(draws, desc=measure)):
            without = {*draw.values()} if unknown is None else {*draw.values(), unknown}
            held = images["source"].isin(list(draw.values())).to_numpy() | (truth == unknown)
            of, alike = np.asarray(truth)[held], {"sample_weight": weight[held]}
            for shrinkage in TRIED:
                heads.shrinkage = shrinkage
                matrix, bias = pooled(*heads.fit(without))
                logits = heads.features[held, : len(CONDITIONS)].astype(np.float32) @ matrix.T + bias
                for condition, answer in zip(CONDITIONS, logits.swapaxes(0, 1), strict=True):
                    if measure == "names":
                        value = balanced_accuracy_score(of, answer.argmax(1))
                    elif measure == "unknown":
                        value = roc_auc_score(of == unknown, -answer.max(1), **alike)
                    else:
                        value = roc_auc_score(of, answer[:, 1] - answer[:, 0], **alike)
                    rows.append((measure, condition.name, shrinkage, f"{unknown} {number}", value))
    return pd.DataFrame(rows, columns=["measure", "condition", "shrinkage", "draw", "value"])


def main(data: Path, out: Path, count: int, seed: int) -> None:
    """Print the means, and the mean differences from the first shrinkage with their standard errors over draws."""
    out.mkdir(parents=True, exist_ok=True)
    table = listed(data, SMALL)
    draws = list(joint_hold_outs(table["label"].to_numpy(), table["source"].to_numpy(), count, seed))
    rows = measured(table, tokens(table, out), draws)
    print(rows.pivot_table("value", ["measure", "condition"], "shrinkage", sort=False).round(3).to_string())
    of_draws = rows.pivot_table("value", ["measure", "draw"], "shrinkage")
    gains = of_draws.sub(of_draws[TRIED[0]], axis=0).groupby("measure")
    print(f"\nMore than by {TRIED[0]}, mean of the conditions\n{gains.mean().round(3).to_string()}")
    print(f"\nIts standard error, draws being taken as independent\n{gains.sem().round(3).to_string()}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the four classes, with provenance.csv beside it")
    parser.add_argument("out", type=Path, help="folder for the tokens; the same again goes on")
    parser.add_argument("--draws", type=int, default=12, help="joint hold-outs (default 12)")
    parser.add_argument("--seed", type=int, default=1, help="of the draws (default 1)")
    asked = parser.parse_args()
    main(asked.data, asked.out, asked.draws, asked.seed)
