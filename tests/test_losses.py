"""Losses: values worked out by hand, and gradients that reach what the loss trains and nothing else."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import sigmoid_focal_loss

from dfd import losses
from dfd.models.adversarial import PatchDiscriminator
from dfd.models.classifiers import UNetRes

LOGITS = torch.tensor([-3.0, -0.4, 0.0, 0.7, 5.0])
IS_FAKE = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0])


def finite_difference(loss, at, step=1e-5):
    """Gradient of a loss of float64 numbers, by central differences."""
    steps = step * torch.eye(len(at), dtype=at.dtype)
    return torch.stack([(loss(at + d) - loss(at - d)) / (2 * step) for d in steps])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_focal_without_gamma_is_cross_entropy(smoothing):
    focal = losses.focal_loss(LOGITS, IS_FAKE, gamma=0.0, smoothing=smoothing)
    torch.testing.assert_close(focal, losses.real_fake_loss(LOGITS, IS_FAKE, smoothing))


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
def test_focal_equals_torchvisions(gamma):
    expected = sigmoid_focal_loss(LOGITS, IS_FAKE, alpha=-1, gamma=gamma, reduction="mean")
    torch.testing.assert_close(losses.focal_loss(LOGITS, IS_FAKE, gamma), expected)


def test_focal_by_hand_with_a_smoothed_label():
    """p = 0.8 that the image is fake; it is, with smoothing 0.2: nine tenths of one loss, one tenth of the other."""
    expected = 0.9 * 0.2**2 * -math.log(0.8) + 0.1 * 0.8**2 * -math.log(0.2)
    loss = losses.focal_loss(torch.tensor([math.log(4)]), torch.tensor([1.0]), gamma=2.0, smoothing=0.2)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_focal_counts_what_is_already_right_for_less():
    logits = torch.tensor([4.0, -1.0], requires_grad=True)  # two fakes, one of them recognised
    (plain,) = torch.autograd.grad(losses.real_fake_loss(logits, torch.ones(2)), logits)
    (focal,) = torch.autograd.grad(losses.focal_loss(logits, torch.ones(2)), logits)
    assert focal[0] / focal[1] < 0.1 * plain[0] / plain[1]
    assert (focal < 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_has_a_finite_gradient_at_sure_logits(gamma, dtype):
    logits = torch.tensor([25.0, -120.0, 120.0, -25.0], dtype=dtype, requires_grad=True)
    losses.focal_loss(logits, torch.tensor([1.0, 0.0, 0.0, 1.0]), gamma).backward()
    assert logits.grad[:2].abs().max() < 1e-4  # right already
    assert logits.grad[2].item() == pytest.approx(0.25, rel=1e-2) and logits.grad[3].item() == pytest.approx(
        -0.25, 1e-2
    )


def test_focal_refuses_a_negative_gamma():
    with pytest.raises(ValueError, match="gamma must be 0 or more, got -1"):
        losses.focal_loss(LOGITS, IS_FAKE, gamma=-1)


def test_hinge_by_hand():
    real, fake = torch.tensor([[2.0, 0.5], [-1.0, 1.0]]), torch.tensor([-3.0, 0.25])
    discriminator, generator = losses.ADVERSARIAL["hinge"]
    assert discriminator(real, fake).item() == pytest.approx((0 + 0.5 + 2 + 0) / 4 + (0 + 1.25) / 2)
    assert generator(fake).item() == pytest.approx((3 - 0.25) / 2)


def test_hinge_has_no_gradient_beyond_the_margin_and_a_constant_one_within():
    real = torch.tensor([1.5, 0.9, -7.0], requires_grad=True)
    fake = torch.tensor([-1.5, -0.9, 7.0], requires_grad=True)
    losses.hinge_discriminator_loss(real, fake).backward()
    torch.testing.assert_close(real.grad, torch.tensor([0, -1 / 3, -1 / 3]))
    torch.testing.assert_close(fake.grad, torch.tensor([0, 1 / 3, 1 / 3]))


def test_nonsaturating_by_hand():
    real, fake = [2.0, -0.5], [-3.0, 0.25, 1.0]
    discriminator, generator = losses.ADVERSARIAL["nonsaturating"]
    missed = sum(math.log1p(math.exp(-x)) for x in real) / 2 + sum(math.log1p(math.exp(x)) for x in fake) / 3
    assert discriminator(torch.tensor(real), torch.tensor(fake)).item() == pytest.approx(missed)
    assert generator(torch.tensor(fake)).item() == pytest.approx(sum(math.log1p(math.exp(-x)) for x in fake) / 3)


def test_nonsaturating_generator_learns_most_where_the_discriminator_is_sure():
    fake = torch.tensor([-30.0, 0.0, 30.0], requires_grad=True)
    losses.nonsaturating_generator_loss(fake).backward()
    torch.testing.assert_close(fake.grad, torch.tensor([-1 / 3, -1 / 6, 0.0]))


LOSSES_OF_LOGITS = {
    "focal": lambda x: losses.focal_loss(x, IS_FAKE),
    "hinge D": lambda x: losses.hinge_discriminator_loss(x[:2], x[2:]),
    "hinge G": losses.hinge_generator_loss,
    "nonsaturating D": lambda x: losses.nonsaturating_discriminator_loss(x[:2], x[2:]),
    "nonsaturating G": losses.nonsaturating_generator_loss,
}


@pytest.mark.parametrize("name", LOSSES_OF_LOGITS)
def test_gradient_is_that_of_finite_differences(name):
    logits = LOGITS.double().requires_grad_()
    loss = LOSSES_OF_LOGITS[name]
    (gradient,) = torch.autograd.grad(loss(logits), logits)
    torch.testing.assert_close(gradient, finite_difference(loss, logits.detach()), atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("name", losses.ADVERSARIAL)
def test_each_side_trains_its_own_network(name):
    torch.manual_seed(0)
    generator, discriminator = UNetRes(width=4), PatchDiscriminator(width=4, layers=2)
    photos, fakes = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    discriminator_loss, generator_loss = losses.ADVERSARIAL[name]

    laundered = fakes + generator(fakes)
    discriminator_loss(discriminator(photos), discriminator(laundered.detach())).backward()
    assert all(p.grad is None for p in generator.parameters())
    assert all(p.grad.abs().max() > 0 for n, p in discriminator.named_parameters() if "weight" in n)

    discriminator.zero_grad(set_to_none=True)
    discriminator.requires_grad_(False)
    generator_loss(discriminator(laundered)).backward()
    assert all(p.grad is None for p in discriminator.parameters())
    assert max(p.grad.abs().max() for p in generator.parameters()) > 0


@pytest.mark.parametrize("name", losses.ADVERSARIAL)
def test_generator_and_discriminator_pull_in_opposite_directions(name):
    logits = LOGITS.clone().requires_grad_()
    discriminator_loss, generator_loss = losses.ADVERSARIAL[name]
    (down,) = torch.autograd.grad(discriminator_loss(torch.ones(1), logits), logits)
    (up,) = torch.autograd.grad(generator_loss(logits), logits)
    assert (down >= 0).all() and down.sum() > 0 and (up < 0).all()


def test_r1_of_a_linear_discriminator_is_its_squared_weight():
    """One logit w . x: the gradient is w at every image; the penalty |w|^2 has the gradient 2 w."""
    torch.manual_seed(0)
    linear = nn.Linear(3 * 4 * 5, 1).double()
    images = torch.rand(6, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    penalty = losses.r1_penalty(linear(images.flatten(1)), images)
    torch.testing.assert_close(penalty, linear.weight.square().sum())
    penalty.backward()
    torch.testing.assert_close(linear.weight.grad, 2 * linear.weight)
    assert linear.bias.grad is None


def test_r1_sums_an_images_patches_and_averages_the_batch():
    """Patches a x and b x^2 / 2 of a one-pixel image x: the gradient is a + b x."""
    a, b = 0.5, 3.0
    images = torch.tensor([0.2, 0.6]).view(2, 1, 1, 1).requires_grad_()
    logits = torch.cat([a * images, b * images.square() / 2], dim=1)
    expected = ((a + b * 0.2) ** 2 + (a + b * 0.6) ** 2) / 2
    assert losses.r1_penalty(logits, images).item() == pytest.approx(expected)


def test_r1_makes_a_patch_discriminator_flatter():
    """A small step along the penalty's gradient takes off what its slope promises."""
    torch.manual_seed(0)
    discriminator, photos = PatchDiscriminator(width=4, layers=2).eval(), torch.rand(2, 3, 32, 32).requires_grad_()
    start = losses.r1_penalty(discriminator(photos), photos)
    start.backward()
    weights = [p for p in discriminator.parameters() if p.grad is not None]
    step = 1e-3 * start.item() / sum(p.grad.square().sum() for p in weights)
    with torch.no_grad():
        for p in weights:
            p -= step * p.grad
    flatter = losses.r1_penalty(discriminator(photos), photos)
    assert (start - flatter).item() == pytest.approx(1e-3 * start.item(), rel=0.1)


def test_r1_says_what_is_missing():
    discriminator, photos = PatchDiscriminator(width=4, layers=2), torch.rand(1, 3, 32, 32)
    with pytest.raises(ValueError, match="requires_grad_"):
        losses.r1_penalty(discriminator(photos), photos)
    with torch.no_grad(), pytest.raises(ValueError, match="graph"):
        losses.r1_penalty(discriminator(photos), photos.requires_grad_())


def test_cross_entropies_by_hand():
    smoothed = losses.real_fake_loss(torch.tensor([math.log(4)]), torch.tensor([1.0]), smoothing=0.2)
    assert smoothed.item() == pytest.approx(0.9 * -math.log(0.8) + 0.1 * -math.log(0.2), rel=1e-5)
    logits, source = torch.tensor([[1.0, 2.0, 0.5]]), torch.tensor([1])
    assert losses.source_loss(logits, source).item() == pytest.approx(-F.log_softmax(logits, 1)[0, 1].item())
