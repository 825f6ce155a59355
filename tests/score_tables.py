"""Fabricated score tables."""

import numpy as np
import pandas as pd

CLASSES = ["BigGAN", "ProGAN", "StyleGAN2"]


def stage1_table(logits, labels, groups=None, threshold=0.5, **extra):
    p = 1 / (1 + np.exp(-np.asarray(logits, float)))
    content = {
        "path": [f"{label}/{i}.png" for i, label in enumerate(labels)],
        "label": labels,
        "split": "test",
        "group": groups if groups is not None else range(len(labels)),
        "degradation": "none",
        "level": 0.0,
        "logit_real": 0.0,
        "logit_fake": np.asarray(logits, float),
        "prediction": np.where(p >= threshold, "fake", "real"),
        "answer": np.where(p >= threshold, "fake", "real"),
    }
    return pd.DataFrame({**content, **extra})


def noisy_table(images=300, per_group=5, seed=0):
    """Photos about -1, fakes of two generators about +1, in groups of neighbours."""
    rng = np.random.default_rng(seed)
    labels = np.tile(["RealPhotos", "ProGAN", "BigGAN"], images // 3)
    groups = np.arange(images) // per_group
    return stage1_table(rng.normal(np.where(labels == "RealPhotos", -1, 1), 1.5), labels, groups)


def planted(factor, images=6000, seed=0):
    """Logits `factor` times those whose probability is the share of fakes; half of the images are photos."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, images)
    labels = np.where(rng.random(images) < 1 / (1 + np.exp(-logits)), "ProGAN", "RealPhotos")
    return stage1_table(factor * logits, labels)


def stage2_table(seed=0, images=300, per_group=5, labels=CLASSES, push=2.0, degradation="none", level=0.0):
    """Stage 2's rows: the true class's logit is `push` above the others where the label is a class."""
    rng = np.random.default_rng(seed)
    names = np.resize(labels, images)
    logits = rng.normal(0, 1, (images, 3)) + push * (names[:, None] == np.array(CLASSES))
    content = {"label": names, "split": "test", "group": [f"g{i}" for i in np.arange(images) // per_group]}
    content |= {"degradation": degradation, "level": level}
    content |= {f"logit_{name}": logits[:, k] for k, name in enumerate(CLASSES)}
    content |= {"prediction": np.array(CLASSES)[logits.argmax(1)]}
    content |= {"ood_score": rng.normal(np.where(np.isin(names, CLASSES), 0, 1), 1)}
    return pd.DataFrame(content)
