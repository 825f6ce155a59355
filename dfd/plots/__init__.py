"""One function per figure: takes data, returns Axes, or a Figure where the figure is a grid.

May import analysis and what lies beneath it; nothing beneath knows this room.
"""

from dfd.plots import letters
from dfd.plots.results import live_history, plot_ablation, plot_cm, plot_confusions, plot_evidence, plot_examples
from dfd.plots.results import plot_history, plot_pr, plot_reliability, plot_roc, plot_spectra, plot_split
from dfd.plots.analysis import captions, plot_conditions, plot_dossiers, plot_embedding, plot_errors
from dfd.plots.analysis import plot_fingerprints, plot_levels, plot_probe, plot_sources

letters.install()
