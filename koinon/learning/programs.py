"""Programs that train: rounds, evaluation, releases and checkpoints in one call."""

from koinon.learning._early_stopping import EarlyStopping
from koinon.learning._history import History
from koinon.learning._train import RoundReport, TrainingInterrupted, TrainingResult, train
from koinon.learning._training_run import TrainingData

__all__ = ["EarlyStopping", "History", "RoundReport", "TrainingData", "TrainingInterrupted", "TrainingResult", "train"]
