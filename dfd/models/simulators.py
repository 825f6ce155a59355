"""Auto-encoders that leave the traces of ProGAN, StyleGAN2 and BigGAN on real photos, after arXiv:1907.06515.

Each has a decoder made of one generator's own building blocks, small enough to train on a laptop: it takes a code
(B, CODE, H / 4, W / 4) and gives an image (B, 3, H, W), nominally in [-1, 1]. ProGAN is Karras et al. 2018,
arXiv:1710.10196; StyleGAN2 Karras et al. 2020, arXiv:1912.04958; BigGAN Brock et al. 2019, arXiv:1809.11096.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from dfd.config import ROOT

CODE = 24  # channels of the code, at a quarter of the photo's height and width
WIDTHS = (96, 48, 24)  # channels at a quarter, a half and the whole of the photo's size
PAIRS = ((WIDTHS[0], WIDTHS[1]), (WIDTHS[1], WIDTHS[2]))  # into and out of the two upsampling blocks


class EqualConv2d(nn.Module):
    """Convolution with equalised learning rate: N(0, 1) weights, scaled by He's constant at every use. ProGAN, 4.1."""

    def __init__(self, inputs: int, outputs: int, kernel: int, gain: float = math.sqrt(2)):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.scale = gain / math.sqrt(inputs * kernel**2)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.scale, self.bias, padding=self.weight.shape[-1] // 2)


class EqualLinear(nn.Module):
    """Linear layer with equalised learning rate, as EqualConv2d with gain 1."""

    def __init__(self, inputs: int, outputs: int, bias: float = 0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.bias = nn.Parameter(torch.full((outputs,), bias))
        self.scale = 1 / math.sqrt(inputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.scale, self.bias)


class PixelNorm(nn.Module):
    """Scale the feature vector of each pixel to a mean square of one. ProGAN, section 4.2."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-8)


class ProGANDecoder(nn.Module):
    """Nearest-neighbour upsampling, equalised convolutions, PixelNorm, a linear 1 x 1 toRGB. ProGAN, table 2."""

    def __init__(self):
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((CODE, WIDTHS[0]), *PAIRS):
            if layers:
                layers.append(nn.Upsample(scale_factor=2, mode="nearest"))
            for width in (inputs, outputs):
                layers += [EqualConv2d(width, outputs, 3), nn.LeakyReLU(0.2), PixelNorm()]
        self.net = nn.Sequential(*layers, EqualConv2d(WIDTHS[-1], 3, 1, gain=1.0))  # the last is toRGB

    def forward(self, code: Tensor, seed: int) -> Tensor:
        return self.net(code)  # (B, 3, H, W)


def fir_kernel(x: Tensor) -> Tensor:
    """StyleGAN2's separable [1, 3, 3, 1] low-pass filter, whose sum is 4, for each channel of (B, C, H, W)."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    return (torch.outer(taps, taps) / 16).to(x).expand(x.shape[1], 1, 4, 4)


def fir_upsample(x: Tensor) -> Tensor:
    """(B, C, H, W) to (B, C, 2 H, 2 W): zeros in between, then the [1, 3, 3, 1] filter; borders are repeated."""
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    return F.conv_transpose2d(padded, fir_kernel(x), stride=2, groups=x.shape[1])[..., 3:-3, 3:-3]


class ModulatedConv2d(nn.Module):
    """Convolution whose weights are scaled by a style per input channel, then to unit norm per output channel.

    StyleGAN2, section 2.2. Input and output are scaled in place of the weights. Upsampling is strided, then filtered.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, style: int, demodulate: bool = True, up: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.scale = 1 / math.sqrt(inputs * kernel**2)
        self.style = EqualLinear(style, inputs, bias=1.0)
        self.demodulate, self.up = demodulate, up

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        style, weight = self.style(w), self.weight * self.scale
        x = x * style[:, :, None, None]
        if self.up:
            x = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)  # (B, outputs, 2 H + 1, 2 W + 1)
            padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
            x = F.conv2d(padded, fir_kernel(x), groups=x.shape[1])  # (B, outputs, 2 H, 2 W)
        else:
            x = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
        if not self.demodulate:
            return x
        energy = style.square() @ weight.square().sum(dim=(2, 3)).T  # (B, outputs), of the modulated weights
        return x * torch.rsqrt(energy + 1e-8)[:, :, None, None]


class StyledConv(nn.Module):
    """Modulated convolution, then noise times a learnt strength, bias and leaky ReLU. StyleGAN2, figure 2c."""

    def __init__(self, inputs: int, outputs: int, style: int, layer: int, up: bool = False):
        super().__init__()
        self.conv = ModulatedConv2d(inputs, outputs, 3, style, up=up)
        self.strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(outputs, 1, 1))
        self.layer = layer

    def forward(self, x: Tensor, w: Tensor, seed: int) -> Tensor:
        """Image i of the batch gets the noise that it would get alone with seed + i."""
        x = self.conv(x, w)
        draws = [torch.Generator().manual_seed((seed + i) * 16 + self.layer) for i in range(len(x))]
        noise = torch.stack([torch.randn((1, *x.shape[2:]), generator=draw) for draw in draws]).to(x)
        return F.leaky_relu(x + self.strength * noise + self.bias, 0.2) * math.sqrt(2)


class StyleGAN2Decoder(nn.Module):
    """Modulated and demodulated convolutions, filtered upsampling, noise, and RGB skip connections.

    The code takes the place of the learnt constant; its mean over the photo, through the mapping network, is the style.
    """

    def __init__(self, style: int = 64):
        super().__init__()
        first, second = EqualLinear(CODE, style), EqualLinear(style, style)
        self.mapping = nn.Sequential(PixelNorm(), first, nn.LeakyReLU(0.2), second, nn.LeakyReLU(0.2))
        self.first = StyledConv(CODE, WIDTHS[0], style, layer=0)
        self.up = nn.ModuleList([StyledConv(a, b, style, 1 + i, up=True) for i, (a, b) in enumerate(PAIRS)])
        self.same = nn.ModuleList([StyledConv(b, b, style, 3 + i) for i, b in enumerate(WIDTHS[1:])])
        self.rgb = nn.ModuleList([ModulatedConv2d(n, 3, 1, style, demodulate=False) for n in WIDTHS])
        self.bias = nn.Parameter(torch.zeros(3, 1, 1))

    def forward(self, code: Tensor, seed: int) -> Tensor:
        w = self.mapping(code.mean(dim=(2, 3)))  # (B, style)
        x = self.first(code, w, seed)
        image = self.rgb[0](x, w)
        for up, same, rgb in zip(self.up, self.same, self.rgb[1:], strict=True):
            x = same(up(x, w, seed), w, seed)
            image = fir_upsample(image) + rgb(x, w)
        return image + self.bias  # (B, 3, H, W)


class ConditionalBatchNorm2d(nn.Module):
    """Batch norm whose gain and bias are linear in a condition, as in BigGAN."""

    def __init__(self, channels: int, condition: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.gain, self.bias = (nn.Linear(condition, channels, bias=False) for _ in range(2))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.norm(x) * (1 + self.gain(condition))[:, :, None, None] + self.bias(condition)[:, :, None, None]


class SelfAttention(nn.Module):
    """Every pixel looks at all others, added with a learnt weight that starts at zero; SAGAN, arXiv:1805.08318.

    Keys and values are pooled as in BigGAN. Memory grows with the square of the number of pixels.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.query, self.key = (nn.Conv2d(channels, channels // 8, 1, bias=False) for _ in range(2))
        self.value = nn.Conv2d(channels, channels // 2, 1, bias=False)
        self.out = nn.Conv2d(channels // 2, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        query = self.query(x).flatten(2).transpose(1, 2)  # (B, N, C / 8)
        key, value = (F.max_pool2d(part(x), 2).flatten(2) for part in (self.key, self.value))  # (B, C / 8 or 2, N / 4)
        weights = torch.softmax(query @ key, dim=-1)
        looked = (value @ weights.transpose(1, 2)).unflatten(2, x.shape[2:])  # (B, C / 2, H, W)
        return x + self.gamma * self.out(looked)


class BigGANBlock(nn.Module):
    """Residual upsampling block: twice conditional batch norm, ReLU, 3 x 3. BigGAN, figure 15b."""

    def __init__(self, inputs: int, outputs: int, condition: int):
        super().__init__()
        self.norm1, self.norm2 = (ConditionalBatchNorm2d(n, condition) for n in (inputs, outputs))
        self.conv1, self.conv2 = (nn.Conv2d(n, outputs, 3, padding=1) for n in (inputs, outputs))
        self.skip = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = F.interpolate(F.relu(self.norm1(x, condition)), scale_factor=2, mode="nearest")
        h = F.relu(self.norm2(self.conv1(h), condition))
        # a 1 x 1 convolution before nearest-neighbour upsampling gives the same as after it, at a quarter of the cost
        return self.conv2(h) + F.interpolate(self.skip(x), scale_factor=2, mode="nearest")


class BigGANDecoder(nn.Module):
    """Residual blocks with conditional batch norm, nearest-neighbour upsampling, self-attention, tanh.

    The average of the code over the photo takes the place of the class embedding.
    """

    def __init__(self, condition: int = 32):
        super().__init__()
        self.embed = nn.Linear(CODE, condition)
        self.first = nn.Conv2d(CODE, WIDTHS[0], 3, padding=1)
        self.attention = SelfAttention(WIDTHS[0])
        self.blocks = nn.ModuleList([BigGANBlock(a, b, condition) for a, b in PAIRS])
        self.norm = nn.BatchNorm2d(WIDTHS[-1])
        self.rgb = nn.Conv2d(WIDTHS[-1], 3, 3, padding=1)

    def forward(self, code: Tensor, seed: int) -> Tensor:
        condition = self.embed(code.mean(dim=(2, 3)))  # (B, condition)
        x = self.attention(self.first(code))
        for block in self.blocks:
            x = block(x, condition)
        return torch.tanh(self.rgb(F.relu(self.norm(x))))  # (B, 3, H, W)


WEIGHTS = ROOT / "data" / "simulators"
REMAKE = "python scripts/train_simulators.py --photos FOLDER --out data/simulators"
DECODERS = {"ProGAN": ProGANDecoder, "StyleGAN2": StyleGAN2Decoder, "BigGAN": BigGANDecoder}
NAMES = tuple(DECODERS)


class Simulator(nn.Module):
    """Rebuild photos with the decoder of one architecture, one of NAMES; the encoder is the same for all."""

    def __init__(self, name: str):
        super().__init__()
        if name not in DECODERS:
            raise ValueError(f"no simulator for {name!r}; there are {', '.join(NAMES)}")
        layers = [nn.Conv2d(3, 48, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(48, 96, 4, 2, 1), nn.LeakyReLU(0.2)]
        self.encoder = nn.ModuleDict({"net": nn.Sequential(*layers, nn.Conv2d(96, CODE, 3, 1, 1))})  # as in the files
        self.decoder = DECODERS[name]()

    def forward(self, images: Tensor, seed: int = 0) -> Tensor:
        """Rebuild (B, 3, H, W) images in [0, 1], H and W multiples of 4; training leaves the output's range open."""
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] % 4 or images.shape[3] % 4:
            raise ValueError(f"expected (B, 3, H, W) with H and W multiples of 4, got {tuple(images.shape)}")
        rebuilt = (self.decoder(self.encoder["net"](images * 2 - 1), seed) + 1) / 2
        return rebuilt if self.training else rebuilt.clamp(0, 1)


def load(name: str, folder: str | Path = WEIGHTS) -> Simulator:
    """Open the trained simulator of <folder>/<name>.safetensors, or a FileNotFoundError that says how to make it."""
    simulator, path = Simulator(name), Path(folder) / f"{name}.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"no weights for the simulated {name} at {path}; make them with: {REMAKE}")
    simulator.load_state_dict(load_file(path))
    return simulator.eval()
