"""PatchDiscriminator: one logit sees as many pixels as it says, and its layers are normalised."""

import pytest
import torch

from dfd.models.networks import PatchDiscriminator


@pytest.mark.parametrize(("layers", "pixels"), [(2, 34), (3, 70)])
def test_a_logit_sees_a_patch_of_the_stated_size(layers, pixels):
    torch.manual_seed(0)
    images = torch.rand(1, 3, 128, 128, requires_grad=True)
    logits = PatchDiscriminator(width=8, layers=layers).eval()(images)
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    seen = images.grad.abs().sum(dim=(0, 1)) > 0
    assert seen.any(dim=1).sum() == seen.any(dim=0).sum() == pixels + 2  # the high-pass filter looks one further


def test_every_convolution_has_a_spectral_norm_of_one():
    torch.manual_seed(0)
    network = PatchDiscriminator(in_channels=5, width=8).train()
    for _ in range(60):  # the norm is estimated by one power iteration a call
        network(torch.rand(1, 5, 64, 64))
    for layer in network.eval().net[::2]:
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=0.02)
