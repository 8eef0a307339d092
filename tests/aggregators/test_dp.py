"""`DifferentiallyPrivateFactory`: the contract of every mechanism, and what is the same for all of them."""

from __future__ import annotations

import functools
import math
import warnings
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import koinon as ko
from koinon.aggregators import (
    DifferentiallyPrivateFactory,
    DPAggregatorState,
    MeanFactory,
    PrivacyBudget,
    SumFactory,
    extract_dp_event_from_state,
    privacy_spent,
    with_new_noise,
)
from koinon.aggregators._dp import split_noise
from koinon.privacy import FixedSizeSampling, IntegerSampler, NoSampling, PoissonSampling
from koinon.privacy._noise import at_least
from koinon.types import TensorType, to_type

Factory = DifferentiallyPrivateFactory
VECTOR = TensorType(jnp.float32, (3,))
CLIENTS = [np.float32(v) for v in ([3, 4, 0], [0.3, 0.0, -0.4], [0, -2, 0])]
CLIPPED = np.float64([0.6 + 0.3, 0.8 - 1.0, -0.4])  # the sum of the three, each at most 1 long

CENTRAL = (
    "<key=uint32[8],round=uint32,step=int32,tree=int32,clip=float32,estimate={e},noise=int32[{n},3],count_noise={c}>"
)
AT_CLIENTS = "<key=key<fry>,round=int32,rho=float32,xi=float32>"
# Of each mechanism: how it is made for a noise multiplier, the type of the state of its query, and of its event.
MECHANISMS = {
    "fixed": (
        lambda z: Factory.gaussian_fixed(z, 3, 1.0, seed=1),
        CENTRAL.format(e="<>", n=0, c="<>"),
        "<noise_multiplier=float32>",
    ),
    "adaptive": (
        lambda z: Factory.gaussian_adaptive(z, 3, 1.0, clipped_count_stddev=z, seed=1),
        CENTRAL.format(e="float32", n=0, c="int32[0,1]"),
        "<noise_multiplier=float32,count_noise_multiplier=float32>",
    ),
    "tree": (
        lambda z: Factory.tree_aggregation(z, 3, 1.0, max_rounds=7, noise_seed=1),
        CENTRAL.format(e="<>", n=3, c="<>"),
        "<noise_multiplier=float32,first_steps=int32,later_steps=int32,rounds=int32>",
    ),
    "tree_adaptive": (
        lambda z: Factory.tree_adaptive(
            z, 3, initial_l2_norm_clip=1.0, restart_warmup=2, restart_frequency=3, clipped_count_stddev=z, noise_seed=1
        ),
        CENTRAL.format(e="float32", n=2, c="int32[2,1]"),
        "<noise_multiplier=float32,first_steps=int32,later_steps=int32,rounds=int32>",
    ),
    "banded": (
        lambda z: Factory.banded_matrix_factorization(z, 3, 1.0, bands=3, seed=1),
        CENTRAL.format(e="<>", n=2, c="<>"),
        "<noise_multiplier=float32,separation=int32,rounds=int32>",
    ),
    "skellam": (lambda z: Factory.distributed(z, 3, 1.0), AT_CLIENTS, "<rho=float32,xi=float32>"),
    "distributed_gaussian": (
        lambda z: Factory.distributed(z, 3, 1.0, mechanism="discrete_gaussian"),
        AT_CLIENTS,
        "<rho=float32,xi=float32>",
    ),
    "local": (lambda z: Factory.local(z, 3, 1.0), AT_CLIENTS, "<noise_multiplier=float32>"),
    "float": (
        lambda z: Factory.gaussian_fixed(z, 3, 1.0, seed=1, float_noise=True),
        "<key=key<fry>,round=int32>",
        "<noise_multiplier=float32>",
    ),
}


def mechanisms(*always):
    """Runs a test on these mechanisms; on the others, which share most of their code with one of them, as a soak."""
    marked = [name if name in always else pytest.param(name, marks=pytest.mark.soak) for name in MECHANISMS]
    return pytest.mark.parametrize("name", marked)


@functools.cache
def process_of(name, noise_multiplier=0.5):
    """The process of a mechanism, one for all tests, so that it is compiled once."""
    return MECHANISMS[name][0](noise_multiplier).create(VECTOR)


def same_bits(first, second):
    """Whether two pytrees have the same leaves, bit for bit."""
    first, second = (jax.tree.map(as_numpy, tree) for tree in (first, second))
    return jax.tree.all(jax.tree.map(np.array_equal, first, second))


def as_numpy(leaf):
    """A leaf as a NumPy array; of a typed key its words."""
    return np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)


@pytest.mark.parametrize("name", MECHANISMS)
def test_a_mechanism_has_the_type_of_its_interface(name):
    """State and measurements have the names that checkpoints and monitoring refer to."""
    _, query_state, event = MECHANISMS[name]
    state_type = (
        f"<query_state={query_state},agg_state=<>,dp_event={event},is_init_state=bool,"
        "cohorts=<rounds=int32,least=int32,most=int32>>@SERVER"
    )
    clip = "current_clip=float32" if "adaptive" in name else ""
    measured = (
        f"<dp_query_metrics=<{clip}>,dp=<>,non_finite_clients=int32,"
        "privacy_spent=<rounds=int32,zcdp_rho=float32>>@SERVER"
    )
    assert str(process_of(name).next.type_signature) == (
        f"(<state={state_type},value={{float32[3]}}@CLIENTS> -> "
        f"<state={state_type},result=float32[3]@SERVER,measurements={measured}>)"
    )


@mechanisms("fixed", "tree_adaptive", "skellam")
def test_a_mechanism_keeps_the_contract_of_aggregations(name):
    """Engines agree bit for bit; the order of clients does not matter; there may be none; nothing compiles twice."""
    process = process_of(name)
    first = process.next(process.initialize(), CLIENTS)
    with ko.testing.count_compilations() as count:
        second = process.next(first.state, CLIENTS)
        backwards = process.next(process.initialize(), CLIENTS[::-1])
    assert count.total == 0
    with ko.backends.use("reference"):
        reference = process.next(process.next(process.initialize(), CLIENTS).state, CLIENTS)
    assert same_bits(second.state, reference.state)
    assert same_bits(second.result, reference.result)
    if name == "float":
        np.testing.assert_allclose(backwards.result, first.result, atol=1e-6)
    elif MECHANISMS[name][1] != AT_CLIENTS:  # whose keys go by the position of a client
        assert same_bits(backwards.result, first.result)
    assert np.isfinite(process.next(first.state, []).result).all()


@mechanisms("fixed", "skellam", "local")
def test_without_noise_it_is_the_clipped_sum_over_the_expected_number(name):
    """For every mechanism; the divisor does not depend on how many clients there are."""
    process = process_of(name, 0.0)
    output = process.next(process.initialize(), CLIENTS)

    np.testing.assert_allclose(output.result, CLIPPED / 3, atol=3e-4)
    assert float(output.measurements["privacy_spent"]["zcdp_rho"]) == math.inf


@mechanisms("fixed", "skellam")
def test_a_client_that_is_not_finite_is_left_out_and_counted(name):
    """The round is bit for bit what it is with the one other client, also in the state; for NaN and both infinities."""
    process = process_of(name)
    alone = process.next(process.initialize(), CLIENTS[:1])
    for bad in ([np.nan, np.inf], [-np.inf, np.nan]):
        broken = [np.float32([0.1, element, 0.2]) for element in bad]
        output = process.next(process.initialize(), [CLIENTS[0], *broken])

        assert same_bits(output.state, alone.state)
        assert same_bits(output.result, alone.result)
        assert int(output.measurements["non_finite_clients"]) == 2
    assert int(alone.measurements["non_finite_clients"]) == 0


@pytest.mark.parametrize("name", ["fixed", "skellam", "float"])
@pytest.mark.parametrize("value", [3e38, 1e-45, 0.0])
def test_numbers_of_any_size_are_clipped_or_vanish(name, value):
    """A huge vector has the length of the clip, a tiny one that of zero; nothing overflows."""
    process = process_of(name, 0.0)
    clients = [np.full(3, value, np.float32), *[np.zeros(3, np.float32)] * 2]
    result = process.next(process.initialize(), clients).result * 3

    expected = np.full(3, 3**-0.5) if value > 1 else np.zeros(3)
    np.testing.assert_allclose(result, expected, atol=3e-4)


def test_results_lie_on_a_grid():
    """Every result is an integer number of steps: none has a bit pattern that another sum could not have."""
    process = process_of("fixed", 0.01)
    result = np.asarray(process.next(process.initialize(), CLIENTS).result, np.float64)
    steps = result * 3 * 2**22

    np.testing.assert_allclose(steps, np.rint(steps), atol=0.25)
    assert np.abs(np.rint(steps)).max() > 1


def noise_of(factory, rounds=3, size=300_000):
    """The results of rounds without clients, in units of the clip, times the expected number."""
    process = factory.create(TensorType(jnp.float32, (size,)))
    state, rows = process.initialize(), []
    for _ in range(rounds):
        output = process.next(state, [np.zeros(size, np.float32)] * 2)
        state = output.state
        rows.append(np.asarray(output.result, np.float64))
    return np.array(rows), state


@pytest.mark.parametrize(
    ("make", "deviation"),
    [
        (lambda: Factory.gaussian_fixed(1.5, 10, 4.0, seed=3), 1.5 * 4.0 / 10),
        (lambda: Factory.gaussian_fixed(1.5, 10, 4.0, seed=3, float_noise=True), 1.5 * 4.0 / 10),
        (lambda: Factory.local(1.5, 10, 4.0, seed=3), math.sqrt(2) * 1.5 * 4.0 / 10),
        (lambda: Factory.distributed(1.5, 10, 4.0, seed=3), math.sqrt(2 / 10) * 1.5 * 4.0 / 10),
        (
            lambda: Factory.distributed(1.5, 10, 4.0, mechanism="discrete_gaussian", seed=3),
            math.sqrt(2 / 10) * 1.5 * 4.0 / 10,
        ),
    ],
    ids=["fixed", "float", "local", "skellam", "distributed_gaussian"],
)
@pytest.mark.soak
def test_the_noise_of_a_process_has_the_law_that_is_stated(make, deviation):
    """The deviation within 4 standard errors, no correlation of rounds or of elements; clients' noises add up."""
    rows, _ = noise_of(make())
    rows = rows / deviation
    count = rows.size

    assert abs(np.sqrt(np.mean(rows**2)) - 1) < 4 / math.sqrt(2 * count)
    assert abs(np.mean(rows[0] * rows[1])) < 4 / math.sqrt(count / 3)
    assert abs(np.mean(rows[:, 1:] * rows[:, :-1])) < 4 / math.sqrt(count)


@pytest.mark.soak
def test_the_noise_of_a_tree_cancels_in_the_model():
    """After three rounds the sum has the variance of a pair and a leaf, 2/3 + 1, and not of three rounds."""
    rows, _ = noise_of(Factory.tree_aggregation(1.0, 1, 1.0, noise_seed=3))

    np.testing.assert_allclose(rows.sum(axis=0).var(), 5 / 3, rtol=4 * math.sqrt(2 / rows.shape[1]))


def test_the_noise_is_that_of_the_seed():
    """The same seed gives the same key, another seed another; without one, every process has its own."""

    def key(seed):
        return np.asarray(Factory.gaussian_fixed(1.0, 1, 1.0, seed=seed).create(VECTOR).initialize().query_state.key)

    assert same_bits(key(1), key(1))
    assert not same_bits(key(1), key(2))
    assert not same_bits(key(None), key(None))


def test_a_state_can_be_given_a_new_key():
    """A round that is run again from the same state then has other noise, and all else is kept."""
    process = process_of("fixed")
    state = process.next(process.initialize(), CLIENTS).state
    renewed = with_new_noise({"aggregator": state})["aggregator"]

    assert same_bits(renewed._replace(query_state=renewed.query_state._replace(key=state.query_state.key)), state)
    assert not same_bits(process.next(renewed, CLIENTS).result, process.next(state, CLIENTS).result)
    with pytest.raises(ko.errors.KoinonTypeError, match="no noise of the server"):
        with_new_noise(process_of("local").initialize())


def test_structures_keep_their_containers_and_dtypes():
    """A structure is clipped as one vector; the result has its dtypes."""
    value_type = to_type({"a": TensorType(jnp.float16, (2, 1)), "b": (TensorType(jnp.float32),)})
    process = Factory.gaussian_fixed(0.0, 1, 2.5).create(value_type)
    client = {"a": np.float16([[3.0], [0.0]]), "b": (np.float32(4.0),)}
    result = process.next(process.initialize(), [client]).result

    np.testing.assert_allclose(result["a"], [[1.5], [0.0]], atol=1e-3)
    np.testing.assert_allclose(result["b"][0], 2.0, atol=1e-3)
    assert (result["a"].dtype, result["b"][0].dtype) == (jnp.float16, jnp.float32)


def test_an_adaptive_norm_follows_the_quantile():
    """Without noise: a geometric step by the share of norms below it; norms before clipping count."""
    process = Factory.gaussian_adaptive(0.0, 3, 1.0, 0.5, 0.2).create(VECTOR)
    state, clip = process.initialize(), 1.0
    for _ in range(3):
        output = process.next(state, CLIENTS)
        state = output.state
        share = np.mean([np.linalg.norm(v) <= clip for v in CLIENTS])
        sums = sum(v * min(1.0, clip / np.linalg.norm(v)) for v in CLIENTS)

        np.testing.assert_allclose(output.result, sums / 3, atol=1e-3)
        clip *= math.exp(-0.2 * (share - 0.5))
        np.testing.assert_allclose(output.measurements["dp_query_metrics"]["current_clip"], clip, rtol=1e-5)


def test_a_tree_takes_on_the_estimated_norm_when_it_starts_anew():
    """The clip stays within a tree; the estimate moves in every round."""
    process = process_of("tree_adaptive", 0.0)
    state, clips = process.initialize(), []
    for _ in range(6):
        clips.append(float(state.query_state.clip))
        state = process.next(state, CLIENTS).state
    estimates = [math.exp(-0.2 * (1 / 3 - 0.5)) ** n for n in range(6)]

    np.testing.assert_allclose(clips, [1.0, 1.0, estimates[2], estimates[2], estimates[2], estimates[5]], rtol=1e-5)


@pytest.mark.parametrize(("multiplier", "clients", "deviation"), [(0.5, 100.0, None), (1.0, 30.0, 2.0)])
def test_the_noise_is_split_between_values_and_count(multiplier, clients, deviation):
    """`(z^-2 - (2 s)^-2)^-1/2` for the values; the deviation of the count is a twentieth of the clients by default."""
    values, count = split_noise(multiplier, clients, deviation)

    assert count == (clients / 20 if deviation is None else deviation)
    assert values == pytest.approx((multiplier**-2 - (2 * count) ** -2) ** -0.5)
    assert (values**-2 + (2 * count) ** -2) ** -0.5 == pytest.approx(multiplier)
    assert split_noise(0.0, clients, None) == (0.0, 0.0)


def test_a_count_that_gives_too_much_away_is_refused():
    """And where it takes most of the budget there is a warning."""
    with pytest.raises(ValueError, match="too small for this noise multiplier"):
        Factory.gaussian_adaptive(1.0, 10)
    with pytest.warns(UserWarning, match="times what it would be"):
        Factory.gaussian_adaptive(1.0, 11)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Factory.gaussian_adaptive(1.0, 100)


def dp_accounting():
    """The package."""
    return pytest.importorskip("dp_accounting")


def event_of(name):
    """The event of four rounds."""
    process = process_of(name)
    state = process.initialize()
    for _ in range(4):
        state = process.next(state, CLIENTS).state
    return extract_dp_event_from_state({"nested": [state]})


@mechanisms("fixed", "skellam")
def test_the_event_is_the_noise_that_was_added(name):
    """Exactly: the deviation of what the sampler drew, over what a client can change."""
    package = dp_accounting()
    tree = package.SingleEpochTreeAggregationDpEvent
    event = event_of(name)
    match name:
        case "fixed" | "float":
            assert event == package.GaussianDpEvent(0.5)
        case "local":
            assert event == package.GaussianDpEvent(0.25)
        case "tree":
            assert event == package.ComposedDpEvent([tree(0.5, 4)])
        case "banded":
            assert event == package.SelfComposedDpEvent(package.GaussianDpEvent(0.5), 2)
        case "adaptive":
            values, count = split_noise(0.5, 3.0, 0.5)
            expected = [package.GaussianDpEvent(at_least(z)) for z in (values, 2 * count)]
            assert event == package.ComposedDpEvent(expected)
        case "tree_adaptive":
            assert [part.step_counts for part in event.events] == [2, 2]
            assert event.events[0].noise_multiplier == pytest.approx(0.5, rel=1e-6)
        case _:
            assert event.rho == pytest.approx(0.5 / 0.5**2, rel=1e-5)
            assert 0.0 < event.xi < 1e-5 or name == "distributed_gaussian"


@pytest.mark.parametrize("name", ["fixed", "tree", "banded"])
def test_the_event_tells_the_parameter_of_the_sampler(name, monkeypatch):
    """What is drawn in a round is watched: its variance is the square of multiplier times sensitivity, exactly."""
    drawn = []
    draw = IntegerSampler.__call__
    monkeypatch.setattr(IntegerSampler, "__call__", lambda self, words: drawn.append(self) or draw(self, words))
    process = MECHANISMS[name][0](0.7).create(VECTOR)
    event = process.initialize().dp_event
    query = MECHANISMS[name][0](0.7)._query
    noise = query._make_noise(3)

    assert drawn
    assert {sampler.variance for sampler in drawn} == {(Fraction(at_least(0.7)) * noise.sensitivity) ** 2}
    assert float(noise.sensitivity) >= query._units
    assert type(event) is type(query._event(query.initialize(3), noise))


def test_clients_that_drop_out_take_their_noise_with_them():
    """The event of a distributed mechanism tells the noise of those that were there."""
    process = process_of("skellam")
    all_three, one = (
        extract_dp_event_from_state(process.next(process.initialize(), clients).state)
        for clients in (CLIENTS, [CLIENTS[0], *[np.float32([np.nan] * 3)] * 2])
    )

    assert one.rho == pytest.approx(3 * all_three.rho, rel=1e-5)


def test_the_initial_state_has_no_event():
    """There was no noise yet; and what has no such state, or two, has none that could be meant."""
    state = process_of("fixed").initialize()
    assert isinstance(state, DPAggregatorState)
    with pytest.raises(ko.errors.ExtractingDpEventFromInitialStateError, match="before the first round"):
        extract_dp_event_from_state(state)
    with pytest.raises(ko.errors.KoinonTypeError, match="must be one state"):
        extract_dp_event_from_state({"a": 1})
    with pytest.raises(ko.errors.KoinonTypeError, match="must be one state"):
        extract_dp_event_from_state((state, state))


def soak(*values):
    """Parameters of a test that is run now and then."""
    return pytest.param(*values, marks=pytest.mark.soak)


@pytest.mark.parametrize(
    ("name", "sampling"),
    [
        ("fixed", PoissonSampling(0.3)),
        soak("adaptive", FixedSizeSampling(3, 30)),
        soak("fixed", NoSampling()),
        ("tree", NoSampling()),
        soak("tree_adaptive", NoSampling()),
        soak("banded", NoSampling()),
        soak("skellam", NoSampling()),
    ],
)
def test_every_round_measures_what_was_spent(name, sampling):
    """The epsilon in the measurements is that of the events, in a run of seven rounds over restarts."""
    dp_accounting()
    inner = MECHANISMS[name][0](2.0)
    process = Factory(inner._query, inner._records, budget=PrivacyBudget(1e-5, sampling)).create(VECTOR)
    state = process.initialize()
    for number in range(7):
        output = process.next(state, CLIENTS if number else [*CLIENTS[:2], np.float32([np.nan] * 3)])
        state = output.state
        spent = {key: float(value) for key, value in output.measurements["privacy_spent"].items()}

        assert spent["rounds"] == number + 1
        assert spent["epsilon"] == pytest.approx(privacy_spent(state, 1e-5, sampling), rel=1e-5)
        assert spent["delta"] == pytest.approx(1e-5)


def test_a_poisson_epsilon_is_refused_for_cohorts_of_one_size():
    """Eight cohorts of equal size were not drawn that way; cohorts that differ may have been."""
    dp_accounting()
    process = process_of("fixed")
    state = varied = process.initialize()
    for number in range(8):
        state = process.next(state, CLIENTS).state
        varied = process.next(varied, CLIENTS if number else [*CLIENTS[:2], np.float32([np.nan] * 3)]).state

    with pytest.raises(ko.errors.PrivacyError, match="not drawn by Poisson sampling"):
        privacy_spent(state, 1e-5, PoissonSampling(0.1))
    with pytest.raises(ko.errors.PrivacyError, match="larger than the sampling claims"):
        privacy_spent(state, 1e-5, FixedSizeSampling(2, 30))
    assert privacy_spent(varied, 1e-5, PoissonSampling(0.1)) < privacy_spent(state, 1e-5, NoSampling())
    assert privacy_spent(state, 1e-5, FixedSizeSampling(3, 30)) > privacy_spent(varied, 1e-5, PoissonSampling(0.1))


@pytest.mark.parametrize(("sampling", "false_from"), [(PoissonSampling(0.1), 8), (FixedSizeSampling(2, 30), 1)])
def test_a_false_claim_of_sampling_measures_an_infinite_epsilon(sampling, false_from):
    """A number in the metrics that does not hold would be worse than none."""
    dp_accounting()
    process = Factory.gaussian_fixed(1.0, 3.0, clip=1.0, budget=PrivacyBudget(1e-5, sampling)).create(VECTOR)
    state = process.initialize()
    for number in range(1, 10):
        output = process.next(state, CLIENTS)
        state = output.state
        assert np.isinf(float(output.measurements["privacy_spent"]["epsilon"])) == (number >= false_from)


def test_sampling_does_not_amplify_rounds_that_depend_on_each_other():
    """Neither in a measurement nor afterwards."""
    tree = MECHANISMS["tree"][0](1.0)
    budget = PrivacyBudget(1e-5, PoissonSampling(0.1))
    with pytest.raises(ko.errors.KoinonValueError, match="independent and alike"):
        Factory(tree._query, budget=budget).create(VECTOR)
    process = process_of("tree_adaptive")
    with pytest.raises(ko.errors.KoinonValueError, match="independent and alike"):
        privacy_spent(process.next(process.initialize(), CLIENTS).state, 1e-5, PoissonSampling(0.1))


def test_sampling_does_not_amplify_noise_that_hides_each_client_from_the_server():
    """The server sees who sends; without sampling, the epsilon is that of half the multiplier."""
    dp_accounting()
    process = process_of("local")
    state = process.next(process.initialize(), CLIENTS).state

    with pytest.raises(ko.errors.KoinonValueError, match="noise of the server"):
        privacy_spent(state, 1e-5, PoissonSampling(0.1))
    half = extract_dp_event_from_state(state).noise_multiplier
    assert privacy_spent(state, 1e-5) == pytest.approx(ko.privacy.compute_epsilon(half, 1, 1e-5, NoSampling()))


@pytest.mark.parametrize("name", MECHANISMS)
def test_the_privacy_report_finds_the_protection(name):
    """The result is protected in the report, with the clip and the noise; counts of clients are not, and are listed."""
    report = ko.compiler.privacy_report(process_of(name).next)
    (row,) = (row for row in report.rows if row.path == ".result")

    assert row.protected
    assert row.clip == ("adaptive" if "adaptive" in name else 1.0)
    assert row.simulation_only
    assert {row.path for row in report.unprotected} >= {".measurements['non_finite_clients']"}
    assert row.route == ("secure" if name in ("skellam", "distributed_gaussian") else "plain")


def test_noise_from_the_operating_system_is_no_simulation():
    """Without a seed the report does not say so; the sampling that is assumed is in it."""
    factory = Factory.gaussian_fixed(0.5, 3, 1.0, budget=PrivacyBudget(1e-5, NoSampling()))
    report = ko.compiler.privacy_report(factory.create(VECTOR).next)
    (row,) = (row for row in report.rows if row.path == ".result")

    assert not row.simulation_only
    assert row.sampling == "no"


def test_more_clients_than_can_be_summed_are_an_error():
    """Beyond the size that a modulus is made for, nothing wraps around in silence."""
    process = process_of("skellam", 0.0)
    most = math.ceil(3 + 8 * math.sqrt(3))
    assert process.next(process.initialize(), CLIENTS[:1] * most).result.sum() > 0
    with pytest.raises(ko.errors.SecureSumRangeError):
        process.next(process.initialize(), CLIENTS[:1] * (most + 1))


def test_a_modulus_that_is_too_small_is_an_error_with_the_numbers():
    """When the factory is made, or when the size of the values is known."""
    with pytest.raises(ko.errors.KoinonValueError, match="modulus of 8 bits is too small") as raised:
        Factory.distributed(0.5, 1000, 1.0, bits=8)
    assert "take more bits than 8" in str(raised.value)
    with pytest.raises(ko.errors.KoinonValueError, match="too coarse"):
        Factory.distributed(0.5, 10, 1.0, bits=12).create(TensorType(jnp.float32, (10_000,)))


GOOD = {"noise_multiplier": 1.0, "clients_per_round": 100, "clip": 1.0}


@pytest.mark.parametrize(
    ("make", "arguments", "error", "message"),
    [
        (Factory.gaussian_fixed, {"noise_multiplier": 1}, TypeError, "`noise_multiplier` must be a float"),
        (Factory.gaussian_fixed, {"noise_multiplier": -1.0}, ValueError, "`noise_multiplier` must be"),
        (Factory.gaussian_fixed, {"noise_multiplier": math.inf}, ValueError, "`noise_multiplier` must be"),
        (Factory.gaussian_fixed, {"clients_per_round": 0}, ValueError, "`clients_per_round` must be"),
        (Factory.gaussian_fixed, {"clients_per_round": "3"}, TypeError, "`clients_per_round` must be"),
        (Factory.gaussian_fixed, {"clients_per_round": 2.0**20}, ValueError, "`clients_per_round` must be"),
        (Factory.gaussian_fixed, {"clip": 1}, TypeError, "`clip` must be a float"),
        (Factory.gaussian_fixed, {"clip": 0.0}, ValueError, "`clip` must be"),
        (Factory.gaussian_fixed, {"seed": 1.5}, TypeError, "seed must be an int"),
        (Factory.gaussian_fixed, {"float_noise": True}, TypeError, "needs a seed"),
        (Factory.gaussian_fixed, {"budget": 1e-5}, TypeError, "`budget` must be"),
        (Factory.banded_matrix_factorization, {"bands": 0}, ValueError, "`bands` must be"),
        (Factory.banded_matrix_factorization, {"bands": 2.0}, TypeError, "`bands` must be"),
        (Factory.banded_matrix_factorization, {"bands": 4, "min_separation": 3}, ValueError, "does not hide it"),
        (Factory.distributed, {"bits": 31}, ValueError, "`bits` must be"),
        (Factory.distributed, {"mechanism": "laplace"}, ValueError, "no such mechanism"),
        (Factory.local, {"seed": None}, TypeError, "needs a seed"),
    ],
)
def test_arguments_out_of_their_range_are_refused(make, arguments, error, message):
    """As in TFF, an int is no float, but for the number of clients."""
    with pytest.raises(error, match=message):
        make(**(GOOD | arguments)).create(VECTOR)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"initial_l2_norm_clip": 1}, TypeError),
        ({"initial_l2_norm_clip": 0.0}, ValueError),
        ({"target_unclipped_quantile": 1.1}, ValueError),
        ({"learning_rate": -0.1}, ValueError),
        ({"clipped_count_stddev": -1.0}, ValueError),
        ({"clipped_count_stddev": 5}, TypeError),
    ],
)
def test_arguments_of_an_adaptive_norm_have_ranges_too(arguments, error):
    """The error names the argument."""
    with pytest.raises(error, match=next(iter(arguments))):
        Factory.gaussian_adaptive(1.0, 100, **arguments)
    renamed = {("clip_learning_rate" if name == "learning_rate" else name): value for name, value in arguments.items()}
    with pytest.raises(error):
        Factory.tree_adaptive(1.0, 100, **renamed)


def test_a_factory_is_made_of_a_query_and_an_unweighted_sum():
    """Other things are refused, and so are values without a norm or a size."""
    query = Factory.gaussian_fixed(1.0, 3, 1.0)._query
    with pytest.raises(TypeError, match="`query` must be"):
        Factory(SumFactory())
    with pytest.raises(TypeError, match="record_aggregation_factory"):
        Factory(query, MeanFactory())
    with pytest.raises(TypeError, match="floating dtypes only"):
        Factory(query).create(TensorType(jnp.int32))
    with pytest.raises(TypeError, match="known shapes"):
        Factory(query).create(TensorType(jnp.float32, (None,)))
    with pytest.raises(TypeError, match="nothing to aggregate"):
        Factory(query).create(TensorType(jnp.float32, (0,)))
