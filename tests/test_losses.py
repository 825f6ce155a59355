"""Losses: values worked out by hand, and gradients that reach what the loss trains and nothing else."""

import math

import pytest
import torch

from dfd import losses
from dfd.models.networks import PatchDiscriminator, UNetRes

LOGITS = torch.tensor([-3.0, -0.4, 0.0, 0.7, 5.0])
IS_FAKE = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0])


def finite_difference(loss, at, step=1e-5):
    """Gradient of a loss of float64 numbers, by central differences."""
    steps = step * torch.eye(len(at), dtype=at.dtype)
    return torch.stack([(loss(at + d) - loss(at - d)) / (2 * step) for d in steps])


def test_hinge_by_hand():
    real, fake = torch.tensor([[2.0, 0.5], [-1.0, 1.0]]), torch.tensor([-3.0, 0.25])
    assert losses.hinge_discriminator_loss(real, fake).item() == pytest.approx((0 + 0.5 + 2 + 0) / 4 + (0 + 1.25) / 2)
    assert losses.hinge_generator_loss(fake).item() == pytest.approx((3 - 0.25) / 2)


def test_hinge_has_no_gradient_beyond_the_margin_and_a_constant_one_within():
    real = torch.tensor([1.5, 0.9, -7.0], requires_grad=True)
    fake = torch.tensor([-1.5, -0.9, 7.0], requires_grad=True)
    losses.hinge_discriminator_loss(real, fake).backward()
    torch.testing.assert_close(real.grad, torch.tensor([0, -1 / 3, -1 / 3]))
    torch.testing.assert_close(fake.grad, torch.tensor([0, 1 / 3, 1 / 3]))


LOSSES_OF_LOGITS = {
    "real or fake": lambda x: losses.real_fake_loss(x, IS_FAKE.double(), 0.1),
    "hinge D": lambda x: losses.hinge_discriminator_loss(x[:2], x[2:]),
    "hinge G": losses.hinge_generator_loss,
}


@pytest.mark.parametrize("name", LOSSES_OF_LOGITS)
def test_gradient_is_that_of_finite_differences(name):
    logits = LOGITS.double().requires_grad_()
    loss = LOSSES_OF_LOGITS[name]
    (gradient,) = torch.autograd.grad(loss(logits), logits)
    torch.testing.assert_close(gradient, finite_difference(loss, logits.detach()), atol=1e-8, rtol=1e-6)


def test_each_side_trains_its_own_network():
    torch.manual_seed(0)
    generator, discriminator = UNetRes(width=4), PatchDiscriminator(width=4)
    photos, fakes = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    discriminator_loss, generator_loss = losses.hinge_discriminator_loss, losses.hinge_generator_loss

    laundered = fakes + generator(fakes)
    discriminator_loss(discriminator(photos), discriminator(laundered.detach())).backward()
    assert all(p.grad is None for p in generator.parameters())
    assert all(p.grad.abs().max() > 0 for n, p in discriminator.heads.named_parameters() if "weight" in n)

    discriminator.zero_grad(set_to_none=True)
    discriminator.requires_grad_(False)
    generator_loss(discriminator(laundered)).backward()
    assert all(p.grad is None for p in discriminator.parameters())
    assert max(p.grad.abs().max() for p in generator.parameters()) > 0


def test_generator_and_discriminator_pull_in_opposite_directions():
    logits = LOGITS.clone().requires_grad_()
    discriminator_loss, generator_loss = losses.hinge_discriminator_loss, losses.hinge_generator_loss
    (down,) = torch.autograd.grad(discriminator_loss(torch.ones(1), logits), logits)
    (up,) = torch.autograd.grad(generator_loss(logits), logits)
    assert (down >= 0).all() and down.sum() > 0 and (up < 0).all()


def test_cross_entropies_by_hand():
    smoothed = losses.real_fake_loss(torch.tensor([math.log(4)]), torch.tensor([1.0]), smoothing=0.2)
    assert smoothed.item() == pytest.approx(0.9 * -math.log(0.8) + 0.1 * -math.log(0.2), rel=1e-5)
