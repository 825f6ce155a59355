"""Figures of the error analysis: the right numbers are drawn, and the pictures are what they say."""

import numpy as np
import pandas as pd
import pytest
import torch
from networks import untrained
from score_tables import stage1_table, stage2_table

from dfd import plots
from dfd.analysis import explain
from dfd.data import manifest
from dfd.evaluate import scores

pytestmark = pytest.mark.usefixtures("closed")


@pytest.fixture
def table(tiny_data, tmp_path):
    return manifest.scan(tiny_data, tmp_path, progress=False)


def written(ax):
    return [text.get_text() for text in ax.texts]


def test_confusions_by_label_tell_the_generators_apart():
    first = stage1_table([-1, -1, -1, 1, -1.0], ["RealPhotos", "RealPhotos", "BigGAN", "BigGAN", "ProGAN"])
    figure = plots.plot_confusions({"stage 1": first, "stage 2": stage2_table(push=50.0)}, "test", by_label=True)
    ax, stage2 = figure.axes
    assert written(ax) == ["2\n(100%)", "0\n(0%)", "1\n(50%)", "1\n(50%)", "1\n(100%)", "0\n(0%)"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["RealPhotos", "BigGAN", "ProGAN"]
    assert written(stage2)[::4] == ["100\n(100%)"] * 3
    assert ax.get_title() == "stage 1, test" and ax.get_xlabel() == "predicted"


def test_errors_stand_in_their_bins_beside_the_average():
    rows = {"property": ["size", "size"], "bin": ["64", "128"], "images": [10, 30], "groups": [5, 5]}
    one = pd.DataFrame(
        rows | {"errors": [5, 3], "error": [0.5, 0.1], "error_low": [0.2, 0.0], "error_high": [0.8, 0.3]}
    )
    two = one.iloc[1:].assign(errors=30, error=1.0)
    one.attrs["average"], two.attrs["average"] = 0.2, 1.0
    figure = plots.plot_errors({"stage1": one, "stage2": two})
    (ax,) = figure.axes
    points, average, other = ax.lines[0], ax.lines[1], ax.lines[2]
    assert points.get_xdata().tolist() == [0.5, 0.1] and np.round(points.get_ydata()).tolist() == [0, 1]
    assert other.get_xdata().tolist() == [1] and np.round(other.get_ydata()).tolist() == [1]
    assert average.get_xdata()[0] == 0.2
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["64", "128"]
    assert ax.get_title() == "size: shorter side (pixels)" and ax.get_xlabel() == "images wrong"
    assert ax.collections[0].get_segments()[0][:, 0].tolist() == [0.2, 0.8]


def test_captions_say_truth_verdict_and_how_probable_it_was():
    rows = stage1_table([-2.0, -2.0], ["RealPhotos", "ProGAN"])
    rows = rows.join(scores.certainty(rows, 1.0))
    expected = ["RealPhotos, rightly called real, p 0.88", "ProGAN, wrongly called real, p 0.88"]
    assert plots.captions(rows) == expected
    named = pd.DataFrame(
        {"label": ["A", "B"], "prediction": ["unknown", "A"], "confidence": [0.99, 0.6], "stage": "stage2"}
    )
    named = named.assign(logit_A=[5.0, 1.0], logit_B=0.0)
    assert plots.captions(named) == ["A, rightly called A but unknown, p 0.99", "B, wrongly called A, p 0.60"]


@pytest.mark.parametrize("name", ["stage1", "stage2"])
def test_dossiers_show_image_residual_spectrum_and_cam(name, table):
    stage = untrained(name)
    logits = {f"logit_{name}": float(number) for number, name in enumerate(stage.classes)}
    rows = table[table["label"] == "ProGAN"].head(3).assign(prediction=stage.classes[1], **logits)
    found = explain.dossiers(stage, table, rows)
    first = found[0]
    height, width = table.loc[rows.index[0], ["height", "width"]]
    assert first.image.shape == (height, width, 3)
    assert first.box == ((width - 64) // 2, (height - 64) // 2, 64, 64)
    left, top, _, _ = first.box
    assert np.allclose(first.crop, first.image[top : top + 64, left : left + 64], atol=1e-6)
    assert first.residual.shape == (64, 64, 3) and first.cam.shape == first.spectrum.shape == (64, 64)
    figure = plots.plot_dossiers(found, ["one", "two", "three"])
    assert len(figure.axes) == 12
    assert [ax.get_xlabel() for ax in figure.axes[:4]] == ["image and crop", "residual", "spectrum", "Grad-CAM"]
    assert figure.subfigs[2].get_suptitle() == "3: three"


def test_a_checkerboard_shows_in_the_corner_of_its_spectrum(table):
    rows = table[table["label"] == "ProGAN"].head(1).assign(prediction="fake", logit_fake=1.0)
    spectrum = explain.dossiers(untrained("stage1"), table, rows)[0].spectrum
    assert spectrum[0, 0] > np.median(spectrum) + 1


def test_grad_cam_points_at_what_moves_the_logit():
    """A network that answers the mean of its input, of which only the upper left quarter is bright."""
    stage = untrained("stage1")

    class Mean(torch.nn.Module):
        feature_info = [{"module": "early", "num_chs": 3}, {"module": "late", "num_chs": 3}]

        def __init__(self):
            super().__init__()
            self.early, self.late = torch.nn.Identity(), torch.nn.AvgPool2d(8)

        def forward(self, images):
            return self.late(self.early(images)).mean((1, 2, 3))

    stage.model = stage.backbone = Mean()
    crop = torch.zeros(1, 3, 64, 64)
    crop[..., :32, :32] = 1
    (cam,) = explain.grad_cam(stage, crop, "fake")
    assert cam.shape == (64, 64) and cam[:24, :24].min() == 1 and cam[40:, 40:].max() == 0
    assert explain.grad_cam(stage, crop, "real").max() == 0  # nothing speaks for it
    stage.model.feature_info = [{"module": "late", "num_chs": 7}]  # the only layer, whatever is said of it
    assert explain.grad_cam(stage, crop, "fake").max() == 1
    with pytest.raises(ValueError, match="ProGAN"):
        explain.grad_cam(stage, crop, "ProGAN")


@pytest.mark.parametrize("order", [(0, 2, 3, 1), (0, 2, 1, 3)])
def test_grad_cam_of_layers_that_are_no_maps_is_empty(order):
    """As transformers have them: channels last, or one row of tokens."""
    stage = untrained("stage1")

    class Last(torch.nn.Module):
        def forward(self, images):
            turned = images.permute(order)
            return turned if order[-1] == 1 else turned.flatten(1, 2)

    class Mean(torch.nn.Module):
        feature_info = [{"module": name, "num_chs": 3} for name in ("one", "two")]

        def __init__(self):
            super().__init__()
            self.one, self.two = Last(), torch.nn.Identity()

        def forward(self, images):
            return self.two(self.one(images)).flatten(1).mean(1)

    stage.model = stage.backbone = Mean()
    assert explain.grad_cam(stage, torch.rand(2, 3, 32, 32), "fake").tolist() == np.zeros((2, 32, 32)).tolist()


@pytest.mark.parametrize("name", ["stage1", "stage2"])
def test_grad_cam_of_real_networks_differs_between_classes(name):
    stage, crop = untrained(name), torch.rand(1, 3, 64, 64)
    maps = [explain.grad_cam(stage, crop, target)[0] for target in stage.classes]
    assert all(one.max() == pytest.approx(1) and one.min() >= 0 for one in maps)
    assert not np.allclose(*maps, atol=0.1)
    assert all(parameter.grad is None for parameter in stage.model.parameters())
