"""Linear heads on the feature bank, and judgements of images by heads that never saw their source.

A head is Fisher's linear discriminant, with one covariance; a class scores the mean of its sources, which weigh by the
root of their size. Scatter between a class's sources counts, so that what tells sources apart does not tell classes.
"""

import copy
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.linalg import cho_factor, cho_solve
from sklearn.metrics import log_loss, roc_auc_score
from torch import nn

from dfd import config
from dfd.core import atomic_write, bar, run_lock
from dfd.degrade import registry
from dfd.inference import Stage, build_model, decide, update_checkpoint
from dfd.inference.openset import PER_SOURCE, fit_subspace
from dfd.models.clip import SourceHead
from dfd.train.bank import CONDITIONS, build
from dfd.train.checkpoint import Checkpoint
from dfd.train.loop import OnEpoch

TWINS = ["label", "group"]  # what near-duplicates share; with one in another source, a head would know the image
UNKNOWN_DRAWS = 5  # for each generator that is left out
SAMPLE = 2000  # images that means and deviations of the features are taken from


class Discriminants:
    """Linear discriminants of K classes on (N, V, D) features, with any of the sources left out.

    `classes` (N,) are numbers, `sources` (N,) names; `shrinkage` is added to the covariance of standardised features.
    """

    def __init__(self, features: np.ndarray, classes: np.ndarray, sources: np.ndarray, shrinkage: float):
        self.features, self.shrinkage = features, shrinkage
        rows = np.linspace(0, len(features) - 1, min(SAMPLE, len(features))).astype(int)
        sample = features[rows].astype(np.float32).reshape(-1, features.shape[-1])
        self.mean, self.scale = sample.mean(0), sample.std(0) + 1e-3
        self.cells: Any = pd.DataFrame({"class": classes, "source": sources}).groupby(["class", "source"]).indices
        self.means, sides = {}, (int(classes.max()) + 1, features.shape[-1], features.shape[-1])
        self.totals = np.zeros(sides, np.float32)
        for cell, rows in bar(self.cells.items(), desc="heads", unit="source"):
            self.means[cell], covariance = self._moments(rows)
            self.totals[cell[0]] += len(rows) ** 0.5 * covariance

    def fit(self, without: Collection = ()) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Weights (S, D), biases (S,) and shares (S, K) in their classes of all but some sources or class numbers."""
        gone = [cell for cell in self.cells if not set(without).isdisjoint(cell)]  # in one order, whatever the hashes
        kept, within = [cell for cell in self.cells if cell not in gone], list(self.totals)
        for cell in gone:
            within[cell[0]] = within[cell[0]] - len(self.cells[cell]) ** 0.5 * self._moments(self.cells[cell])[1]
        means = np.stack([self.means[cell] for cell in kept])
        roots = np.array([len(self.cells[cell]) ** 0.5 for cell in kept], np.float32)
        shares = roots[:, None] * (np.array([cell[0] for cell in kept])[:, None] == np.arange(len(within)))
        left = np.flatnonzero(sums := shares.sum(0))
        parts = (within[k] / sums[k] + np.cov(means.T, aweights=shares[:, k], ddof=0, dtype=np.float32) for k in left)
        scatter: Any = sum(parts) / len(left)
        scatter[np.diag_indices(len(scatter))] += self.shrinkage
        factor = cho_factor(scatter, lower=True, overwrite_a=True, check_finite=False)
        directions = cho_solve(factor, means.T, check_finite=False).T
        weight = directions / self.scale
        return weight, -(means * directions).sum(1) / 2 - weight @ self.mean, shares / np.maximum(sums, 1e-9)

    def _moments(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean (D,) and covariance (D, D) of the standardised features of these images."""
        x = self.features[rows].astype(np.float32).reshape(-1, self.features.shape[-1])
        x -= self.mean  # in place: a source may be all of a class
        x /= self.scale
        mean = x.mean(0)
        x -= mean
        return mean, x.T @ x / len(x)


class Joint:
    """Discriminants on each kind of features, which stand side by side, split before `kinds`; their logits add up."""

    def __init__(self, features: np.ndarray, kinds: Sequence[int], *given: Any):
        self.features = features
        self.parts = [Discriminants(part, *given) for part in np.split(features, kinds, axis=-1)]

    def head(self, like: nn.Module, without: Collection = ()) -> Any:
        """A copy of a stage's head, linear or of sources, that learnt from all but some sources or class numbers."""
        weights, biases, (shares, *_) = zip(*(part.fit(without) for part in self.parts), strict=True)
        weight, bias = np.concatenate(weights, axis=1), np.sum(biases, axis=0)
        if isinstance(like, SourceHead):
            kept = (rows for cell, rows in self.parts[0].cells.items() if set(without).isdisjoint(cell))
            centre = self.parts[0].mean[like.place]
            tokens = (torch.from_numpy(self.features[rows, :, like.place] - centre) for rows in kept)
            subjects = torch.stack([F.normalize(x, dim=-1).mean((0, 1)) for x in tokens]).numpy()
            state = {"weight": weight, "bias": bias, "shares": shares, "subjects": subjects, "centre": centre}
        else:
            state = {"weight": shares.T @ weight, "bias": np.where(shares.any(0), shares.T @ bias, -np.inf)}
            if len(like.get_parameter("bias")) == 1:  # one logit: that of fake above that of real
                state = {name: values[1:] - values[:1] for name, values in state.items()}
        head = copy.deepcopy(like)
        head.load_state_dict({name: torch.from_numpy(values.astype(np.float32)) for name, values in state.items()})
        return head


def joint_hold_outs(labels: Any, sources: np.ndarray, draws: int, seed: int) -> Iterator[dict[str, str]]:
    """Draw one source of each label that has several, label -> source; no draw twice, and none where photos have one.

    Each source of a label has its turn before any has another. One with images of several labels is left out of all.
    """
    choices = pd.DataFrame({"label": labels, "source": sources}).drop_duplicates().groupby("label")["source"]
    several = {str(label): sorted(names) for label, names in choices if len(names) > 1}
    rng, seen, turns = np.random.default_rng([seed, 40]), set(), {}
    if len(several) < 2 or (config.REAL in set(labels) and config.REAL not in several):
        return
    for _ in range(20 * draws):
        for label, names in several.items():
            turns[label] = turns.get(label) or rng.permutation(names).tolist()
        draw = {label: names.pop() for label, names in turns.items()}
        is_left = all(set(own) - set(draw.values()) for _, own in choices)  # something of each label
        if is_left and len(seen) < draws and tuple(draw.values()) not in seen:
            seen.add(tuple(draw.values()))
            yield draw


def sources_of(table: pd.DataFrame) -> np.ndarray:
    """The source of each image by its manifest's column, (N,); its label where there is none, for not all are known."""
    return table.get("source", table["label"]).to_numpy()


def fit_head(table: pd.DataFrame, cfg: Any, on_epoch: OnEpoch = None) -> pd.DataFrame:
    """Fit a stage's linear head on the feature bank of a manifest, with its root in attrs; writes its checkpoint.

    Where provenance.csv names sources, the head learns from all images but the test split's, and temperature,
    thresholds and sets come from `judge_unseen`, which is kept as hold_outs_<stage>.parquet. Elsewhere it learns from
    the train split, and they are fitted on the val split. The history has one row. ValueError: a split lacks a class.
    """
    stage = "stage1" if isinstance(cfg, config.Stage1) else "stage2"
    images = table if stage == "stage1" else table[table["is_fake"]]
    truth = np.where(images["is_fake"], "fake", "real") if stage == "stage1" else images["label"].to_numpy()
    classes = ["real", "fake"] if stage == "stage1" else sorted(set(truth))
    checkpoint, began = Checkpoint(stage, table, cfg, classes), time.monotonic()
    if not (history := checkpoint.finished_history()):
        with run_lock(cfg.out, shared=True):
            model: Any = build_model(stage, checkpoint.settings, len(classes), cfg.pretrained)
            backbone = (model if stage == "stage1" else model.classifier).backbone
            features, rows = build(table, cfg, backbone), table.index.get_indexer(images.index)
            images = images.assign(source=(known := sources_of(images)), draw=0)
            alone = images.groupby(TWINS)["source"].transform("nunique").eq(1) & images["split"].ne("test")
            draws = list(joint_hold_outs(images["label"][alone], known[alone], cfg.hold_outs, 0))  # for all seeds
            if draws and (stay := sorted(set(images["label"]) - set(draws[0]))):
                print(f"{', '.join(stay)}: of one source, which no hold-out leaves out, so that none judges it")
            learns = images["split"].isin(["train", "val"] if draws else ["train"]).to_numpy()
            numbers = pd.Categorical(truth, categories=classes).codes[learns]
            heads = Joint(features[rows[learns]], getattr(backbone, "kinds", ()), numbers, known[learns], cfg.shrinkage)
            backbone.head = heads.head(backbone.head.cpu())
            learnt = judgements(heads.features, images[learns], backbone.head, classes)
            if draws:
                judged = judge_unseen(heads, backbone.head, images[learns], classes, draws)
            else:
                of_val = images["split"].eq("val").to_numpy()
                judged = judgements(features[rows[of_val]], images[of_val], backbone.head, classes)
            history = [{**history_of(learnt, judged, stage), "seconds": time.monotonic() - began}]
            if draws and stage == "stage2" and len(classes) > 2:
                unknown = judge_unknown(heads, backbone.head, images[learns], draws[:UNKNOWN_DRAWS])
                history[0]["val_unknown_auroc"] = float(unknown["auroc"].mean())
            checkpoint.save_best(model, history)
            fitted: dict[str, Any] = {"finished": True, "is_held_out": bool(draws)}
            if draws:
                with atomic_write(Path(cfg.out) / f"hold_outs_{stage}.parquet") as draft:
                    judged.to_parquet(draft, index=False)
                sets = [getattr(cfg, name, 0.9) for name in ("coverage", "accept")]  # stage 1 has neither
                fitted |= decide.fit(Stage.load(checkpoint.path), judged, table, *sets)
                if stage == "stage1":
                    sample = images[learns].groupby(["label", "source"]).sample(frac=1, random_state=cfg.seed)
                    sample = sample.groupby(["label", "source"]).head(PER_SOURCE)
                    fitted |= fit_subspace(features[table.index.get_indexer(sample.index)][:, [0, -1]], sample)
            update_checkpoint(checkpoint.path, **fitted)
    if on_epoch:
        on_epoch(pd.DataFrame(history))
    return pd.DataFrame(history)


def judge_unseen(heads: Joint, like: Any, images: pd.DataFrame, classes: list[str], draws: Sequence) -> pd.DataFrame:
    """What heads `like` a stage's that left a draw's sources out say of these sources' images; see `judgements`."""
    tables, alone = [], images.groupby(TWINS)["source"].transform("nunique").eq(1).to_numpy()
    for number, draw in enumerate(bar(draws, desc="hold-outs", unit="draw")):
        held, head = images["source"].isin(draw.values()).to_numpy() & alone, heads.head(like, set(draw.values()))
        tables.append(judgements(heads.features[held], images[held].assign(draw=number), head, classes))
    return pd.concat(tables, ignore_index=True)


def judge_unknown(heads: Joint, like: nn.Module, images: pd.DataFrame, draws: Sequence[dict]) -> pd.DataFrame:
    """How well a generator that is left out altogether is told from the sources that a draw leaves out of the others.

    One row a generator and draw: `auroc` of the ood_score of images as they are, sources weighing alike, all new to it.
    """
    rows, scores = [], images[["label", "source"]].reset_index(drop=True)
    alone = images.groupby(TWINS)["source"].transform("nunique").eq(1).to_numpy()
    for number, generator in enumerate(sorted(set(scores["label"]))):
        is_unknown = scores["label"] == generator
        for draw in draws:
            part = scores[is_unknown | scores["source"].isin(draw.values()) & alone]
            logits = logits_of(heads.head(like, {number, *draw.values()}), heads.features[part.index, 0])
            sources = 1 / part.groupby(["label", "source"])["label"].transform("size")
            auroc = roc_auc_score(is_unknown[part.index], -np.nanmax(logits, axis=1), sample_weight=sources)
            rows.append({"unknown": generator, **draw, "auroc": auroc})
    return pd.DataFrame(rows)


@torch.inference_mode()
def logits_of(head: Any, features: np.ndarray) -> np.ndarray:
    """Logits (N, K), or (0, z), of features (N, D); NaN or -inf for a class with nothing left."""
    logits = head(torch.from_numpy(features.astype(np.float32))).numpy()
    return np.pad(logits, ((0, 0), (1, 0))) if logits.shape[1] == 1 else logits


def judgements(features: np.ndarray, images: pd.DataFrame, head: Any, classes: list[str]) -> pd.DataFrame:
    """Rows of a score table with source, also as group, and draw, one an image and condition, under one head."""
    tables = []
    for view, condition in enumerate(CONDITIONS):
        logits = logits_of(head, features[:, view])
        table = images[["path", "label", "source", "draw"]].assign(split="val", group=images["source"])
        table["degradation"], table["level"] = condition.degradation, condition.level
        table[[f"logit_{name}" for name in classes]] = logits
        table["prediction"] = np.array(classes)[logits.argmax(1)]
        tables.append(table.assign(crops=1, crop_std=0.0, ood_score=-logits.max(1)))
    return pd.concat(tables, ignore_index=True)


def history_of(learnt: pd.DataFrame, judged: pd.DataFrame, stage: str) -> dict[str, float]:
    """The one row of a history: losses of images as they are, and the mean score over the draws, also as JPEG 75."""
    row, metric = {"epoch": 1, "lr": 0.0}, "auc" if stage == "stage1" else "balanced_accuracy"
    for name, rows in (("train_loss", learnt), ("val_loss", judged)):
        clean = rows[rows["degradation"] == "none"]
        classes = decide.class_names(clean)
        truth = decide.true_class(clean).map(classes.index)
        row[name] = float(log_loss(truth, decide.probabilities(clean, 1.0), labels=range(len(classes))))
    told = decide.summary(judged).iloc[:, 0]
    row |= {f"val_{metric}": float(told[registry.AS_IT_IS]), f"val_{metric}_jpeg_75": float(told["jpeg 75"])}
    return row | {"score": (row[f"val_{metric}"] + row[f"val_{metric}_jpeg_75"]) / 2}
