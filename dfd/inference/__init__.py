"""From a checkpoint to a verdict: Stage (logits), decide (decisions), Detector and Verdict, the open set.

May import data, models, degrade and core; knows neither training nor evaluation.
"""

from dfd.inference.decide import UNKNOWN, closed_set, true_class
from dfd.inference.detector import Detector, Verdict
from dfd.inference.files import build_model, save_checkpoint, update_checkpoint
from dfd.inference.openset import FeatureBank
from dfd.inference.stage import Scored, Stage, fit_feature_bank

__all__ = [
    "UNKNOWN", "Detector", "FeatureBank", "Scored", "Stage", "Verdict", "build_model", "closed_set",
    "fit_feature_bank", "save_checkpoint", "true_class", "update_checkpoint",
]  # fmt: skip
