"""Templates of stateful processes: their contracts, which the constructors enforce, and how they compose."""

from koinon._errors import (
    AggregationNotFederatedError,
    AggregationPlacementError,
    AggregationValueTypeMismatchError,
    EstimateNotAssignableError,
    TemplateError,
    TemplateInitFnParamNotEmptyError,
    TemplateNextFnNumArgsError,
    TemplateNotFederatedError,
    TemplateNotMeasuredProcessOutputError,
    TemplatePlacementError,
    TemplateStateNotAssignableError,
)
from koinon.templates._aggregation import AggregationProcess
from koinon.templates._combine import chain_measured_processes, concatenate_measured_processes
from koinon.templates._estimation import EstimationProcess
from koinon.templates._iterative import IterativeProcess, is_stateful
from koinon.templates._measured import MeasuredProcess, MeasuredProcessOutput

__all__ = [
    "AggregationNotFederatedError",
    "AggregationPlacementError",
    "AggregationProcess",
    "AggregationValueTypeMismatchError",
    "EstimateNotAssignableError",
    "EstimationProcess",
    "IterativeProcess",
    "MeasuredProcess",
    "MeasuredProcessOutput",
    "TemplateError",
    "TemplateInitFnParamNotEmptyError",
    "TemplateNextFnNumArgsError",
    "TemplateNotFederatedError",
    "TemplateNotMeasuredProcessOutputError",
    "TemplatePlacementError",
    "TemplateStateNotAssignableError",
    "chain_measured_processes",
    "concatenate_measured_processes",
    "is_stateful",
]
