"""From a computation to a plan that engines run."""

from koinon.compiler._plan import Plan, plan
from koinon.compiler._steps import Phase, PlanValue, Step

__all__ = ["Phase", "Plan", "PlanValue", "Step", "plan"]
