"""What scores say: score tables, the one registry of metrics with its bootstrap, the robustness sweep, runs compared.

May import inference and what lies beneath it; knows neither training nor plots.
"""

# ruff: noqa: F401
from dfd.evaluate.compare import CompareError
from dfd.evaluate.metrics import METRICS, STAGE_METRICS, bootstrap, bootstrap_all, clean, evaluate, save_metrics
from dfd.evaluate.scores import as_table, calibrate, load_scores, readable, save_scores, score
