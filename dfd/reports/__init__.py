"""Runs of the notebooks and what is written of them: HTML pages, model cards, comparisons, parameter sweeps.

May import plots and what lies beneath them; only the command line knows this room.
"""

import sys

sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore  # a second for jsonschema's IRIs; notebooks have none
