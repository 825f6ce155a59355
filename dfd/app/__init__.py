"""One image examined: its verdict in words, evidence, metadata, page, `predict`, and the probe's widgets.

May import what lies beneath `reports` and `scale`. `dfd.app.probe` alone needs Jupyter, so it is imported by itself.
"""

# ruff: noqa: F401
from dfd.app.evidence import Crop, Examination, Picture, draw, trace
from dfd.app.examine import examine_or_refuse
from dfd.app.metadata import Credentials, Metadata, read_credentials, read_metadata
