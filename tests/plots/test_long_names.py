"""Folder names as long as those of checkpoints: every figure still shows its data, and tells the names apart."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from dfd import plots
from dfd.analysis import slices
from dfd.config import REAL

NAMES = [f"stylegan2_ada_ffhq_256_config_f_gamma8_mirror_kimg0{i}5000" for i in range(3)]  # 57 letters


@pytest.fixture(scope="module")
def tables() -> dict[str, pd.DataFrame]:
    random, labels = np.random.default_rng(0), np.repeat([REAL, *NAMES], 8)
    common = {"path": [f"{i}.png" for i in range(len(labels))], "label": labels, "split": "test"}
    common |= {"group": np.arange(len(labels)).astype(str), "degradation": "none", "level": np.nan}
    real_fake = pd.DataFrame(common | {"stage": "stage1", "logit_fake": random.normal(size=len(labels))})
    real_fake["prediction"] = np.where(real_fake["logit_fake"] > 0, "fake", "real")
    fakes = pd.DataFrame(common)[labels != REAL].assign(stage="stage2", prediction=random.choice(NAMES, 24))
    for name in NAMES:
        fakes[f"logit_{name}"] = (fakes["prediction"] == name).astype(float)
    return {"stage 1": real_fake, "stage 2": fakes}


def inches(ax) -> tuple[float, float]:
    ax.figure.canvas.draw()
    extent = ax.get_window_extent()
    return extent.width / ax.figure.dpi, extent.height / ax.figure.dpi


def test_the_data_keep_most_of_the_figure(tables):
    for ax in plots.plot_confusions(tables, "test").axes:
        assert min(inches(ax)) > 2  # 0.07 where names stand in one line
    for draw in (plots.plot_roc, plots.plot_pr):
        assert min(inches(draw(tables["stage 1"]))) > 2
        many = [tables["stage 1"].replace({"label": {name: f"{i}{name}" for name in NAMES}}) for i in range(4)]
        assert min(inches(draw(pd.concat(many)))) > 2  # 12 names: their legend pressed the axes flat
    plt.close("all")


def test_titles_and_rows_do_not_overlap():
    pictures = {name: [np.zeros((8, 8, 3))] * 3 for name in NAMES}
    grid = plots.plot_examples(pictures)
    grid.canvas.draw()
    rows = [grid.axes[3 * i].yaxis.label.get_window_extent() for i in range(len(NAMES))]
    assert all(above.y0 >= below.y1 for above, below in zip(rows, rows[1:], strict=False))
    ax = plots.plot_split(pd.DataFrame({"label": [name + "x" * 40 for name in NAMES], "split": "test"}))
    ax.figure.canvas.draw()
    below = [text.get_window_extent() for text in ax.get_yticklabels()]  # from the bottom
    assert all(above.y0 >= text.y1 for text, above in zip(below, below[1:], strict=False))
    figure = plots.plot_spectra({name: np.eye(8) for name in NAMES})
    figure.canvas.draw()
    titles = [ax.title.get_window_extent() for ax in figure.axes[: len(NAMES)]]
    assert all(left.x1 <= right.x0 for left, right in zip(titles, titles[1:], strict=False))
    plt.close("all")


def test_titles_of_pictures_do_not_overlap():
    """As notebook 04 gives them to suspected labels: what they may be, and the file's name."""
    pictures, titles = {"ProGAN": [np.zeros((8, 8, 3))] * 3}, [f"{name}?\nimg_000123_0123456.png" for name in NAMES]
    grid = plots.plot_examples(pictures, {"ProGAN": titles})
    grid.canvas.draw()
    shown = [ax.title.get_window_extent() for ax in grid.axes]
    assert all(left.x1 <= right.x0 for left, right in zip(shown, shown[1:], strict=False))
    assert [ax.title.get_text().replace("\n", "") for ax in grid.axes] == [text.replace("\n", "") for text in titles]
    plt.close("all")


def test_a_condition_of_many_steps_leaves_its_figures_their_width():
    """One of 91 letters left the axes less than 2 of 8 inches, and layout gave up with a warning."""
    chain = "jpeg 90 + crop 0.9 + rescale 0.5 lanczos + blur 1.5 + double_jpeg 75 first=80 shift=3 4:4:4"
    values = dict.fromkeys(("cost", "cost_low", "cost_high", "clean", "photos_only", "fakes_only", "both"), 0.8)
    table = pd.DataFrame(values | {"named": False}, index=["jpeg 75", chain])
    for ax in (plots.plot_conditions(table, {"cost": "photos"}, "photos called fake"), plots.plot_probe(table)):
        assert inches(ax)[0] > 2.9
    plt.close("all")


SETS = ("stylegan2_ada_{}_256_kimg025000", "stylegan2_ada_ffhq_256_{}_gamma8_mirror_kimg025000", "{}" + 40 * "x")


@pytest.mark.parametrize("pattern", [*SETS, "stylegan2_ada_ffhq_256_config_f_gamma8_mirror_kimg0{}"])
def test_bins_that_are_alike_in_part_are_told_apart(tables, pattern):
    """Those that differ in the middle were one name."""
    names = dict(zip(NAMES, map(pattern.format, ("ffhq", "afhq", "cars")), strict=True))
    rows = tables["stage 1"].assign(wrong=True).replace({"label": names})
    bins = rows[["label"]].astype("category")
    figure = plots.plot_errors({"stage1": slices.by_property(rows, bins)})
    shown = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert len(set(shown)) == len(NAMES) + 1
    plt.close("all")


def test_names_that_wrap_keep_their_colour_and_stay_apart():
    """A line's end sorts before a space, and a space at a line's end was dropped."""
    names = ["Stable Diffusion 2", "Stable Diffusion XL", "stylegan2_ada_ffhq b", "stylegan2_ada_ffhqb"]
    points = pd.DataFrame({"x": range(4), "y": range(4), "label": names, "source": "a"})
    ax = plots.plot_embedding(points)
    handles, labels = ax.get_legend_handles_labels()
    shown = dict(zip([label.replace("\n", "") for label in labels], handles, strict=True))
    assert {*names} <= {*shown}  # with spaces where they were
    palette = [to_hex(colour) for colour in plots.results.colours(4)]
    assert [to_hex(shown[name].get_color()) for name in names] == palette  # as in all other figures
    plt.close("all")
