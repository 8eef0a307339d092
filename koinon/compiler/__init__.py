"""From a computation to a plan that engines run."""

from koinon.compiler._checks import (
    assert_all_released_through_dp,
    assert_contains_secure_aggregation,
    assert_no_collect,
    assert_no_unsecure_aggregation,
    assert_secure_sums_fit,
    check_aggregate_not_dependent_on_aggregate,
    check_broadcast_not_dependent_on_aggregate,
    check_contains_no_unbound_references,
    check_contains_only_reducible_intrinsics,
    check_has_single_placement,
    check_has_unique_names,
    computation_contains_secure_aggregation,
    computation_contains_unsecure_aggregation,
)
from koinon.compiler._cost import CostReport, PhaseCost, cost_report
from koinon.compiler._dependencies import Dependencies, dependencies
from koinon.compiler._deserialize import deserialize
from koinon.compiler._forms import (
    DistributeAggregateForm,
    MapReduceForm,
    check_computation_compatible_with_map_reduce_form,
    get_computation_for_distribute_aggregate_form,
    get_computation_for_map_reduce_form,
    get_distribute_aggregate_form_for_computation,
    get_map_reduce_form_for_computation,
    get_state_initialization_computation,
)
from koinon.compiler._plan import Plan, plan
from koinon.compiler._privacy import PrivacyReport, PrivacyRow, privacy_report
from koinon.compiler._serialize import fingerprint, serialize
from koinon.compiler._steps import Phase, PlanValue, Step

__all__ = [
    "CostReport",
    "Dependencies",
    "DistributeAggregateForm",
    "MapReduceForm",
    "Phase",
    "PhaseCost",
    "Plan",
    "PlanValue",
    "PrivacyReport",
    "PrivacyRow",
    "Step",
    "assert_all_released_through_dp",
    "assert_contains_secure_aggregation",
    "assert_no_collect",
    "assert_no_unsecure_aggregation",
    "assert_secure_sums_fit",
    "check_aggregate_not_dependent_on_aggregate",
    "check_broadcast_not_dependent_on_aggregate",
    "check_computation_compatible_with_map_reduce_form",
    "check_contains_no_unbound_references",
    "check_contains_only_reducible_intrinsics",
    "check_has_single_placement",
    "check_has_unique_names",
    "computation_contains_secure_aggregation",
    "computation_contains_unsecure_aggregation",
    "cost_report",
    "dependencies",
    "deserialize",
    "fingerprint",
    "get_computation_for_distribute_aggregate_form",
    "get_computation_for_map_reduce_form",
    "get_distribute_aggregate_form_for_computation",
    "get_map_reduce_form_for_computation",
    "get_state_initialization_computation",
    "plan",
    "privacy_report",
    "serialize",
]
