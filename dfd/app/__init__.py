"""One image examined: its verdict in words, evidence, metadata, the case, `predict`, and the probe's widgets.

May import what lies beneath `reports` and `scale`. `dfd.app.probe` alone needs Jupyter, so it is imported by itself.
"""
