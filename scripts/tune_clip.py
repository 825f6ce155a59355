"""Tune CLIP's trunk by low-rank adapters for the detector that ships: `tune_clip.py ../shared/data/GANAttributes OUT`.

Once on all images, then for each joint hold-out and each of SPLITS, to judge what they leave out: OUT gets
tuned.safetensors and draws/*.npz, from which scripts/ship_detector.py makes the detector, and splits/*.npz, whose AUC
is printed. "unknown ProGAN" leaves out that generator and a source of each other label: its AUROC is of telling that
generator's images from those of the other generators' sources. A stopped run goes on, within a tuning too. Meant for a
GPU: a draw takes 14 s on an H100. On two cores `--size small --split "new subjects"` is one split with a fifth of the
crops, of at most 80 images a source, in an hour; `--size third` with a third, of all images, in 80 minutes.

Heads start as linear discriminants on the frozen tokens, scaled down, so that tuning keeps what CLIP knows (Kumar et
al. 2022, arXiv:2202.10054); adapters are LoRA, Hu et al. 2021, arXiv:2106.09685. Images weigh by class, source and
subject, a cluster of the last block's tokens, so that no subject tells the class.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zlib import crc32

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from sklearn.cluster import KMeans
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.data import DataLoader

from dfd.config import REAL
from dfd.core.images import load_rgb
from dfd.core.io import atomic_write, digest, read_json, write_json
from dfd.core.runs import bar, keep_freed, run_lock
from dfd.data.crops import Seeded, random_crop, seeds
from dfd.inference.stage import uses_bfloat16
from dfd.models.clip import BLOCKS, SIDE, Trunk
from dfd.train.bank import CONDITIONS, Views
from dfd.train.heads import Discriminants, joint_hold_outs

CROP, DRAWS, RATE, HEAD_RATE, RANK = 128, 40, 1e-4, 1e-4, 8  # CROP in pixels
SCALE, SMOOTHING = 0.1, 0.05  # of the discriminants' logits at the start; of the labels of stage 1
ZOOM = 0.5  # the smallest part of a crop that a fake is named by: names hang on zoom more than real or fake does
SUBJECTS, LIMIT = 16, 5  # clusters, and the factor by which each of three passes changes an image's weight at most
SAME = {"jbhuang0604/SelfExSR BSD100": "BIDS/BSDS500"}  # BSD100's photos lie within BSDS500
SPLITS = {  # whole sources that both leave out, of docs/results.md
    "known subjects": [
        "jbhuang0604/SelfExSR BSD100", "jbhuang0604/SelfExSR Urban100", "rosinality/progressive-gan-pytorch",
        "davidbau/ganseeing", "HendrikStrobelt/ganseeing", "nathantseng/PGGAN", "junguler/TPDNE_example_images",
        "pchakraborty20/DPML_GANs",
    ],
    "new subjects": [
        "dinablachman/realorfake", "akanimax/pro_gan_pytorch-examples", "Vishruit/stylegan2",
        "pchakraborty20/DPML_GANs", "davidbau/ganseeing", "HendrikStrobelt/ganseeing",
    ],
}  # fmt: skip
EVERY = 10  # steps, after which a tuning is kept
UNKNOWN = "unknown "  # and a generator's name: the split that leaves it out
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PART = 512 if DEVICE.type == "cuda" else 16  # crops that pass at once


@dataclass(frozen=True)
class Sizes:
    """How much is learnt and judged."""

    steps: int = 200
    batch: int = 160
    judged: int = 3  # crops of an image, a condition, that are judged
    clean: int = 7  # training views of an image beside those of CONDITIONS
    degraded: int = 7
    images: int = 1_000_000  # of a source and label, at most
    fitted: int = 1_000_000  # the same, of those that heads start from

    @property
    def views(self) -> int:
        """Crops of an image that are judged, the first of its views."""
        return self.judged * len(CONDITIONS)


SMALL = Sizes(100, 64, 1, 2, 2, 80)
THIRD = Sizes(64, 160, 1, 4, 4, fitted=40)
SIZES = {"full": Sizes(), "long": replace(THIRD, steps=200), "third": THIRD, "small": SMALL}


class Lora(nn.Module):
    """A low-rank change of a matrix, as a parametrization of torch's; Hu et al. 2021, arXiv:2106.09685."""

    def __init__(self, rows: int, columns: int, rank: int):
        super().__init__()
        self.down, self.up = nn.Parameter(torch.empty(rank, columns)), nn.Parameter(torch.empty(rows, rank))
        self.reset()

    def reset(self) -> None:
        """Change nothing, ready to learn."""
        nn.init.normal_(self.down, std=self.down.shape[1] ** -0.5)
        nn.init.zeros_(self.up)

    def forward(self, matrix: Tensor) -> Tensor:
        return matrix + self.up @ self.down


def pooled(weight: np.ndarray, bias: np.ndarray, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean of each class's sources, weights (K, D) and biases (K,): 0 and -inf where it has none."""
    return shares.T @ weight, np.where(shares.any(0), shares.T @ bias, -np.inf)


def adapt(trunk: Trunk, rank: int) -> None:
    """Give each matrix of the blocks an adapter that training may change and that changes nothing yet."""
    for block in trunk.vit.blocks:
        for layer in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
            adapter = Lora(layer.out_features, layer.in_features, rank).to(layer.weight)
            parametrize.register_parametrization(layer, "weight", adapter)


class Pool(Views):
    """The views of CONDITIONS, then clean and degraded ones for training: (V, 3, S, S) uint8."""

    def __init__(self, table: pd.DataFrame, cfg: Any):
        super().__init__(table, cfg)
        self.sizes: Sizes = cfg.sizes

    def __getitem__(self, index: int) -> Tensor:
        photo = load_rgb(self.paths[index])
        clean = [random_crop(self.window(photo), self.crop_size) / 255 for _ in range(self.sizes.clean)]
        return (torch.cat([super().__getitem__(index), *clean]) * 255).round().byte()

    def crops(self, image: Tensor) -> Tensor:
        return torch.cat([super(Pool, self).crops(image) for _ in range(self.sizes.judged)])


def few(table: pd.DataFrame, count: int) -> np.ndarray:
    """The rows, ascending, of at most `count` images of each source and label."""
    return np.sort(table.sample(frac=1, random_state=0).groupby(["label", "source"]).head(count).index)


def listed(data: Path, sizes: Sizes) -> pd.DataFrame:
    """The images of provenance.csv, its source called repository; those of SAME are one source."""
    table = pd.read_csv(data.parent / "provenance.csv").rename(columns={"file": "path"})
    table = table.loc[few(table, sizes.images)].reset_index(drop=True)
    table = table.assign(repository=table["source"], is_fake=table["label"] != REAL)
    table["source"], table.attrs["root"] = table["source"].replace(SAME), str(data)
    return table


def views(table: pd.DataFrame, path: Path, sizes: Sizes) -> Tensor:
    """The pool of all images, (N, V, 3, S, S) uint8 on the device, built once."""
    settings: Any = SimpleNamespace(crop_size=CROP, equalise=False, equalise_quality=90, degrade=True, sizes=sizes)
    settings.random_views = sizes.degraded
    shape = (len(table), sizes.views + sizes.degraded + sizes.clean, 3, CROP, CROP)
    if not path.exists():
        with atomic_write(path) as draft:
            pool: Any = np.lib.format.open_memmap(draft, "w+", np.uint8, shape)
            draws: Any = list(enumerate(seeds(len(table), 0, 2)))
            loader = DataLoader(Seeded(Pool(table, settings)), 4, sampler=draws, num_workers=torch.get_num_threads())
            for number, batch in enumerate(bar(loader, desc="views", unit="batch")):
                pool[4 * number : 4 * number + len(batch)] = batch
            pool.flush()
    pool = np.load(path)
    if pool.shape != shape:
        raise ValueError(f"{path} was made of other images or with another --size; take another OUT")
    return torch.from_numpy(pool).to(DEVICE)


def tokens(trunk: Trunk, crops: Tensor) -> Tensor:
    """The tokens side by side, (B, blocks * D), of crops in [0, 1]."""
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=uses_bfloat16(DEVICE)):
        return trunk.tokens(crops).flatten(1)


@torch.inference_mode()
def features(trunk: Trunk, pool: Tensor, views: range) -> np.ndarray:
    """Tokens (N, V, blocks * D), float16, of these views."""
    parts = [part[:, v] for v in views for part in pool.split(PART)]
    answers = [tokens(trunk, part / 255).half().cpu() for part in bar(parts, desc="tokens", unit="batch")]
    return torch.cat(answers).unflatten(0, (len(views), -1)).transpose(0, 1).numpy()


def kept_as(path: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """The array of this file, made and written where there is none."""
    if not path.exists():
        with atomic_write(path) as draft, draft.open("wb") as file:
            np.save(file, make())
    return np.load(path)


def zoom(crops: Tensor, which: Tensor) -> Tensor:
    """Crops (B, 3, S, S) in [0, 1], RGB, enlarged to SIDE; of `which`, (B,), a random part of at least ZOOM."""
    part = torch.where(which, ZOOM + (1 - ZOOM) * torch.rand(len(crops), device=crops.device), 1.0)
    turned = torch.diag_embed(part[:, None].expand(-1, 2))
    shift = (1 - part)[:, None] * (2 * torch.rand(len(crops), 2, device=crops.device) - 1)
    grid = F.affine_grid(torch.cat([turned, shift[..., None]], -1), [len(crops), 3, SIDE, SIDE], align_corners=False)
    return F.grid_sample(crops, grid, "bicubic", padding_mode="border", align_corners=False).clamp(0, 1)


def weights(table: pd.DataFrame, subject: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """How often each image is drawn: half photos, sources by the root of their size, then subjects.

    Each subject comes as often among photos as among fakes, as far as LIMIT lets it.
    """
    is_fake, weight = table["is_fake"].to_numpy(), np.zeros(len(table))
    cells = table[kept].groupby(["label", "source"])["label"].transform("size")
    weight[kept] = cells**-0.5
    for label in table["label"].unique():
        weight[table["label"] == label] /= max(weight[table["label"] == label].sum(), 1e-12)
    for _ in range(3):
        for side in (is_fake, ~is_fake):
            weight[side] /= 2 * weight[side].sum()
        shares = np.array(
            [[2 * weight[side & (subject == s)].sum() for s in range(SUBJECTS)] for side in (is_fake, ~is_fake)]
        )
        target = np.sqrt((shares + 0.002).prod(0))
        factors = np.clip(target / target.sum() / np.maximum(shares, 1e-12), 1 / LIMIT, LIMIT)
        weight *= np.where(is_fake, factors[0][subject], factors[1][subject])
    return weight / weight.sum()


def tune(
    trunk: Trunk,
    pool: Tensor,
    table: pd.DataFrame,
    weight: np.ndarray,
    fitted: list,
    seed: int,
    sizes: Sizes,
    state: Path,
) -> list[nn.Linear]:
    """Train the trunk's adapters, anew, and the two heads, which start as the `fitted` discriminants.

    A training that was stopped goes on from its file `state`, written every EVERY steps.
    """
    torch.manual_seed(seed)
    adapters = [module for module in trunk.modules() if isinstance(module, Lora)]
    heads = []
    for outputs, (matrix, bias) in zip((1, 3), fitted, strict=True):
        head = nn.Linear(matrix.shape[1], outputs)
        pair = (matrix[1:] - matrix[:1], bias[1:] - bias[:1]) if outputs == 1 else (matrix, bias)
        head.load_state_dict(
            dict(zip(("weight", "bias"), (SCALE * torch.from_numpy(part) for part in pair), strict=True))
        )
        heads.append(head.to(DEVICE))
    for adapter in adapters:
        adapter.reset()
    groups = [{"params": [p for a in adapters for p in a.parameters()], "lr": RATE},
              {"params": [p for head in heads for p in head.parameters()], "lr": HEAD_RATE}]  # fmt: skip
    optimiser = torch.optim.AdamW(groups, weight_decay=0.01)

    def rate(step: int) -> float:
        return min(1, (step + 1) / (0.1 * sizes.steps)) * (1 + math.cos(math.pi * step / sizes.steps)) / 2

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
    is_fake = torch.tensor(table["is_fake"].to_numpy(), dtype=torch.float32, device=DEVICE)
    generators = sorted(set(table["label"]) - {REAL})
    names = torch.tensor([generators.index(label) if label != REAL else -1 for label in table["label"]], device=DEVICE)
    of_views = torch.ones(pool.shape[1], device=DEVICE)
    of_views[: sizes.views] /= sizes.judged  # crops of a condition weigh as one view
    rows = torch.multinomial(torch.tensor(weight, device=DEVICE).float(), sizes.steps * sizes.batch, True)
    parts = nn.ModuleList([*adapters, *heads])
    done = 0
    if state.exists():
        then = torch.load(state, map_location=DEVICE, weights_only=True)
        done = then["step"]
        for part, values in zip((parts, optimiser, schedule), then["states"], strict=True):
            part.load_state_dict(values)
        torch.set_rng_state(then["random"].cpu())
        torch.cuda.set_rng_state_all([part.cpu() for part in then["cuda"]])
    for step in bar(range(done, sizes.steps), desc="steps", unit="step", initial=done, total=sizes.steps):
        if step > done and step % EVERY == 0:
            states = [part.state_dict() for part in (parts, optimiser, schedule)]
            with atomic_write(state) as draft:
                random = {"random": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}
                torch.save({"step": step, "states": states} | random, draft)
        row = rows.view(sizes.steps, sizes.batch)[step]
        crops = pool[row, torch.multinomial(of_views, sizes.batch, True)] / 255
        truth, name = is_fake[row], names[row]
        zoomed = (torch.rand(sizes.batch, device=DEVICE) < 0.5) & (truth > 0)  # half of the fakes: only named
        crops = zoom(crops.flip(-1) if torch.rand(()) < 0.5 else crops, zoomed)
        smooth = truth * (1 - 2 * SMOOTHING) + SMOOTHING
        share = sum(side / side.sum().clamp(min=1) for side in (truth == 0, (truth > 0) & ~zoomed)) / 2
        optimiser.zero_grad()
        for some in torch.arange(sizes.batch, device=DEVICE).split(PART):
            answers = tokens(trunk, crops[some])
            errors = F.binary_cross_entropy_with_logits(heads[0](answers)[:, 0], smooth[some], reduction="none")
            unnamed = F.cross_entropy(heads[1](answers), name[some], ignore_index=-1, reduction="sum")
            ((errors * share[some]).sum() + 0.5 * unnamed / (name >= 0).sum().clamp(min=1)).backward()
        nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], 1.0)
        optimiser.step()
        schedule.step()
    return heads


def ahead(items: Iterator) -> Iterator:
    """The items, each made while the one before is in use."""
    with ThreadPoolExecutor(1) as worker:
        future = worker.submit(next, items, None)
        while (item := future.result()) is not None:
            future = worker.submit(next, items, None)
            yield item


def report(folder: Path, table: pd.DataFrame) -> None:
    """Print how well each split's photos are told from fakes, or fakes of an unknown generator from others, by AUC.

    The score of the latter is by how little speaks for any name, and sources weigh alike; tuned and frozen.
    """
    by_path = table.set_index("path")
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as file:
            split = dict(file)
        rows, of_unknown = by_path.loc[split["path"]], path.stem.startswith(UNKNOWN)
        split["frozen1"] = split["frozen1"][..., 1:] - split["frozen1"][..., :1]
        kept = rows["is_fake"].to_numpy() | (not of_unknown)
        positive = (rows["label"] == path.stem.removeprefix(UNKNOWN) if of_unknown else rows["is_fake"])[kept]
        weight = 1 / rows[kept].groupby(["label", "source"])["label"].transform("size") if of_unknown else None
        for name, answers in (("tuned", "stage"), ("frozen", "frozen")):
            logits = split[answers + ("2" if of_unknown else "1")][kept].mean(2)
            values = -logits.max(-1) if of_unknown else logits[..., 0]
            aucs = [round(float(roc_auc_score(positive, column, sample_weight=weight)), 3) for column in values.T]
            print(f"{path.stem}, {kept.sum()} images, {name}, AUC as it is, JPEG 95, 75, 50: {aucs}")


def main(data: Path, out: Path, sizes: Sizes, only: Collection[str] = ()) -> None:
    """Tune for everything, or for the splits `only`; a name that is none of them is a ValueError."""
    for folder in ("draws", "splits"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    keep_freed()
    table = listed(data, sizes)
    made_from = {"images": digest(table[["path", "label", "source"]].to_json(), asdict(sizes))}
    if (known := read_json(out / "made_from.json") or made_from) != made_from:
        text = "other images, labels or sources, or with another --size; take another OUT"
        raise ValueError(f"{out} was made of {text} ({known['images']} is not {made_from['images']})")
    write_json(out / "made_from.json", made_from)
    left_out = {name: np.isin(table["repository"], SPLITS[name]) for name in SPLITS}
    generators = sorted(set(table["label"]) - {REAL})
    if wrong := set(only) - {*SPLITS, *(UNKNOWN + name for name in generators)}:
        raise ValueError(f"no split is called {', '.join(wrong)}: {', '.join(SPLITS)}, {UNKNOWN}{generators[0]} …")
    pool = views(table, out / "views.npy", sizes)
    whole = Trunk((12,)).to(DEVICE)
    subjects = kept_as(out / "subjects.npy", lambda: features(whole, pool, range(1)))[:, 0].astype(np.float32)
    subject = KMeans(SUBJECTS, n_init=3, random_state=0).fit_predict(subjects - subjects.mean(0))
    trunk = Trunk(BLOCKS).to(DEVICE)
    is_fake, sources = table["is_fake"].to_numpy(), table["source"].to_numpy()
    draws = list(joint_hold_outs(table["label"].to_numpy(), sources, DRAWS, 0))
    for label, draw in zip(generators, draws, strict=False):
        left_out[UNKNOWN + label] = np.isin(sources, list(draw.values())) | (table["label"] == label).to_numpy()
    held_out = {"tuned.safetensors": np.zeros(len(table), bool)}
    held_out = {f"draws/{n:02}.npz": np.isin(sources, list(draw.values())) for n, draw in enumerate(draws)} | held_out
    held_out |= {f"splits/{name}.npz": held for name, held in left_out.items() if held.any()}
    number_of = {name: number for number, name in enumerate(held_out)}
    wanted = [f"splits/{name}.npz" for name in only] or sorted(held_out, key="tuned.safetensors".__ne__)
    waiting = [name for name in wanted if not (out / name).exists()]
    learns = few(table, sizes.fitted)
    seen = np.unique(np.concatenate([learns, *(np.flatnonzero(held_out[name]) for name in wanted)]))
    of_seen = pool if len(seen) == len(pool) else pool[torch.from_numpy(seen).to(DEVICE)]
    path = out / f"frozen-{crc32(seen.tobytes()):08x}.npy"
    frozen = kept_as(path, lambda: features(trunk, of_seen, range(sizes.views + 1)))
    row_of = np.full(len(table), -1)
    row_of[seen] = np.arange(len(seen))
    of_conditions = [*range(0, sizes.views, sizes.judged), sizes.views]  # one of each, and a degraded one
    learnt = frozen[row_of[learns]][:, of_conditions]
    fakes = is_fake[learns]
    names = pd.Categorical(table["label"][learns[fakes]]).codes
    discriminants = [Discriminants(learnt, fakes.astype(int), sources[learns], 0.1),
                     Discriminants(learnt[fakes], names, sources[learns[fakes]], 0.1)]  # fmt: skip
    adapt(trunk, RANK)
    trunk.to(DEVICE)

    def discriminate(name: str) -> tuple[np.ndarray, set[str], list, dict[str, np.ndarray]]:
        held, without = held_out[name], set(sources[held_out[name]])
        fitted = [pooled(*heads.fit(without)) for heads in discriminants]
        rows = frozen[row_of[held], : sizes.views].astype(np.float32)
        answers = {f"frozen{n}": rows @ matrix.T + bias for n, (matrix, bias) in enumerate(fitted, 1)}
        return held, without, fitted, answers

    prepared = ((name, *discriminate(name)) for name in waiting)
    for name, held, without, fitted, answers in bar(ahead(prepared), desc="tuning", unit="draw", total=len(waiting)):
        kept = ~np.isin(sources, list(without))
        path = out / name
        state = path.with_suffix(".training.pt")
        heads = tune(trunk, pool, table, weights(table, subject, kept), fitted, number_of[name], sizes, state)
        if held.any():
            with parametrize.cached(), torch.inference_mode():
                judged = features(trunk, pool[torch.from_numpy(held).to(DEVICE)], range(sizes.views))
                for n, head in enumerate(heads, 1):
                    answers[f"stage{n}"] = head(torch.from_numpy(judged).to(DEVICE).float()).cpu().numpy()
            answers = {key: part.reshape(len(part), len(CONDITIONS), sizes.judged, -1) for key, part in answers.items()}
            with atomic_write(path) as draft, draft.open("wb") as file:
                np.savez(file, path=table["path"][held].to_numpy(str), **answers)
        else:
            adapter = {
                name: p.detach().half().cpu()
                for name, p in trunk.named_parameters()
                if "parametrizations.weight.0" in name
            }
            linear = {
                f"stage{n}.{name}": p.detach().cpu()
                for n, head in enumerate(heads, 1)
                for name, p in head.named_parameters()
            }
            with atomic_write(path) as draft:  # that it is there says that it is done
                save_file(adapter | linear, draft)
        state.unlink(missing_ok=True)
    report(out / "splits", table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the four classes, with provenance.csv beside it")
    parser.add_argument("out", type=Path, help="folder for what is made; the same again goes on")
    parser.add_argument("--size", choices=SIZES, default="full", help="but for full: what two cores can do in a night")
    parser.add_argument("--split", action="append", default=[], help=f"tune for this alone: {', '.join(SPLITS)}, "
                        f"{UNKNOWN}ProGAN …; may be given again")  # fmt: skip
    asked = parser.parse_args()
    with run_lock(asked.out):  # two at once would write one pool
        main(asked.data, asked.out, SIZES[asked.size], asked.split)
