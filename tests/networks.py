"""Small untrained stages, and pictures for them."""

import numpy as np
import torch
from PIL import Image

from dfd.core.images import load_rgb
from dfd.data.sample import PHOTOS
from dfd.inference import files as files_module
from dfd.inference import stage as stage_module

SEEN, UNSEEN = ("astronaut", "chelsea", "coffee", "flower", "motorcycle"), ("rocket", "china", "retina")  # photos
SETTINGS = {
    "stage1": {"backbone": "test_efficientnet.r160_in1k", "representation": "rgb"},
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
        "manifest_hash": "x", "key": "k", "weights": files_module.build_model(stage, settings, 2).state_dict(),
    }  # fmt: skip


def content(stage="stage1", crop_size=32, quality=90, **changes):
    settings = {"backbone": "test_resnet.r160_in1k", "representation": "rgb", "unet_width": 4, "residual_bound": 0.1}
    classes = ["real", "fake"] if stage == "stage1" else ["BigGAN", "ProGAN", "StyleGAN2"]
    torch.manual_seed(1)
    model = files_module.build_model(stage, settings, len(classes))
    head = (model if stage == "stage1" else model.classifier).backbone.get_classifier()
    torch.nn.init.normal_(head.weight)  # crops of one image shall differ
    basic = {"stage": stage, "classes": classes, "config": settings, "weights": model.state_dict()}
    preprocessing = {"preprocessing": {"crop_size": crop_size, "equalise_quality": quality}, "crops": 5}
    rest = {"threshold": 0.5, "temperature": 1.0, "history": [], "manifest_hash": "x", "key": "k"}
    return {**basic, **preprocessing, **rest, **changes}


CPU = torch.device("cpu")


def noise(width, height, seed=0):
    """A picture whose windows differ: noise whose strength grows to the right and downwards."""
    strength = np.linspace(0, 60, height)[:, None, None] + np.linspace(0, 60, width)[None, :, None]
    pixels = 128 + strength * np.random.default_rng(seed).uniform(-1, 1, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def photo_crops(names, each=16, side=64):
    """Random crops of installed photos, (len(names) * each, 3, side, side) in [0, 1]."""
    photos, rng, crops = {photo.name: photo.path for photo in PHOTOS}, np.random.default_rng(0), []
    for name in names:
        pixels = np.array(load_rgb(photos[name]))
        for top, left in rng.integers(0, [size - side for size in pixels.shape[:2]], (each, 2)):
            crops.append(pixels[top : top + side, left : left + side])
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2) / 255
