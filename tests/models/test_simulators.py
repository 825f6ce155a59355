"""Simulators: each block does what its paper says; the committed weights rebuild photos and leave different traces."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import uniform_filter
from skimage.metrics import peak_signal_noise_ratio

from dfd.data import sample
from dfd.models import simulators


@pytest.fixture(scope="module")
def photos():
    """Two tiles of every photo of the demo, none of which the simulators were trained on: (36, 3, 128, 128)."""
    stack = []
    for photo in sample.PHOTOS:
        stack += list(sample.tiles(photo, seed=0).values())[:2]
    return torch.from_numpy(np.stack(stack)).permute(0, 3, 1, 2).float() / 255


@pytest.fixture(scope="module")
def rebuilt(photos):
    with torch.inference_mode():
        return {name: simulators.load(name)(photos) for name in simulators.NAMES}


def test_pixel_norm_brings_every_pixel_to_a_mean_square_of_one():
    x = torch.randn(2, 24, 5, 7) * torch.tensor([0.1, 30.0])[:, None, None, None]
    square = simulators.PixelNorm()(x).numpy() ** 2
    np.testing.assert_allclose(square.mean(axis=1), 1, atol=1e-4)


def test_equalised_layers_keep_weights_at_unit_variance_and_scale_at_use():
    torch.manual_seed(0)
    layer = simulators.EqualConv2d(50, 40, 3)
    assert layer.weight.std().item() == pytest.approx(1, abs=0.03)
    x = torch.randn(1, 50, 6, 6)
    he = F.conv2d(x, layer.weight, padding=1) * math.sqrt(2 / (50 * 9))
    torch.testing.assert_close(layer(x), he, rtol=1e-4, atol=1e-4)
    linear = simulators.EqualLinear(64, 8)
    assert linear(torch.ones(1, 64)).squeeze(0).tolist() == pytest.approx((linear.weight.sum(1) / 8).tolist(), abs=1e-5)


@pytest.mark.parametrize("up", [False, True])
def test_modulated_convolution_equals_one_with_demodulated_weights_for_each_image(up):
    torch.manual_seed(0)
    layer = simulators.ModulatedConv2d(6, 5, 3, style=4, up=up)
    x, w = torch.randn(3, 6, 8, 8), torch.randn(3, 4)
    taps = torch.tensor([1.0, 3, 3, 1])
    fir = (taps[:, None] * taps[None] / 16).expand(5, 1, 4, 4)
    for i, scale in enumerate(layer.style(w)):
        weight = layer.weight * scale[None, :, None, None]
        weight = weight / weight.flatten(1).norm(dim=1)[:, None, None, None]  # unit norm per output channel
        if up:
            wide = F.conv_transpose2d(x[i : i + 1], weight.transpose(0, 1), stride=2)
            expected = F.conv2d(F.pad(wide, (1, 1, 1, 1), mode="replicate"), fir, groups=5)
        else:
            expected = F.conv2d(x[i : i + 1], weight, padding=1)
        torch.testing.assert_close(layer(x, w)[i : i + 1], expected, rtol=1e-3, atol=1e-4)


def test_rgb_layers_of_stylegan2_are_modulated_but_not_demodulated():
    layer = simulators.ModulatedConv2d(6, 3, 1, style=4, demodulate=False)
    x, w = torch.randn(1, 6, 4, 4), torch.randn(1, 4)
    before = layer(x, w)
    with torch.no_grad():
        layer.weight.mul_(2)
    torch.testing.assert_close(layer(x, w), 2 * before)


def test_fir_upsampling_keeps_a_constant_and_interpolates_with_quarters():
    constant = torch.full((2, 3, 5, 6), 0.37)
    assert torch.allclose(simulators.fir_upsample(constant), torch.full((2, 3, 10, 12), 0.37), atol=1e-6)
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    middle = simulators.fir_upsample(ramp)[0, 0, 8, 2:-2]
    assert middle.tolist() == pytest.approx(np.arange(0.75, 6.5, 0.5)[:12].tolist())


def test_conditional_batch_norm_takes_gain_and_bias_from_the_condition():
    norm = simulators.ConditionalBatchNorm2d(4, 3).eval()
    norm.norm.running_mean += 2
    x = torch.randn(2, 4, 3, 3)
    plain = (x - 2) / math.sqrt(1 + 1e-5)
    torch.testing.assert_close(norm(x, torch.zeros(2, 3)), plain)
    first = torch.tensor([[1.0, 0, 0]]).expand(2, 3)
    gain, bias = norm.gain.weight[:, 0, None, None], norm.bias.weight[:, 0, None, None]
    torch.testing.assert_close(norm(x, first), plain * (1 + gain) + bias)


def test_self_attention_lets_far_pixels_act_only_with_its_learnt_weight():
    torch.manual_seed(0)
    layer = simulators.SelfAttention(16)
    x = torch.randn(1, 16, 8, 8)
    changed = x.clone()
    changed[..., 7, 7] += 5
    assert torch.equal(layer(x), x)
    with torch.no_grad():
        layer.gamma.fill_(1)
        assert not torch.allclose(layer(x)[..., 0, 0], layer(changed)[..., 0, 0])


def test_biggan_block_upsamples_its_skip_by_the_nearest_neighbour():
    block = simulators.BigGANBlock(6, 5, 3).eval()
    torch.nn.init.zeros_(block.conv2.weight)
    torch.nn.init.zeros_(block.conv2.bias)
    x = torch.randn(1, 6, 4, 4)
    expected = block.skip(torch.kron(x, torch.ones(2, 2)))
    torch.testing.assert_close(block(x, torch.randn(1, 3)), expected)


@pytest.mark.parametrize("name", simulators.NAMES)
def test_any_size_of_multiples_of_four_comes_back_in_range(name):
    model = simulators.Simulator(name).eval()
    for shape in ((1, 3, 16, 20), (2, 3, 32, 8)):
        out = model(torch.rand(shape))
        assert out.shape == shape and 0 <= out.min() and out.max() <= 1
    with pytest.raises(ValueError, match="multiples of 4"):
        model(torch.rand(1, 3, 30, 32))
    decoder = sum(p.numel() for p in model.decoder.parameters())
    assert 100_000 < decoder < 200_000


def test_noise_changes_stylegan2_with_the_seed_only_and_nothing_else():
    for name in simulators.NAMES:
        torch.manual_seed(0)
        model = simulators.Simulator(name).eval()
        if name == "StyleGAN2":
            torch.nn.init.constant_(model.decoder.same[1].strength, 0.5)
        x = torch.rand(3, 3, 16, 16)
        assert torch.equal(model(x, seed=4), model(x, seed=4))
        assert torch.equal(model(x, seed=4), model(x, seed=9)) == (name != "StyleGAN2")
        torch.testing.assert_close(model(x, seed=4)[2:], model(x[2:], seed=6))


def test_unknown_name_and_missing_weights_are_named(tmp_path):
    with pytest.raises(ValueError, match="StyleGAN3"):
        simulators.Simulator("StyleGAN3")
    with pytest.raises(FileNotFoundError, match="scripts/train_simulators.py"):
        simulators.load("ProGAN", tmp_path)


def test_committed_weights_are_small():
    assert sum(path.stat().st_size for path in simulators.WEIGHTS.glob("*.safetensors")) <= 10e6


@pytest.mark.parametrize("name", simulators.NAMES)
def test_reconstructions_look_like_their_photos(name, photos, rebuilt):
    pairs = zip(photos.numpy(), rebuilt[name].numpy(), strict=True)
    assert np.mean([peak_signal_noise_ratio(photo, fake, data_range=1) for photo, fake in pairs]) >= 27


def test_residual_spectra_of_the_three_differ(photos, rebuilt):
    """Spectra averaged over one half of the tiles resemble their own architecture's in the other half most."""

    def spectrum(images):
        residual = images.numpy() - uniform_filter(images.numpy(), size=(1, 1, 3, 3))
        power = np.abs(np.fft.fft2(residual)).mean(axis=1)  # (B, H, W)
        power = np.log(power.reshape(len(power), 32, 4, 32, 4).mean(axis=(2, 4)) + 1e-6)
        return (power - power.mean(axis=(1, 2), keepdims=True)).mean(axis=0).ravel()

    real = [spectrum(photos[i::2]) for i in (0, 1)]
    first, second = ({n: spectrum(x[i::2]) - real[i] for n, x in rebuilt.items()} for i in (0, 1))
    for name in simulators.NAMES:
        likeness = {other: np.corrcoef(first[name], second[other])[0, 1] for other in simulators.NAMES}
        assert max(likeness, key=likeness.get) == name, likeness
