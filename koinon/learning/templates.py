"""Templates of learning: the four pieces of a learning process, their contracts, and how they are composed."""

from koinon._errors import (
    ClientDataTypeError,
    ClientResultTypeError,
    FinalizerResultTypeError,
    GetHparamsTypeError,
    GetModelWeightsTypeSignatureError,
    LearningProcessOutputError,
    LearningProcessPlacementError,
    LearningProcessSequenceTypeError,
    SetHparamsTypeError,
    SetModelWeightsTypeSignatureError,
)
from koinon.learning._client_work import ClientResult, ClientStateWorkOutput, ClientWorkProcess
from koinon.learning._compose import LearningAlgorithmState, compose_learning_process
from koinon.learning._distribute import DistributionProcess, build_broadcast_process
from koinon.learning._error_feedback import ErrorFeedbackClientState, ErrorFeedbackState, add_error_feedback
from koinon.learning._finalize import (
    FinalizerProcess,
    build_apply_optimizer_finalizer,
    build_identity_finalizer,
    reject_non_finite_update,
)
from koinon.learning._model_delta import build_model_delta_client_work
from koinon.learning._process import ClientStateLearningOutput, LearningProcess, LearningProcessOutput
from koinon.learning._quantized_broadcast import build_quantized_broadcast_process

__all__ = [
    "ClientDataTypeError",
    "ClientResult",
    "ClientResultTypeError",
    "ClientStateLearningOutput",
    "ClientStateWorkOutput",
    "ClientWorkProcess",
    "DistributionProcess",
    "ErrorFeedbackClientState",
    "ErrorFeedbackState",
    "FinalizerProcess",
    "FinalizerResultTypeError",
    "GetHparamsTypeError",
    "GetModelWeightsTypeSignatureError",
    "LearningAlgorithmState",
    "LearningProcess",
    "LearningProcessOutput",
    "LearningProcessOutputError",
    "LearningProcessPlacementError",
    "LearningProcessSequenceTypeError",
    "SetHparamsTypeError",
    "SetModelWeightsTypeSignatureError",
    "add_error_feedback",
    "build_apply_optimizer_finalizer",
    "build_broadcast_process",
    "build_identity_finalizer",
    "build_model_delta_client_work",
    "build_quantized_broadcast_process",
    "compose_learning_process",
    "reject_non_finite_update",
]
