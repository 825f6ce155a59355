"""From a checkpoint to a verdict: Stage (logits), decide (decisions), Detector and Verdict, the open set.

May import data, models, degrade, core and config; knows neither training nor evaluation.
"""

from dfd.inference.detector import Detector, Verdict
from dfd.inference.files import build_model, save_checkpoint, update_checkpoint
from dfd.inference.stage import Scored, Stage, extract_features, fit_feature_bank, uses_bfloat16
