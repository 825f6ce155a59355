"""Runs of the notebooks and what is written of them: HTML pages, model cards, comparisons, parameter sweeps.

May import plots and what lies beneath them; only the command line knows this room.
"""
