"""Figures and what they are made of: the right things are drawn from the data that is given."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex
from score_tables import noisy_table, planted

from dfd import config, plots
from dfd.analysis import explain
from dfd.data import manifest
from dfd.evaluate import metrics
from dfd.inference import decide
from dfd.inference import files as files_module
from dfd.inference import stage as stage_module

pytestmark = pytest.mark.usefixtures("closed")


@pytest.fixture
def table(tiny_data, tmp_path):
    return manifest.scan(tiny_data, tmp_path, progress=False)


def rows(labels, predictions, **logits):
    named = {f"logit_{name}": values for name, values in logits.items()}
    return pd.DataFrame({"label": labels, "prediction": predictions, "split": "test", "degradation": "none", **named})


def test_sources_stand_worst_first_by_label_with_their_intervals():
    labels = ["RealPhotos", "RealPhotos", "ProGAN", "ProGAN"]
    table = pd.DataFrame({"label": labels, "source": list("abcd"), "images": 9,
                          "called_fake": [0.1, 0.6, 0.9, 0.5], "auc": [np.nan, np.nan, 0.95, 0.7]})  # fmt: skip
    for end, step in (("_low", -0.05), ("_high", 0.05)):
        table = table.assign(**{name + end: table[name] + step for name in ("called_fake", "auc")})
    left, right = plots.plot_sources(table).axes
    assert [text.get_text() for text in left.get_yticklabels()] == ["d (9)", "c (9)", "b (9)", "a (9)"]
    points = {line.get_label(): line.get_xydata().tolist() for line in right.lines if line.get_marker() == "o"}
    assert points == {"ProGAN": [[0.5, 0], [0.9, 1]], "RealPhotos": [[0.6, 2], [0.1, 3]]}
    spans = [segment[:, 0].round(3).tolist() for lines in right.collections for segment in lines.get_segments()]
    assert spans == [[0.45, 0.55], [0.85, 0.95], [0.55, 0.65], [0.05, 0.15]]
    many = pd.concat([table.assign(source=table["source"] + str(i)) for i in range(900)], ignore_index=True)
    assert len(plots.plot_sources(many).axes[0].get_yticklabels()) == 80  # else the picture has no end


def test_a_generator_has_one_colour_in_curves_embedding_and_sources():
    logits = [0.0, 1.0, 2.0, 3.0, 0.5, 0.5, 0.1, 0.2]
    labels = ["RealPhotos"] * 2 + ["A"] * 2 + ["B"] * 2 + ["StyleGAN2"] * 2
    curves = plots.plot_roc(rows(labels, "x", real=0.0, fake=logits)).lines
    by_name = {line.get_label().split(",")[0]: line.get_color() for line in curves}
    points = pd.DataFrame({"x": 0.0, "y": range(8), "label": labels, "source": "s"})
    handles, names = plots.plot_embedding(points).get_legend_handles_labels()
    colours = {name: handle.get_color() for name, handle in zip(names, handles, strict=True) if name in by_name}
    assert {name: to_hex(colour) for name, colour in colours.items()} == {n: to_hex(c) for n, c in by_name.items()}
    table = pd.DataFrame({"label": labels, "source": list("abcdefgh"), "images": 9, "auc": 0.5, "called_fake": 0.5})
    table = table.assign(auc_low=0.4, auc_high=0.6, called_fake_low=0.4, called_fake_high=0.6)
    of_sources = {line.get_label(): line.get_color() for line in plots.plot_sources(table).axes[1].lines}
    assert all(to_hex(of_sources[name]) == to_hex(colour) for name, colour in by_name.items())
    many = plots.results.colours(12)
    assert len({to_hex(colour) for colour in many}) == 12


def test_plot_cm_writes_counts_and_row_shares():
    ax = plots.plot_cm(["a", "a", "a", "a", "b"], ["a", "a", "a", "b", "b"], ["a", "b"], plt.figure().gca(), "title")
    assert [text.get_text() for text in ax.texts] == ["3\n(75%)", "1\n(25%)", "0\n(0%)", "1\n(100%)"]
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ("predicted", "true", "title")


def test_shares_of_a_class_count_what_is_called_something_else_too():
    ax = plots.plot_cm(["a"] * 4 + ["b"], ["a", "b", "?", "?", "b"], ["a", "b"], plt.figure().gca())
    assert [text.get_text() for text in ax.texts] == ["1\n(25%)", "1\n(25%)", "0\n(0%)", "1\n(100%)"]


def test_confusions_show_both_stages():
    one = rows(["RealPhotos", "ProGAN"], ["real", "real"], real=[0, 0], fake=[-1, -1])
    two = rows(["ProGAN", "BigGAN"], ["ProGAN", "ProGAN"], BigGAN=[0, 0], ProGAN=[1, 1])
    figure = plots.plot_confusions({"stage 1": one, "stage 2": two}, "test")
    assert [ax.get_title() for ax in figure.axes] == ["stage 1, test", "stage 2, test"]
    assert figure.axes[0].texts[2].get_text() == "1\n(100%)"


def test_history_marks_the_best_epoch_and_shows_adversaries_where_there_are_any():
    history = pd.DataFrame(
        {"epoch": [1, 2, 3], "train_loss": [3, 2, 1], "val_loss": [3, 2, 2], "val_auc": [0.5, 0.9, 0.8]}
    ).assign(score=[0.5, 0.7, 0.8])
    right = plots.plot_history(history).axes[1]
    assert right.lines[0].get_ydata().tolist() == [0.5, 0.9, 0.8]
    assert right.lines[1].get_xdata()[0] == 3 and right.lines[1].get_label() == "kept: epoch 3"
    tied = plots.plot_history(history.assign(score=[0.8, 0.9, 0.9], val_loss=[1, 0.5, 0.4])).axes[1]
    assert tied.lines[1].get_label() == "kept: epoch 3"  # as the training decides, by the loss
    third = plots.plot_history(history.assign(discriminator_loss=[2, 1, 1.5])).axes[2]
    assert third.lines[0].get_label() == "discriminator" and third.lines[0].get_ydata().tolist() == [2, 1, 1.5]


def test_axes_of_whole_things_have_whole_ticks(table):
    """An epoch 0.7 and 2.5 images were on the axes of the profile clip, and of few images."""
    history = pd.DataFrame({"epoch": [1], "train_loss": [3.0], "val_loss": [3.0], "val_auc": [0.5], "score": [0.5]})
    few = table.groupby("label").head(4)
    for ax in (*plots.plot_history(history).axes, plots.plot_split(few)):
        ax.figure.canvas.draw()
        assert all(float(tick).is_integer() for tick in ax.get_xticks())
    plt.close("all")


def test_roc_names_each_generator_with_its_auc():
    logits = [0.0, 1.0, 2.0, 3.0, 0.5, 0.5]
    table = rows(["RealPhotos"] * 2 + ["A"] * 2 + ["B"] * 2, "x", real=0.0, fake=logits).assign(group=range(6))
    labels = [text.get_text() for text in plots.plot_roc(table).get_legend().get_texts()]
    assert labels == ["A, AUC 1.000", "B, AUC 0.500"]


@pytest.mark.parametrize("draw", [plots.plot_roc, plots.plot_pr])
def test_curves_are_drawn_on_the_given_axes_and_refused_of_one_class(draw):
    table, ax = noisy_table(), plt.figure().gca()
    assert draw(table, ax) is ax
    x, y = ax.lines[0].get_data()
    logits = table["logit_fake"]
    photos, fakes = (np.sort(logits[table["label"] == label])[::-1] for label in ("RealPhotos", "BigGAN"))
    if draw is plots.plot_roc:
        assert y[x <= 0.05].max() == pytest.approx((fakes > photos[5]).mean())
    else:
        assert y[x >= 0.5].max() == pytest.approx(max(n / (n + (photos >= fakes[n - 1]).sum()) for n in range(50, 101)))
    for part in (table["label"] == "RealPhotos", table["label"] != "RealPhotos"):
        with pytest.raises(ValueError, match="photos and fakes"):
            draw(table[part])


def test_eleven_generators_are_eleven_curves():
    table = pd.concat([noisy_table(30).replace({"label": {"ProGAN": f"G{i}", "BigGAN": f"G{i}"}}) for i in range(11)])
    ax = plots.plot_roc(table)
    assert len(ax.lines) == 11
    for draw in (plots.plot_roc, plots.plot_pr):
        ax = draw(table, plt.figure().gca())
        ax.figure.canvas.draw()
        assert ax.get_legend().get_window_extent().x0 > ax.get_window_extent().x1  # beside the curves
    widths = [
        plots.plot_confusions({"stage 2": names}, "test", by_label=True).get_figwidth()
        for names in (table, noisy_table(9))
    ]
    assert widths[0] > 1.4 * widths[1]


def test_tables_are_shown_whole():
    table = pd.DataFrame(1.0, range(70), [f"metric {i}" for i in range(25)])
    assert "..." not in table.to_html() and table._repr_html_().count("<tr") == 71


def test_pr_names_the_average_precision_and_the_share_of_fakes():
    table = rows(["RealPhotos"] * 3 + ["A"], "x", real=0.0, fake=[0.0, 1.0, 3.0, 2.0]).assign(group=range(4))
    ax = plots.plot_pr(table)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["A, AP 0.500"]
    assert ax.lines[1].get_ydata() == [0.25, 0.25]


def test_reliability_is_drawn_before_and_after():
    """Over-confident: before calibration accuracy lies below confidence, after it near."""
    table = planted(4.0)
    ax = plots.plot_reliability(table, 4.0)
    before, after = ax.lines[1:]
    assert np.all(before.get_ydata() < before.get_xdata())
    assert np.abs(after.get_ydata() - after.get_xdata()).max() < 0.06
    named = [metrics.calibration_error(np.ones((1, len(table))), *decide.confidences(table, t))[0] for t in (1.0, 4.0)]
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels[1:] == [f"before (T = 1.00), ECE {named[0]:.3f}", f"after (T = 4.00), ECE {named[1]:.3f}"]
    assert len(ax.child_axes[0].patches) == 2


def test_reliability_leaves_empty_bins_out():
    table = rows(["RealPhotos", "A", "A"], "x", real=0.0, fake=[-9.0, 9.0, 1.0]).assign(group=range(3))
    ax = plots.plot_reliability(table, 1.0)
    assert ax.lines[1].get_xdata().tolist() == pytest.approx([1 / (1 + np.exp(-1)), 1 / (1 + np.exp(-9))])


def test_ablation_puts_variants_from_the_top_and_degradations_side_by_side():
    values = [
        ("full", "as it is", 0.9, 0.8, 0.95),
        ("full", "JPEG 50", 0.7, 0.6, 0.8),
        ("bare", "JPEG 50", 0.6, None, None),
    ]
    ax = plots.plot_ablation(pd.DataFrame(values, columns=["variant", "degradation", "auc", "auc_low", "auc_high"]))
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["full", "bare"] and ax.yaxis_inverted()
    clean, jpeg = ax.lines
    assert clean.get_xdata().tolist() == [0.9] and jpeg.get_xdata().tolist() == [0.7, 0.6]
    assert np.round(jpeg.get_ydata()).tolist() == [0, 1] and clean.get_ydata()[0] < jpeg.get_ydata()[0]
    assert ax.collections[0].get_segments()[0][:, 0].tolist() == [0.8, 0.95]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["as it is", "JPEG 50"]


def test_split_bars_count_images(table):
    ax = plots.plot_split(table)
    drawn = sum(patch.get_width() for patch in ax.patches)
    assert drawn == len(table)


def test_examples_grid_has_a_row_per_class(table):
    pictures = explain.examples(table, 3, size=48)
    assert {label: len(row) for label, row in pictures.items()} == {"BigGAN": 3, "ProGAN": 3, "RealPhotos": 3}
    assert pictures["ProGAN"][0].shape == (48, 48, 3)
    assert len(plots.plot_examples(pictures).axes) == 9


def test_spectrum_finds_the_checkerboard_and_the_stripes(table):
    """A checkerboard lives in the corner of the spectrum, stripes of period 4 at a quarter on the horizontal axis."""
    spectra = explain.class_spectra(table, size=64, per_class=12)
    corner = {label: one[0, 0] - np.median(one) for label, one in spectra.items()}
    quarter = {label: one[32, 48] - np.median(one) for label, one in spectra.items()}
    assert corner["ProGAN"] > 1 > corner["RealPhotos"] + 0.3
    assert quarter["BigGAN"] > 1 > quarter["RealPhotos"] + 0.3
    assert len(plots.plot_spectra(spectra).axes) == 4


def test_training_views_are_degraded_crops(table):
    cfg = config.Stage1(crop_size=32)
    pictures = explain.training_views(table, cfg, columns=4)
    assert all(one.shape == (32, 32, 3) for row in pictures.values() for one in row)
    again = explain.training_views(table, cfg, columns=4)
    assert np.array_equal(pictures["ProGAN"][0], again["ProGAN"][0])


def test_training_views_are_cut_as_the_smallest_image_of_all_allows(table, monkeypatch):
    seen = []
    monkeypatch.setattr(explain.RealFakeDataset, "view", lambda data, window: seen.append(data.side) or window[0] / 255)
    smaller = table.copy()
    smaller.loc[smaller.index[-1], ["width", "height"]] = 36  # which is not shown
    explain.training_views(smaller, config.Stage1(crop_size=32), columns=1)
    assert set(seen) == {36}, "windows of training: as large as the smallest image allows, whichever are shown"


def test_residuals_of_stage2(table):
    settings = {"backbone": "test_efficientnet.r160_in1k", "unet_width": 4, "residual_bound": 0.05}
    torch.manual_seed(0)
    content = {
        "stage": "stage2", "classes": ["BigGAN", "ProGAN"], "config": settings, "crops": 1, "threshold": 0.5,
        "preprocessing": {"crop_size": 32, "equalise_quality": None}, "temperature": 1.0, "history": [],
        "manifest_hash": "x", "key": "k", "weights": files_module.build_model("stage2", settings, 2).state_dict(),
    }  # fmt: skip
    stage, fakes = stage_module.Stage(content), table[table["is_fake"]]
    (residual,) = explain.residuals(stage, stage_module.center_crops(table, fakes["path"].head(1), 32))
    assert residual.shape == (3, 32, 32) and 0 < residual.abs().max() <= 0.05
    pictures = explain.residual_pictures(stage, fakes, columns=2)
    assert list(pictures) == ["BigGAN", "BigGAN, residual", "ProGAN", "ProGAN, residual"]


def test_pictures_are_spread_over_the_table_and_training_views_are_degraded(table):
    pictures = explain.examples(table, 2, size=48)["ProGAN"]
    last = table.loc[table["label"] == "ProGAN", "path"].iloc[-1]
    assert np.array_equal(pictures[1], stage_module.center_crops(table, [last], 48)[0].permute(1, 2, 0))
    ways = (config.Stage1(crop_size=32, degrade=degrade) for degrade in (False, True))
    plain, degraded = (explain.training_views(table, cfg, columns=8) for cfg in ways)
    assert any(not np.array_equal(*pair) for label in plain for pair in zip(plain[label], degraded[label], strict=True))
