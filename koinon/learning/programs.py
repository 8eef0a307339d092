"""Programs that train: rounds, evaluation, releases and checkpoints in one call."""

from koinon.learning._early_stopping import EarlyStopping
from koinon.learning._history import History
from koinon.learning._rounds import RoundReport, TrainingResult
from koinon.learning._train import TrainingInterrupted, train
from koinon.learning._train_model import EvaluationManager, ProgramState, train_model
from koinon.learning._training_run import TrainingData

__all__ = [
    "EarlyStopping",
    "EvaluationManager",
    "History",
    "ProgramState",
    "RoundReport",
    "TrainingData",
    "TrainingInterrupted",
    "TrainingResult",
    "train",
    "train_model",
]
