"""Names from the data and words of the program beside each other."""

import numpy as np
import pandas as pd
from networks import CPU, content

from dfd.inference import decide
from dfd.inference.stage import Stage


def test_names_of_folders_are_not_taken_for_words_of_the_program():
    """Folders that are called fake, real and unknown: their order tells the stage, unknown stays another word."""
    stage = Stage(content("stage2", classes=["fake", "real", "unknown"]), CPU)
    stage.ood_threshold = 0.5
    logits = np.array([[2.0, 0, 1], [0, 2, 1], [0, 1, 2], [0, 1, 2]])
    decisions = decide.decide(logits, stage, [0, 0, 0, 1])
    assert decisions.prediction.tolist() == ["fake", "real", "unknown", "unknown?"]
    stage.classes = ["real", "unknown", "unknown?"]
    assert decide.decide(logits, stage, [0, 0, 0, 1]).prediction.tolist() == [*stage.classes, "unknown??"]
    scores = pd.DataFrame({"label": ["fake", "real", "unknown", "fake"]})
    scores[["logit_fake", "logit_real", "logit_unknown"]] = logits
    assert decide.stage_of(scores) == "stage2" and decide.true_class(scores).tolist() == scores["label"].tolist()
    two = scores.drop(columns="logit_unknown")
    assert decide.stage_of(two) == "stage2" and decide.closed_set(two)[0] == "fake"
