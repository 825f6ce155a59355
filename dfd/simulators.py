"""Auto-encoders that leave the traces of ProGAN, StyleGAN2 and BigGAN on real photos.

The idea of AutoGAN (Zhang, Karaman, Chang 2019, arXiv:1907.06515): a photo is encoded, then rebuilt by a decoder made
of one generator's own blocks, so that the result has the photo's content and the architecture's traces. These are
*simulated* fakes: what is learnt from them need not hold for images from the real generators.
"""

from __future__ import annotations

from pathlib import Path

import torch.nn as nn
from safetensors.torch import load_file
from torch import Tensor

from dfd.config import ROOT
from dfd.models.decoders import CODE, BigGANDecoder, ProGANDecoder, StyleGAN2Decoder

WEIGHTS = ROOT / "data" / "simulators"
REMAKE = "python -m dfd train simulators --photos FOLDER --out data/simulators"


class Encoder(nn.Module):
    """Photo to bottleneck; the same design for all three, and nothing of any generator in it."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 48, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(48, 96, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(96, CODE, 3, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # (B, CODE, H / 4, W / 4)


DECODERS = {"ProGAN": ProGANDecoder, "StyleGAN2": StyleGAN2Decoder, "BigGAN": BigGANDecoder}
NAMES = tuple(DECODERS)


class Simulator(nn.Module):
    """Rebuild photos with the decoder of one architecture.

    Args:
        name: one of NAMES.

    Raises:
        ValueError: another name.
    """

    def __init__(self, name: str):
        super().__init__()
        if name not in DECODERS:
            raise ValueError(f"no simulator for {name!r}; there are {', '.join(NAMES)}")
        self.encoder = Encoder()
        self.decoder = DECODERS[name]()

    def forward(self, images: Tensor, seed: int = 0) -> Tensor:
        """Reconstruct a batch.

        Args:
            images: (B, 3, H, W) in [0, 1], RGB; H and W multiples of 4.
            seed: of StyleGAN2's noise; image i gets what it would get alone with seed + i. The others draw nothing.

        Returns:
            (B, 3, H, W) in [0, 1]; while training the range is left open, so that every pixel has a gradient.

        Raises:
            ValueError: another shape.
        """
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] % 4 or images.shape[3] % 4:
            raise ValueError(f"expected (B, 3, H, W) with H and W multiples of 4, got {tuple(images.shape)}")
        rebuilt = (self.decoder(self.encoder(images * 2 - 1), seed) + 1) / 2
        return rebuilt if self.training else rebuilt.clamp(0, 1)


def load(name: str, folder: str | Path = WEIGHTS) -> Simulator:
    """Open a trained simulator, ready for use.

    Args:
        name: one of NAMES.
        folder: where <name>.safetensors lies.

    Raises:
        FileNotFoundError: no such file; the text says how to make it.
        ValueError: another name.
    """
    simulator = Simulator(name)
    path = Path(folder) / f"{name}.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"no weights for the simulated {name} at {path}; make them with: {REMAKE}")
    simulator.load_state_dict(load_file(path))
    return simulator.eval()
