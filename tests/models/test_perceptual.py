"""VGGPerceptual: which weights it has, what it measures, and where its gradient goes."""

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from dfd.models import backbones
from dfd.models.networks import UNetRes, VGGPerceptual

CHANNELS = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 256)]  # up to relu3_3
SUBSTITUTE = "EfficientNet-Lite0 in place of VGG16"
FILE_NAMES = [0, 2, 5, 7, 10, 12, 14]  # of these convolutions, in the file


@pytest.fixture(scope="module")
def network():
    return VGGPerceptual(pretrained=False)


@pytest.fixture
def reference():
    torch.manual_seed(0)
    small = torch.rand(2, 3, 5, 5)
    return F.interpolate(small, (32, 40), mode="bicubic").clamp(0, 1)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The place of a cached file, and no network: what is asked of it fails the test."""
    file = tmp_path / "model.safetensors"
    monkeypatch.setattr(backbones, "_cached_weights", lambda repository: str(file) if file.exists() else None)
    monkeypatch.setattr(backbones, "hub_answers", lambda: pytest.fail("the network was asked"))
    return file


def stored_weights():
    """What the file holds, in its own names, of the layers that count."""
    torch.manual_seed(7)
    stored = {}
    for place, (into, out) in zip(FILE_NAMES, CHANNELS, strict=True):
        stored[f"features.{place}.weight"] = torch.randn(out, into, 3, 3) * (2 / (9 * into)) ** 0.5
        stored[f"features.{place}.bias"] = 0.1 * torch.randn(out)
    return stored


def distance_by_hand(weights, images, reference):
    """The same distance of the three default layers, from plain convolutions."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (torch.cat([images, reference]) - mean[:, None, None]) / std[:, None, None]
    terms = []
    for place in FILE_NAMES:
        if place in (5, 10):
            x = F.max_pool2d(x, 2)
        x = F.conv2d(x, weights[f"features.{place}.weight"], weights[f"features.{place}.bias"], padding=1).relu()
        if place in (2, 7, 14):
            changed, wanted = x.chunk(2)
            terms.append(((changed - wanted) ** 2).sum() / (wanted**2).sum())
    return sum(terms) / 3


def test_distance_is_that_of_the_stored_convolutions(hub, reference, capsys):
    """A cached file is used; the expected distance comes from its tensors without the module."""
    weights = stored_weights()
    save_file(weights, hub)
    network = VGGPerceptual()
    images = (reference + 0.1 * torch.randn_like(reference)).clamp(0, 1)
    torch.testing.assert_close(
        network(images, reference), distance_by_hand(weights, images, reference), rtol=1e-4, atol=0
    )
    assert capsys.readouterr().out == "Perceptual loss: VGG16; ImageNet weights from the local hub cache.\n"


def test_a_truncated_cached_file_is_named(hub):
    save_file(stored_weights(), hub)
    hub.write_bytes(hub.read_bytes()[:100_000])
    with pytest.raises(ValueError, match=f"{hub} does not hold the weights of vgg16 .*; delete it"):
        VGGPerceptual()


def test_without_a_network_the_substitute_is_said_in_one_line(hub, monkeypatch, capsys):
    monkeypatch.setattr(backbones, "hub_answers", lambda: False)
    VGGPerceptual()
    reason = "no ImageNet weights are installed, cached or reachable"
    assert capsys.readouterr().out == f"Perceptual loss: {SUBSTITUTE}; {reason}.\n"


def test_a_network_that_answers_is_asked_for_the_weights(hub, monkeypatch, capsys):
    create, asked = timm.create_model, []

    def recording(name, **options):
        asked.append((name, options.pop("pretrained", False)))
        return create(name, **options)

    monkeypatch.setattr(backbones, "hub_answers", lambda: True)
    monkeypatch.setattr(timm, "create_model", recording)
    assert VGGPerceptual().network == "VGG16" and asked[-1] == ("vgg16", True)
    assert capsys.readouterr().out == "Perceptual loss: VGG16; ImageNet weights from the hub.\n"


def test_not_pretrained_asks_nobody_even_with_a_cached_file(hub):
    save_file(stored_weights(), hub)
    assert VGGPerceptual(pretrained=False).network == SUBSTITUTE


def test_the_substitute_measures_in_the_features_of_the_installed_weights(network, reference):
    """By hand from timm's own forward_intermediates: relative squared difference, mean of three blocks."""
    images = (reference + 0.1 * torch.randn_like(reference)).clamp(0, 1)
    model = backbones.lite0(pretrained=True).eval()
    maps = [model.forward_intermediates(2 * x - 1, [0, 1, 2], intermediates_only=True) for x in (images, reference)]
    expected = sum(((a - b) ** 2).sum() / (b**2).sum() for a, b in zip(*maps, strict=True)) / 3
    torch.testing.assert_close(network(images, reference), expected, rtol=1e-4, atol=0)


def test_the_substitute_counts_structure_for_more_than_brightness(network, reference):
    """Of two changes of like size people see the coarser pattern of noise, not three hundredths of brightness."""
    brighter, noisy = reference + 0.03, reference + 0.01 * torch.randn_like(reference)
    assert network(noisy, reference) > 3 * network(brighter, reference)


def test_equal_images_are_at_0_and_larger_changes_are_farther(network, reference):
    noise = torch.randn_like(reference)
    distances = [network(reference + size * noise, reference).item() for size in (0, 0.003, 0.01, 0.03, 0.1)]
    assert distances[0] == 0
    assert distances == sorted(set(distances))


def test_the_distance_means_the_same_under_mixed_precision(network, reference):
    """The change is as small as bfloat16's rounding of the features."""
    images = reference + 0.0005 * torch.randn_like(reference)
    with torch.autocast("cpu", torch.bfloat16):
        mixed, equal = network(images, reference), network(reference, reference)
        of_bfloat16 = network(reference.bfloat16(), reference)
    torch.testing.assert_close(mixed, network(images, reference))
    assert mixed.dtype == of_bfloat16.dtype == torch.float32 and mixed > 0 and equal == 0


def test_a_flat_grey_reference_gives_a_finite_distance(network):
    grey = network.mean.expand(1, 3, 16, 16).contiguous()
    images = (grey + 0.01).requires_grad_()
    network(images, grey).backward()
    assert torch.isfinite(images.grad).all()


def test_the_gradient_reaches_the_images_alone(network, reference):
    torch.manual_seed(0)
    before = [p.clone() for p in network.parameters()]
    generator, given = UNetRes(width=4), reference.clone().requires_grad_()
    network(given.detach() + generator(given.detach()), given).backward()
    assert max(p.grad.abs().max() for p in generator.parameters()) > 0
    assert given.grad is None
    assert all(p.grad is None and not p.requires_grad for p in network.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_following_the_gradient_brings_the_images_nearer(network, reference):
    images = (reference + 0.1 * torch.randn_like(reference)).requires_grad_()
    start = network(images, reference)
    (gradient,) = torch.autograd.grad(start, images)
    slope = gradient.square().sum()
    step = 1e-3 * start / slope  # should take a thousandth off the distance
    nearer = network(images.detach() - step * gradient, reference)
    assert (start - nearer).item() == pytest.approx(1e-3 * start.item(), rel=0.05)


def test_it_stays_in_eval_mode_inside_a_model_that_trains(network):
    around = nn.ModuleList([network]).train()
    assert around.training and not any(module.training for module in network.modules())
