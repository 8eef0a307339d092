"""From a computation to a plan that engines run."""

from koinon.compiler._dependencies import Dependencies, dependencies
from koinon.compiler._deserialize import deserialize
from koinon.compiler._plan import Plan, plan
from koinon.compiler._privacy import PrivacyReport, PrivacyRow, privacy_report
from koinon.compiler._serialize import fingerprint, serialize
from koinon.compiler._steps import Phase, PlanValue, Step

__all__ = [
    "Dependencies",
    "Phase",
    "Plan",
    "PlanValue",
    "PrivacyReport",
    "PrivacyRow",
    "Step",
    "dependencies",
    "deserialize",
    "fingerprint",
    "plan",
    "privacy_report",
    "serialize",
]
