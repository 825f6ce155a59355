"""VGGPerceptual: which weights it has, what it measures, and where its gradient goes."""

import urllib.error

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dfd.models import backbones, networks
from dfd.models.networks import UNetRes, VGGPerceptual

CHANNELS = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 256)]  # up to relu3_3
SUBSTITUTE = "EfficientNet-Lite0 in place of VGG16"
FILE_NAMES = [0, 2, 5, 7, 10, 12, 14]  # of these convolutions, in torchvision's file


@pytest.fixture(scope="module")
def network():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "_vgg16", lambda: (None, "left out"))
        return VGGPerceptual()


@pytest.fixture
def reference():
    torch.manual_seed(0)
    small = torch.rand(2, 3, 5, 5)
    return F.interpolate(small, (32, 40), mode="bicubic").clamp(0, 1)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty hub cache, and no network: what is asked of it fails the test."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(networks, "hub_answers", lambda address: pytest.fail("the network was asked"))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints" / "vgg16-397923af.pth"


def stored_weights():
    """What the file holds, in its own names; the classifier's weights are left out but for one."""
    torch.manual_seed(7)
    stored = {"classifier.6.bias": torch.zeros(1000)}
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
    torch.save(weights, hub)
    network = VGGPerceptual()
    images = (reference + 0.1 * torch.randn_like(reference)).clamp(0, 1)
    torch.testing.assert_close(
        network(images, reference), distance_by_hand(weights, images, reference), rtol=1e-4, atol=0
    )
    assert capsys.readouterr().out == "Perceptual loss: VGG16; ImageNet weights from the local hub cache.\n"


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", {"features.0.weight": torch.zeros(64, 3, 3, 3)}])
def test_a_damaged_cached_file_is_named(hub, content):
    hub.write_bytes(content) if isinstance(content, bytes) else torch.save(content, hub)
    with pytest.raises(ValueError, match="vgg16-397923af.pth does not hold VGG16's weights.*delete it"):
        VGGPerceptual()


def test_a_truncated_cached_file_is_named(hub):
    torch.save(stored_weights(), hub)
    hub.write_bytes(hub.read_bytes()[:100_000])
    with pytest.raises(ValueError, match="delete it"):
        VGGPerceptual()


def test_without_a_network_the_substitute_is_said_in_one_line(hub, monkeypatch, capsys):
    asked = []

    def unreachable(request, timeout):
        asked.append((request.full_url, request.method, timeout <= 5))
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    monkeypatch.setattr(networks, "hub_answers", backbones.hub_answers)
    VGGPerceptual()
    assert asked == [("https://download.pytorch.org/models/vgg16-397923af.pth", "HEAD", True)] and not hub.exists()
    reason = "VGG16's ImageNet weights are neither cached nor reachable"
    assert capsys.readouterr().out == f"Perceptual loss: {SUBSTITUTE}; {reason}.\n"


def test_a_network_that_answers_fills_the_cache(hub, monkeypatch, capsys):
    def download(address, path, hash_prefix, **options):
        assert hash_prefix == "397923af" and path == str(hub)
        torch.save(stored_weights(), path)

    hub.parent.rmdir()
    monkeypatch.setattr(networks, "hub_answers", lambda address: True)
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    network = VGGPerceptual()
    assert torch.equal(network.features[2].weight, stored_weights()["features.2.weight"])
    assert "VGG16; ImageNet weights downloaded" in capsys.readouterr().out


@pytest.mark.parametrize("error", [OSError("cut off"), RuntimeError("invalid hash value")])
def test_a_download_that_fails_leaves_the_substitute(hub, monkeypatch, capsys, error):
    def download(*args, **options):
        raise error

    monkeypatch.setattr(networks, "hub_answers", lambda address: True)
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    assert VGGPerceptual().network == SUBSTITUTE
    said = capsys.readouterr().out
    assert said.endswith(f"the download of VGG16's ImageNet weights failed ({type(error).__name__}).\n")


def test_not_pretrained_asks_nobody_even_with_a_cached_file(hub):
    torch.save(stored_weights(), hub)
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
