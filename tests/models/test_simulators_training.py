"""Training of the simulators: held-out photos stay out, a killed run goes on exactly, and a few steps help."""

import numpy as np
import pytest
import torch
import train_simulators
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio

from dfd.models import simulators


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Four smooth pictures, 96 x 80 px, one of them in a subfolder."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "more").mkdir()
    random = np.random.default_rng(0)
    for i in range(4):
        noise = gaussian_filter(random.normal(size=(80, 96, 3)), (4, 4, 0))
        pixels = 255 * (noise - noise.min()) / np.ptp(noise)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / ("more" if i == 3 else ".") / f"{i}.png")
    return folder


def small(photos, out, **changes):
    settings = {"names": ("BigGAN",), "steps": 6, "batch": 2, "crop": 32, "progress": False} | changes
    return train_simulators.train(photos, out, **settings)


def test_training_writes_weights_that_load_and_says_their_score(photos, tmp_path):
    scores = small(photos, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["BigGAN.safetensors"]  # no state is left behind
    with safe_open(tmp_path / "BigGAN.safetensors", "pt") as file:
        facts = file.metadata()
    assert facts["steps"] == "6" and float(facts["psnr"]) == pytest.approx(scores["BigGAN"], abs=0.01)
    _, held_out = train_simulators.split(train_simulators.find(photos), 0)
    image = (
        torch.from_numpy(np.array(Image.open(held_out[0])) / 255).float()[:80, :80].permute(2, 0, 1)
    )  # one tile fits
    with torch.inference_mode():
        rebuilt = simulators.load("BigGAN", tmp_path)(image[None])[0]
    expected = peak_signal_noise_ratio(image.numpy(), rebuilt.numpy(), data_range=1)
    assert scores["BigGAN"] == pytest.approx(expected, abs=1e-3)


def test_a_killed_run_goes_on_to_the_same_weights(photos, tmp_path, monkeypatch):
    small(photos, tmp_path / "whole", names=("StyleGAN2",))
    run, original = train_simulators._Run, train_simulators._Run.train_step

    def killed(self, images):
        original(self, images)
        if self.step == 5:  # the PatchGAN is in
            self.save()
            raise KeyboardInterrupt

    monkeypatch.setattr(run, "train_step", killed)
    with pytest.raises(KeyboardInterrupt):
        small(photos, tmp_path / "parts", names=("StyleGAN2",))
    assert not (tmp_path / "parts" / "StyleGAN2.safetensors").exists()
    monkeypatch.setattr(run, "train_step", original)
    small(photos, tmp_path / "parts", names=("StyleGAN2",))
    whole, parts = (load_file(tmp_path / x / "StyleGAN2.safetensors") for x in ("whole", "parts"))
    assert whole.keys() == parts.keys() and all(torch.equal(whole[key], parts[key]) for key in whole)


def test_the_state_of_other_settings_is_not_gone_on_from(photos, tmp_path):
    run = train_simulators._Run("ProGAN", tmp_path, {"steps": 6, "seed": 0})
    run.step = 4
    run.save()
    assert train_simulators._Run("ProGAN", tmp_path, {"steps": 6, "seed": 0}).step == 4
    assert train_simulators._Run("ProGAN", tmp_path, {"steps": 8, "seed": 0}).step == 0


def test_thirty_steps_of_l1_come_closer_to_the_photos(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(train_simulators, "ADVERSARIAL", ())
    few = small(photos, tmp_path, names=("ProGAN",), steps=1)["ProGAN"]
    assert small(photos, tmp_path, names=("ProGAN",), steps=30)["ProGAN"] > few + 1


def test_held_out_photos_are_the_same_for_the_same_seed_and_never_trained_on(photos):
    files = train_simulators.find(photos)
    assert len(files) == 4
    known, held_out = train_simulators.split(files, seed=3)
    assert sorted(known + held_out) == files and len(held_out) == 1
    assert train_simulators.split(files, seed=3) == (known, held_out)
    assert len({train_simulators.split(files, seed=seed)[1][0] for seed in range(20)}) > 1


def test_bad_input_is_named(photos, tmp_path):
    with pytest.raises(FileNotFoundError, match="at least two photos"):
        train_simulators.train(tmp_path, tmp_path)
    with pytest.raises(ValueError, match="multiple of 4"):
        small(photos, tmp_path, crop=30)
    with pytest.raises(ValueError, match="smaller than a crop"):
        small(photos, tmp_path, crop=96)
    with pytest.raises(ValueError, match="StyleGAN3"):
        small(photos, tmp_path, names=("StyleGAN3",))
