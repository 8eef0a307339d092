"""From a computation to a plan that engines run."""

from koinon.compiler._plan import Phase, Plan, PlanValue, Step, plan

__all__ = ["Phase", "Plan", "PlanValue", "Step", "plan"]
