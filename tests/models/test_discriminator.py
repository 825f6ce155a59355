"""PatchDiscriminator: patches on frozen features, heads of a bounded slope; that it learns, train/test_stage2 says."""

import pytest
import torch

from dfd.models.backbones import lite0
from dfd.models.networks import PatchDiscriminator


def heads_of(network):
    return [layer for layer in network.heads.modules() if isinstance(layer, torch.nn.Conv2d)]


def test_a_logit_for_each_patch_of_each_block():
    network = PatchDiscriminator(width=8).eval()
    images = torch.rand(2, 3, 96, 64)
    assert network(images).shape == (2, 3, 6, 4) and network(images[:, :, :16, :16]).shape == (2, 3, 1, 1)
    changed = images.clone()
    changed[0, :, :16, :16] = torch.rand(3, 16, 16)  # the first corner of the first image
    moved = (network(changed) - network(images)).abs()
    assert moved[0, :, 0, 0].min() > 1e-4 and moved[1].max() < 1e-5
    assert moved[0, :, -1, -1].mean() < moved[0, :, 0, 0].mean() / 3


def test_every_head_has_a_spectral_norm_of_one():
    torch.manual_seed(0)
    network = PatchDiscriminator(width=8).train()
    for _ in range(60):  # the norm is estimated by one power iteration a call
        network(torch.rand(1, 3, 32, 32))
    for layer in heads_of(network.eval()):
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=0.05)


def test_the_blocks_are_imagenets_and_stay_as_they_are():
    network, wanted = PatchDiscriminator(width=8).train(), lite0(pretrained=True)
    images = torch.rand(4, 3, 64, 64, requires_grad=True)
    learnt = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learnt, 0.1)
    network(images).mean().backward()
    optimizer.step()
    assert images.grad.abs().max() > 0 and all(parameter.grad.abs().max() > 0 for parameter in learnt)
    for name, value in network.network.blocks.state_dict().items():  # batch norms' statistics too
        assert torch.equal(value, wanted.blocks.state_dict()[name])
    assert len(learnt) == 2 * len(heads_of(network))
