"""Train the simulators on a folder of photographs: L1 first, a PatchGAN beside it in the second half.

The PatchGAN's weight rises for the last fifth: little of it keeps the pictures true, more of it brings back the high
frequencies that L1 blurs, and with them the traces by which the architectures differ.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.utils.parametrizations import spectral_norm
from tqdm import tqdm

from dfd.core.io import atomic_write
from dfd.inference.files import save_checkpoint
from dfd.inference.stage import uses_bfloat16
from dfd.models.simulators import NAMES, WEIGHTS, EqualConv2d, EqualLinear, ModulatedConv2d, Simulator

SIDES = (1280, 640)  # longer side of a photo in pixels; both are cut from, so that detail comes in two sizes
ADVERSARIAL = ((0.5, 0.01), (0.8, 0.05))  # from this share of the steps on: weight of the PatchGAN beside L1
HELD_OUT = 6  # one photo in so many is kept from training


def train(
    photos: str | Path,
    out: str | Path = WEIGHTS,
    names: tuple[str, ...] = NAMES,
    steps: int = 3000,
    batch: int = 16,
    crop: int = 48,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, float]:
    """Train simulators and write <out>/<name>.safetensors for each; a run that was killed goes on where it stopped.

    The state of a run lies beside the weights as <name>.training.pt and goes when it ends. Settings and held-out PSNR
    are in the metadata of the safetensors file.

    Args:
        photos: folder with photographs, searched with its subfolders; one in six is held out.
        out: folder for the weights.
        names: which of simulators.NAMES.
        steps: batches per simulator.
        batch: crops per step.
        crop: side of a crop in pixels, a multiple of 4.
        seed: of weights, crops, noise and held-out photos.
        progress: show a bar per simulator.

    Returns:
        Mean PSNR in dB over the held-out photos, by name.

    Raises:
        FileNotFoundError: fewer than two photographs in the folder.
        ValueError: a name that is not one of simulators.NAMES, a crop that is no multiple of 4, or a photo below it.
    """
    if crop % 4:
        raise ValueError(f"crop must be a multiple of 4, got {crop}")
    known, held_out = split(find(photos), seed)
    images = [shrink(path, side) for path in known for side in SIDES]
    if min(min(image.shape[1:]) for image in images) < crop:
        raise ValueError(f"a photo in {photos} is smaller than a crop of {crop} pixels")
    Path(out).mkdir(parents=True, exist_ok=True)
    settings = {"steps": steps, "batch": batch, "crop": crop, "seed": seed}
    scores = {}
    for name in names:
        run = _Run(name, Path(out), settings)
        bar = tqdm(total=steps, initial=run.step, desc=f"simulated {name}", disable=not progress)
        while run.step < steps:
            run.train_step(draw(images, batch, crop, run.random))
            bar.update()
            bar.set_postfix(PSNR=f"{run.smooth:.1f} dB", refresh=False)
            if run.step % 200 == 0:
                run.save()
        bar.close()
        scores[name] = held_out_psnr(run.simulator.eval(), held_out)
        run.finish(scores[name])
        if progress:
            print(f"simulated {name}: {scores[name]:.2f} dB on {len(held_out)} held-out photos")
    return scores


def _critic() -> nn.Sequential:
    """A PatchGAN that learns from pixels, with spectral normalisation, on patches of 34 x 34 (arXiv:1611.07004)."""
    steps: list[nn.Module] = []
    for inputs, outputs, stride in ((3, 32, 2), (32, 64, 2), (64, 128, 1)):
        steps += [spectral_norm(nn.Conv2d(inputs, outputs, 4, stride, 1)), nn.LeakyReLU(0.2)]
    return nn.Sequential(*steps, spectral_norm(nn.Conv2d(128, 1, 4, 1, 1)))


class _Run:
    """One simulator in training: networks, optimisers, schedule, and the file to go on from."""

    def __init__(self, name: str, out: Path, settings: dict[str, int]):
        self.settings, self.steps, self.seed = settings, settings["steps"], settings["seed"]
        torch.manual_seed(self.seed)
        self.weights, self.state = out / f"{name}.safetensors", out / f"{name}.training.pt"
        self.simulator = Simulator(name).to(memory_format=torch.channels_last)
        self.critic = _critic().to(memory_format=torch.channels_last)
        self.optimisers = {
            "simulator": torch.optim.Adam(_groups(self.simulator), betas=(0.5, 0.99)),
            "critic": torch.optim.Adam(self.critic.parameters(), lr=2e-4, betas=(0.5, 0.99)),
        }
        self.random = torch.Generator().manual_seed(self.seed)
        self.step, self.smooth = 0, 0.0
        if self.state.is_file():
            self._restore(torch.load(self.state, weights_only=True))

    @staticmethod
    def precision() -> torch.autocast:
        """bfloat16 where the processor computes in it, which is three times as fast here."""
        return torch.autocast("cpu", torch.bfloat16, enabled=uses_bfloat16(torch.device("cpu")))

    def learning_rate(self) -> float:
        """Rise over 100 steps, then fall to a twentieth by a cosine."""
        fall = 0.05 + 0.95 * (1 + math.cos(math.pi * self.step / self.steps)) / 2
        return 1.5e-3 * min(1.0, (self.step + 1) / 100) * fall

    def train_step(self, images: Tensor) -> None:
        """One step on (B, 3, H, W) photos in [0, 1]."""
        for group in self.optimisers["simulator"].param_groups:
            group["lr"] = self.learning_rate() * group["factor"]
        weight = max((w for start, w in ADVERSARIAL if self.step >= start * self.steps), default=0.0)
        self.simulator.train()
        for norm in self.simulator.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.train(not weight)  # from then on with the statistics that it will be used with
        images = images.to(memory_format=torch.channels_last)
        with self.precision():
            rebuilt = self.simulator(images, seed=self.seed + self.step * len(images)).float()
        loss = F.l1_loss(rebuilt, images)
        if weight:
            self._train_critic(images, rebuilt.detach())
            self.critic.requires_grad_(False)
            with self.precision():
                loss = loss - weight * self.critic(rebuilt * 2 - 1).float().mean()
        self.optimisers["simulator"].zero_grad()
        loss.backward()
        self.optimisers["simulator"].step()
        score = psnr(rebuilt.detach().clamp(0, 1), images).mean().item()
        self.smooth = 0.98 * self.smooth + 0.02 * score if self.step else score
        self.step += 1

    def _train_critic(self, images: Tensor, rebuilt: Tensor) -> None:
        """Hinge loss, Lim and Ye 2017, arXiv:1705.02894."""
        self.critic.requires_grad_(True)
        with self.precision():
            real, fake = self.critic(torch.cat([images, rebuilt]) * 2 - 1).float().chunk(2)
        loss = F.relu(1 - real).mean() + F.relu(1 + fake).mean()
        self.optimisers["critic"].zero_grad()
        loss.backward()
        self.optimisers["critic"].step()

    def save(self) -> None:
        """Write the state, whole or not at all."""
        state = {
            "simulator": self.simulator.state_dict(),
            "critic": self.critic.state_dict(),
            "optimisers": {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()},
            "random": self.random.get_state(),
            "step": self.step,
            "smooth": self.smooth,
            "settings": self.settings,
        }
        save_checkpoint(state, self.state)

    def _restore(self, state: dict) -> None:
        if state["settings"] != self.settings:
            return  # another run's: start anew
        self.simulator.load_state_dict(state["simulator"])
        self.critic.load_state_dict(state["critic"])
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state["optimisers"][name])
        self.random.set_state(state["random"])
        self.step, self.smooth = state["step"], state["smooth"]

    def finish(self, score: float) -> None:
        """Write the weights with settings and held-out PSNR in their metadata, and drop the state."""
        metadata = {key: str(value) for key, value in (self.settings | {"psnr": round(score, 2)}).items()}
        tensors = {name: tensor.contiguous() for name, tensor in self.simulator.state_dict().items()}
        with atomic_write(self.weights) as draft:
            save_file(tensors, draft, metadata)
        self.state.unlink(missing_ok=True)


def _groups(simulator: Simulator) -> list[dict]:
    """Parameters for the optimiser; those of equalised layers, N(0, 1) instead of small, get larger steps."""
    equalised = (EqualConv2d, EqualLinear, ModulatedConv2d)
    large = [p for m in simulator.modules() if isinstance(m, equalised) for p in m.parameters(recurse=False)]
    small = [p for p in simulator.parameters() if all(p is not other for other in large)]
    groups = [{"params": small, "factor": 1.0}, {"params": large, "factor": 6.0}]
    return [group for group in groups if group["params"]]


def find(folder: str | Path) -> list[Path]:
    """List the JPEG and PNG files of a folder and its subfolders, sorted by name.

    Raises:
        FileNotFoundError: fewer than two.
    """
    files = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in {".jpg", ".jpeg", ".png"})
    if len(files) < 2:
        raise FileNotFoundError(f"{len(files)} JPEG or PNG files in {folder}; the simulators need at least two photos")
    return files


def split(files: list[Path], seed: int) -> tuple[list[Path], list[Path]]:
    """Keep one photo in HELD_OUT, at least one, from training; the same ones for the same seed."""
    order = np.random.default_rng(seed).permutation(len(files))
    count = max(1, len(files) // HELD_OUT)
    return [files[i] for i in sorted(order[count:])], [files[i] for i in sorted(order[:count])]


def shrink(path: Path, side: int) -> Tensor:
    """Open a photo at most `side` pixels long, as a (3, H, W) uint8 tensor."""
    with Image.open(path) as image:
        image.draft("RGB", (side, side))
        image = image.convert("RGB")
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def draw(images: list[Tensor], batch: int, crop: int, random: torch.Generator) -> Tensor:
    """Cut crops at random, each the more contrasted of two, turned and mirrored, colours sometimes exchanged or grey.

    Args:
        images: (3, H, W) uint8 photos, each at least `crop` on both sides.
        batch: number of crops.
        crop: side in pixels.
        random: the state that all choices come from.

    Returns:
        (batch, 3, crop, crop) in [0, 1].
    """

    def integer(below: int) -> int:
        return int(torch.randint(below, (), generator=random))

    crops = []
    for _ in range(batch):
        pair = []
        for _ in range(2):
            image = images[integer(len(images))]
            top, left = integer(image.shape[1] - crop + 1), integer(image.shape[2] - crop + 1)
            pair.append(image[:, top : top + crop, left : left + crop].float() / 255)
        patch = max(pair, key=lambda p: p.std().item())
        patch = patch.rot90(integer(4), (1, 2))
        patch = patch.flip(2) if integer(2) else patch
        kind = integer(6)
        if kind == 0:
            patch = patch.mean(dim=0, keepdim=True).expand(3, -1, -1)
        elif kind in (1, 2):
            patch = patch[torch.randperm(3, generator=random)]
        crops.append(patch)
    return torch.stack(crops)


def psnr(rebuilt: Tensor, images: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each image of a (B, 3, H, W) batch in [0, 1]: (B,)."""
    return -10 * (rebuilt - images).square().mean(dim=(1, 2, 3)).clamp(min=1e-10).log10()


@torch.inference_mode()
def held_out_psnr(simulator: Simulator, paths: list[Path], side: int = SIDES[-1], tile: int = 128) -> float:
    """Mean PSNR in dB over photos: each is made `side` long and cut in tiles, whose errors are averaged."""
    scores = []
    for path in paths:
        image = shrink(path, side)
        tiles = cut(image, min(tile, *image.shape[1:]) // 4 * 4)
        scores.append(psnr(simulator(tiles), tiles).mean().item())
    return float(np.mean(scores))


def cut(image: Tensor, tile: int) -> Tensor:
    """Cut a (3, H, W) uint8 photo in square tiles side by side: (N, 3, tile, tile) in [0, 1]."""
    tiles = image.unfold(1, tile, tile).unfold(2, tile, tile)  # (3, rows, columns, tile, tile)
    return tiles.permute(1, 2, 0, 3, 4).flatten(0, 1).float() / 255


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--photos", required=True, help="folder with photographs, searched with its subfolders")
    parser.add_argument("--out", default=WEIGHTS, help="folder for the weights (default: %(default)s)")
    parser.add_argument("--names", nargs="+", default=NAMES, choices=NAMES, help="which simulators (default: all)")
    parser.add_argument("--steps", type=int, default=3000, help="batches per simulator (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, crops and held-out photos (default: 0)")
    options = parser.parse_args()
    train(options.photos, options.out, tuple(options.names), options.steps, seed=options.seed)


if __name__ == "__main__":
    main()
