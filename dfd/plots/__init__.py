"""One function per figure: takes data, returns Axes, or a Figure where the figure is a grid.

May import analysis and what lies beneath it; nothing beneath knows this room.
"""

from dfd.plots.results import live_history, plot_history

__all__ = ["live_history", "plot_history"]
