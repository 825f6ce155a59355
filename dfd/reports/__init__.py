"""Runs of the notebooks and what is written of them: HTML pages, model cards, comparisons, parameter sweeps.

May import plots and what lies beneath them; only the command line knows this room.
"""

import sys

sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore  # where jsonschema brings it: a grammar, 1 to 2 s
