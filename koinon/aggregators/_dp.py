"""Differentially private aggregations, and what they have spent."""

from __future__ import annotations

import warnings
from typing import final

from koinon._errors import KoinonTypeError, KoinonValueError
from koinon.aggregators._dp_central import Restarts, adaptive_clip, banded_query, independent_query, tree_query
from koinon.aggregators._dp_clients import DistributedQuery, LocalQuery, Mechanism, ModularSumFactory
from koinon.aggregators._dp_float import FloatQuery
from koinon.aggregators._dp_process import PrivacyBudget, dp_process
from koinon.aggregators._dp_query import DPQuery, check_float
from koinon.aggregators._factory import (
    UnweightedAggregationFactory,
    ValueType,
    check_floats,
    check_int,
    check_unweighted_factory,
    prints_as_called,
)
from koinon.aggregators._sum import SumFactory
from koinon.templates._aggregation import AggregationProcess


@final
class DifferentiallyPrivateFactory(UnweightedAggregationFactory):
    """The sum of clipped values plus noise, divided by an expected number of clients.

    Type: `(<S@SERVER,{V}@CLIENTS> -> <state=S@SERVER,result=V@SERVER,measurements=M@SERVER>)`

    The state is a `DPAggregatorState`, the measurements are `<dp_query_metrics,dp,non_finite_clients,privacy_spent>`:
    those of the query (an adaptive clipping norm), those of the aggregation of records, how many clients were left
    out because a number of theirs is not finite, and what all rounds so far have spent. Without them the round is bit
    for bit what it is with them.

    Clipped values are rounded to integers on a grid of up to 2**22 steps per clipping norm, and the noise is a
    discrete Gaussian on that grid, drawn from ChaCha20 with a key from the operating system's entropy when the process
    is created: no bit pattern of the result gives a client away, and sums do not depend on the order of clients. A
    process is for one run: initialized twice, it draws the same noise twice; `ko.aggregators.with_new_noise` gives a
    state noise of its own. A `seed` makes a run repeatable, and is for simulations.

    The divisor is a fixed number, since how many clients there were is not public.

    Args:
      query: what is asked of the clients; the class methods make the usual ones.
      record_aggregation_factory: sums the records, which are integers; `SumFactory()` if None. It must not make the
        influence of a client larger.
      budget: what to measure epsilon for; None to measure only the Rényi divergence.

    Raises:
      KoinonTypeError: where an argument has another type.

    Example:
      >>> import numpy as np, koinon as ko
      >>> factory = ko.aggregators.DifferentiallyPrivateFactory.gaussian_fixed(0.01, 2, clip=10.0)
      >>> process = factory.create(ko.types.TensorType("float32", (2,)))
      >>> output = process.next(process.initialize(), [np.float32([6.0, 8.0]), np.float32([np.nan, 0.0])])
      >>> np.asarray(output.result).round(), int(output.measurements["non_finite_clients"])  # [6, 8] / 2, and noise
      (array([3., 4.], dtype=float32), 1)
    """

    def __init__(
        self,
        query: DPQuery,
        record_aggregation_factory: UnweightedAggregationFactory | None = None,
        *,
        budget: PrivacyBudget | None = None,
    ) -> None:
        if not isinstance(query, DPQuery):
            raise KoinonTypeError("`query` must be a DPQuery.", expected="DPQuery", found=type(query).__qualname__)
        factory = SumFactory() if record_aggregation_factory is None else record_aggregation_factory
        check_unweighted_factory(factory, "record_aggregation_factory")
        if budget is not None:
            check_budget(budget)
        self._query = query
        self._records = factory
        self._budget = budget

    def create(self, value_type: ValueType) -> AggregationProcess:
        """See `UnweightedAggregationFactory.create`.

        Raises:
          TypeError: if `value_type` has a leaf that is not a float, or not of a known shape.
          KoinonValueError: if the grid is too coarse for so many elements.
        """
        check_floats(value_type, "A differentially private aggregation")
        return dp_process(self._query, self._records, value_type, self._budget)

    @classmethod
    @prints_as_called
    def gaussian_fixed(
        cls,
        noise_multiplier: float,
        clients_per_round: float,
        clip: float,
        *,
        seed: int | None = None,
        float_noise: bool = False,
        budget: PrivacyBudget | None = None,
    ) -> DifferentiallyPrivateFactory:
        """A fixed clipping norm, and noise that is new in every round.

        Args:
          noise_multiplier: the standard deviation of the noise on the sum over the clip, a non-negative float.
          clients_per_round: the expected number of clients, a positive number.
          clip: the clipping norm, a positive float.
          seed: of the noise, for simulations; None for the operating system's entropy.
          float_noise: whether the sum and the noise are float32 numbers, for comparisons with other libraries; the
            noise leaks what it should hide, and reports say so. It needs a seed.
          budget: what to measure epsilon for.

        Raises:
          TypeError: if a number is no float (`clients_per_round` may be an int).
          ValueError: if a number is out of its range.

        References:
          H. Brendan McMahan, Daniel Ramage, Kunal Talwar, Li Zhang: Learning Differentially Private Recurrent Language
          Models, 2018. https://arxiv.org/abs/1710.06963
        """
        clients = _check_common(noise_multiplier, clients_per_round)
        check_float(clip, "clip", positive=True)
        if float_noise:
            return cls(FloatQuery(clip, clients, noise_multiplier, _check_seed(seed)), budget=budget)
        options = {"seed": seed, "sampling": _label(budget)}
        return cls(independent_query(noise_multiplier, clients, clip, **options), budget=budget)

    @classmethod
    @prints_as_called
    def gaussian_adaptive(
        cls,
        noise_multiplier: float,
        clients_per_round: float,
        initial_l2_norm_clip: float = 0.1,
        target_unclipped_quantile: float = 0.5,
        learning_rate: float = 0.2,
        clipped_count_stddev: float | None = None,
        *,
        seed: int | None = None,
        budget: PrivacyBudget | None = None,
    ) -> DifferentiallyPrivateFactory:
        """A clipping norm that follows a quantile of the clients' norms, and noise that is new in every round.

        The number of clients below the norm gets noise too. So that the values and the number together have the noise
        multiplier asked for, the noise on the values is larger, `(z**-2 - (2 s)**-2)**-0.5` for the multiplier `z` and
        the deviation `s` of the number.

        Args:
          noise_multiplier: of both noises together, a non-negative float.
          clients_per_round: the expected number of clients, a positive number.
          initial_l2_norm_clip: the first clipping norm, a positive float.
          target_unclipped_quantile: the quantile to follow, in [0, 1].
          learning_rate: of the logarithm of the norm, a non-negative float.
          clipped_count_stddev: the deviation of the noise on the number of clients, a non-negative float; a twentieth
            of `clients_per_round` if None.
          seed: of the noise, for simulations; None for the operating system's entropy.
          budget: what to measure epsilon for.

        Raises:
          TypeError: if a number is no float (`clients_per_round` may be an int).
          ValueError: if a number is out of its range, or the deviation is too small for the noise multiplier.

        References:
          Galen Andrew, Om Thakkar, H. Brendan McMahan, Swaroop Ramaswamy: Differentially Private Learning with
          Adaptive Clipping, 2021. https://arxiv.org/abs/1905.03871
        """
        clients = _check_common(noise_multiplier, clients_per_round)
        _check_adaptive(initial_l2_norm_clip, target_unclipped_quantile, learning_rate, clipped_count_stddev)
        value_multiplier, deviation = split_noise(noise_multiplier, clients, clipped_count_stddev)
        adaptive = adaptive_clip(target_unclipped_quantile, learning_rate, clients, deviation)
        options = {"adaptive": adaptive, "seed": seed, "sampling": _label(budget)}
        return cls(independent_query(value_multiplier, clients, initial_l2_norm_clip, **options), budget=budget)

    @classmethod
    @prints_as_called
    def tree_aggregation(
        cls,
        noise_multiplier: float,
        clients_per_round: float,
        l2_norm_clip: float,
        *,
        max_rounds: int = 4095,
        noise_seed: int | None = None,
        use_efficient: bool = True,
        record_aggregation_factory: UnweightedAggregationFactory | None = None,
        budget: PrivacyBudget | None = None,
    ) -> DifferentiallyPrivateFactory:
        """Noise of sums over rounds by a binary tree, which cancels in the model: DP-FTRL.

        It needs no sampling of clients. What it promises is for clients that are in each tree at most once.

        Args:
          noise_multiplier: the deviation of the noise of a node over the clip, a non-negative float.
          clients_per_round: the expected number of clients, a positive number.
          l2_norm_clip: the clipping norm, a positive float.
          max_rounds: how many rounds a tree has; after them another one begins. The state has a vector for each bit.
          noise_seed: of the noise, for simulations; None for the operating system's entropy.
          use_efficient: whether a node's sum is estimated from the nodes below it too.
          record_aggregation_factory: sums the records.
          budget: what to measure epsilon for; its sampling must be `NoSampling()`.

        Raises:
          TypeError: if a number is no float (`clients_per_round` may be an int).
          ValueError: if a number is out of its range.

        References:
          Peter Kairouz, Brendan McMahan, Shuang Song, Om Thakkar, Abhradeep Thakurta, Zheng Xu: Practical and Private
          (Deep) Learning without Sampling or Shuffling, 2021. https://arxiv.org/abs/2103.00039
        """
        clients = _check_common(noise_multiplier, clients_per_round)
        check_float(l2_norm_clip, "l2_norm_clip", positive=True)
        _check_count(max_rounds, "max_rounds")
        restarts = Restarts(max_rounds, max_rounds)
        query = tree_query(noise_multiplier, clients, l2_norm_clip, restarts, use_efficient, seed=noise_seed)
        return cls(query, record_aggregation_factory, budget=budget)

    @classmethod
    @prints_as_called
    def tree_adaptive(
        cls,
        noise_multiplier: float,
        clients_per_round: float,
        *,
        initial_l2_norm_clip: float = 0.1,
        restart_warmup: int = 128,
        restart_frequency: int = 1024,
        target_unclipped_quantile: float = 0.5,
        clip_learning_rate: float = 0.2,
        clipped_count_stddev: float | None = None,
        noise_seed: int | None = None,
        use_efficient: bool = True,
        record_aggregation_factory: UnweightedAggregationFactory | None = None,
        budget: PrivacyBudget | None = None,
    ) -> DifferentiallyPrivateFactory:
        """As `tree_aggregation`, with a clipping norm that takes on an estimated quantile when a tree begins.

        Args:
          noise_multiplier: of the values and of the number of clients below the norm together, a non-negative float.
          clients_per_round: the expected number of clients, a positive number.
          initial_l2_norm_clip: the clipping norm of the first tree, a positive float.
          restart_warmup: how many rounds the first tree has.
          restart_frequency: how many each later tree has.
          target_unclipped_quantile: the quantile to follow, in [0, 1].
          clip_learning_rate: of the logarithm of the norm, a non-negative float.
          clipped_count_stddev: see `gaussian_adaptive`.
          noise_seed: of the noise, for simulations; None for the operating system's entropy.
          use_efficient: see `tree_aggregation`.
          record_aggregation_factory: sums the records.
          budget: what to measure epsilon for; its sampling must be `NoSampling()`.

        Raises:
          TypeError: if a number is no float (`clients_per_round` may be an int).
          ValueError: if a number is out of its range, or the deviation is too small for the noise multiplier.
        """
        clients = _check_common(noise_multiplier, clients_per_round)
        _check_adaptive(initial_l2_norm_clip, target_unclipped_quantile, clip_learning_rate, clipped_count_stddev)
        _check_count(restart_warmup, "restart_warmup")
        _check_count(restart_frequency, "restart_frequency")
        value_multiplier, deviation = split_noise(noise_multiplier, clients, clipped_count_stddev)
        restarts = Restarts(restart_warmup, restart_frequency)
        tree = (max(restarts), use_efficient)
        adaptive = adaptive_clip(target_unclipped_quantile, clip_learning_rate, clients, deviation, tree)
        options = {"adaptive": adaptive, "seed": noise_seed}
        query = tree_query(value_multiplier, clients, initial_l2_norm_clip, restarts, use_efficient, **options)
        return cls(query, record_aggregation_factory, budget=budget)

    @classmethod
    @prints_as_called
    def banded_matrix_factorization(
        cls,
        noise_multiplier: float,
        clients_per_round: float,
        clip: float,
        *,
        bands: int,
        min_separation: int | None = None,
        seed: int | None = None,
        budget: PrivacyBudget | None = None,
    ) -> DifferentiallyPrivateFactory:
        """Noise that is correlated over some rounds, so that it cancels in the model: matrix factorization DP-FTRL.

        What it promises is for clients whose rounds are at least `min_separation` apart.

        Args:
          noise_multiplier: the deviation of the noise over what one participation can change, a non-negative float.
          clients_per_round: the expected number of clients, a positive number.
          clip: the clipping norm, a positive float.
          bands: over how many rounds noise is correlated, from 1 to 1024; the state has a vector for each but one.
          min_separation: the least distance of two rounds of one client, at least `bands`, which is the default.
          seed: of the noise, for simulations; None for the operating system's entropy.
          budget: what to measure epsilon for; its sampling must be `NoSampling()`.

        Raises:
          TypeError: if a number is no float (`clients_per_round` may be an int).
          ValueError: if a number is out of its range.

        References:
          Nikita Kalinin, Christoph Lampert: Banded Square Root Matrix Factorization for Differentially Private Model
          Training, 2024. https://arxiv.org/abs/2405.13763
        """
        clients = _check_common(noise_multiplier, clients_per_round)
        check_float(clip, "clip", positive=True)
        _check_count(bands, "bands", 1024)
        separation = bands if min_separation is None else min_separation
        if separation < bands:
            raise KoinonValueError(
                "Noise that is correlated over more rounds than lie between those of a client does not hide it.",
                expected=f"`min_separation` of at least {bands}",
                found=separation,
                hint="take fewer bands",
            )
        return cls(banded_query(noise_multiplier, clients, clip, bands, separation, seed=seed), budget=budget)

    @classmethod
    @prints_as_called
    def distributed(
        cls,
        noise_multiplier: float,
        clients_per_round: float,
        clip: float,
        *,
        bits: int = 28,
        mechanism: Mechanism = "skellam",
        seed: int = 0,
        budget: PrivacyBudget | None = None,
    ) -> DifferentiallyPrivateFactory:
        """Every client adds a share of the noise, and a secure sum shows the server the noisy sum alone.

        The grid is as fine as the modulus allows for the sum of all clients, so that it cannot wrap around; a cohort
        that is larger by more than 8 times its square root is an error. The event of a round tells the noise of the
        clients that took part.

        Args:
          noise_multiplier: the deviation of the noise of all clients over the clip, a non-negative float.
          clients_per_round: the expected number of clients, a positive number.
          clip: the clipping norm, a positive float.
          bits: the modulus of the secure sum is `2**bits`, at most 30; it is what each coordinate costs to send.
          mechanism: `skellam`, of which sums are of its kind; or `discrete_gaussian`, of which they nearly are.
          seed: of the keys of the clients, which the server draws: a report says that this is a simulation.
          budget: what to measure epsilon for; its sampling must be `NoSampling()`.

        Raises:
          TypeError: if a number is no float (`clients_per_round` may be an int).
          ValueError: if a number is out of its range, or the modulus too small for the clients.

        References:
          Peter Kairouz, Ziyu Liu, Thomas Steinke: The Distributed Discrete Gaussian Mechanism for Federated Learning
          with Secure Aggregation, 2021. https://arxiv.org/abs/2102.06387
          Naman Agarwal, Peter Kairouz, Ziyu Liu: The Skellam Mechanism for Differentially Private Federated Learning,
          2021. https://arxiv.org/abs/2110.04995
        """
        clients = _check_common(noise_multiplier, clients_per_round)
        check_float(clip, "clip", positive=True)
        _check_count(bits, "bits", 30)
        if mechanism not in ("discrete_gaussian", "skellam"):
            raise KoinonValueError(
                "There is no such mechanism.", expected="'skellam' or 'discrete_gaussian'", found=repr(mechanism)
            )
        query = DistributedQuery(clip, clients, noise_multiplier, bits, mechanism, _check_seed(seed))
        return cls(query, ModularSumFactory(query.modulus), budget=budget)

    @classmethod
    @prints_as_called
    def local(
        cls,
        noise_multiplier: float,
        clients_per_round: float,
        clip: float,
        *,
        seed: int = 0,
        record_aggregation_factory: UnweightedAggregationFactory | None = None,
        budget: PrivacyBudget | None = None,
    ) -> DifferentiallyPrivateFactory:
        """Every client adds noise that hides its value from the server too: local differential privacy.

        Any two values that a client might send are neighbours, twice the clip apart: the event of a round has half
        the noise multiplier.

        Args:
          noise_multiplier: the deviation of a client's noise over the clip, a non-negative float.
          clients_per_round: the expected number of clients, a positive number.
          clip: the clipping norm, a positive float.
          seed: of the keys of the clients, which the server draws: a report says that this is a simulation.
          record_aggregation_factory: sums the records.
          budget: what to measure epsilon for; its sampling must be `NoSampling()`.

        Raises:
          TypeError: if a number is no float (`clients_per_round` may be an int).
          ValueError: if a number is out of its range.
        """
        clients = _check_common(noise_multiplier, clients_per_round)
        check_float(clip, "clip", positive=True)
        query = LocalQuery(clip, clients, noise_multiplier, _check_seed(seed))
        return cls(query, record_aggregation_factory, budget=budget)


def check_budget(budget: object) -> None:
    """Raises a TypeError unless an argument is a `PrivacyBudget`."""
    if not isinstance(budget, PrivacyBudget):
        raise KoinonTypeError("`budget` must be a PrivacyBudget.", found=repr(budget))


def split_noise(noise_multiplier: float, clients: float, count_deviation: float | None) -> tuple[float, float]:
    """The multiplier of the noise on the values, and the deviation of that on the number of clients below a norm.

    Raises:
      KoinonValueError: where the number alone gives more away than the noise multiplier allows.
    """
    if noise_multiplier == 0.0:
        return 0.0, 0.0 if count_deviation is None else count_deviation
    deviation = 0.05 * clients if count_deviation is None else count_deviation
    if noise_multiplier >= 2 * deviation:
        raise KoinonValueError(
            "The noise on the number of clipped clients is too small for this noise multiplier.",
            expected=f"`clipped_count_stddev` above {noise_multiplier / 2:g}",
            found=f"{deviation:g}" + (", a twentieth of `clients_per_round`" if count_deviation is None else ""),
            hint="raise `clipped_count_stddev`, or lower `noise_multiplier`",
        )
    value_multiplier = (noise_multiplier**-2 - (2 * deviation) ** -2) ** -0.5
    if value_multiplier >= 2 * noise_multiplier:
        warnings.warn(
            f"The noise on the values is {value_multiplier / noise_multiplier:.2f} times what it would be with a fixed"
            f" clip: most of the budget goes to the number of clipped clients. A larger `clipped_count_stddev` than"
            f" {deviation:g}, or more clients per round, would leave more of it.",
            stacklevel=4,
        )
    return value_multiplier, deviation


def _check_common(noise_multiplier: float, clients_per_round: float) -> float:
    """The expected number of clients as a float, after the checks that all class methods share."""
    check_float(noise_multiplier, "noise_multiplier")
    clients = clients_per_round
    if isinstance(clients, int) and not isinstance(clients, bool):
        clients = float(clients)
    check_float(clients, "clients_per_round", positive=True, most=2.0**20 - 1)
    return clients


def _check_adaptive(clip: float, quantile: float, learning_rate: float, count_deviation: float | None) -> None:
    check_float(clip, "initial_l2_norm_clip", positive=True)
    check_float(quantile, "target_unclipped_quantile", most=1.0)
    check_float(learning_rate, "learning_rate")
    if count_deviation is not None:
        check_float(count_deviation, "clipped_count_stddev")


def _check_count(value: int, label: str, largest: int = 2**20) -> None:
    check_int(value, label)
    if not 1 <= value <= largest:
        raise KoinonValueError(f"`{label}` must be from 1 to {largest}.", found=value)


def _check_seed(seed: object) -> int:
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise KoinonTypeError("Noise of a simulation needs a seed.", expected="an int", found=repr(seed))
    return seed


def _label(budget: PrivacyBudget | None) -> str | None:
    if budget is None:
        return None
    check_budget(budget)
    return budget.sampling.label
