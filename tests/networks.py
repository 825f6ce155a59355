"""Small untrained stages."""

import torch

from dfd.inference import stage as stage_module

SETTINGS = {
    "stage1": {"backbone": "test_efficientnet.r160_in1k", "representation": "rgb", "stem_stride": 0},
    "stage2": {"backbone": "test_efficientnet.r160_in1k", "unet_width": 4, "residual_bound": 0.05},
}


def untrained(stage, seed=0, crop_size=64, **settings):
    """A Stage with random weights: stage 1, or stage 2 with the classes BigGAN and ProGAN."""
    return stage_module.Stage(checkpoint(stage, seed, crop_size, **settings))


def checkpoint(stage, seed=0, crop_size=64, **settings):
    """What a checkpoint of such a stage holds."""
    torch.manual_seed(seed)
    classes = ["real", "fake"] if stage == "stage1" else ["BigGAN", "ProGAN"]
    settings = SETTINGS[stage] | settings
    return {
        "stage": stage, "classes": classes, "config": settings, "crops": 1, "threshold": 0.5,
        "preprocessing": {"crop_size": crop_size, "equalise_quality": None}, "temperature": 1.0, "history": [],
        "manifest_hash": "x", "key": "k", "weights": stage_module.build_model(stage, settings, 2).state_dict(),
    }  # fmt: skip
