"""The devices behind the clients: how long they take, whether they come back, and when the server stops waiting."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import statistics
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple, final

import numpy as np

from koinon._errors import KoinonValueError

_NORMAL = statistics.NormalDist()


class Device(NamedTuple):
    """How fast a client is.

    Attributes:
      seconds_per_example: what one example takes it.
      download_rate: in bytes per second.
      upload_rate: in bytes per second.
    """

    seconds_per_example: float
    download_rate: float
    upload_rate: float


class Participation(NamedTuple):
    """What becomes of some clients that the server has asked to work.

    Attributes:
      seconds: float `[clients]`, from the request to the report, or to the moment at which the client vanishes.
      reports: bool `[clients]`, whether the client reports rather than vanishes.
    """

    seconds: np.ndarray
    reports: np.ndarray


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class SystemModel:
    """The speed and the reliability of a population's devices and networks.

    A participation of a client takes

        download_bytes / download_rate + num_examples * seconds_per_example * jitter + upload_bytes / upload_rate

    seconds. Speeds and rates belong to a client and are log-normal over the population, the jitter is log-normal over
    participations, and a client vanishes with `dropout_probability`, at a moment uniform in the time that it would
    have taken. All of it is a function of the seed, the client's id and the number of the participation.

    Attributes:
      seconds_per_example: the median over clients.
      compute_sigma: the standard deviation of the logarithm of `seconds_per_example` over clients.
      download_bytes: what a client downloads in a round.
      upload_bytes: what it uploads.
      download_rate: the median over clients, in bytes per second.
      upload_rate: likewise.
      network_sigma: the standard deviation of the logarithms of both rates over clients.
      jitter_sigma: the standard deviation of the logarithm of the jitter, whose median is 1.
      dropout_probability: how likely a participation ends without a report; less than 1.
      seed: where the randomness begins.

    Example:
      >>> system = SystemModel(seconds_per_example=0.5, upload_bytes=1e6, upload_rate=2.5e5)
      >>> system.participate(["ann", "bob"], [10, 20], participation=0).seconds.tolist()  # 0.5 n + 1e6 / 2.5e5
      [9.0, 14.0]
    """

    seconds_per_example: float = 1.0
    compute_sigma: float = 0.0
    download_bytes: float = 0.0
    upload_bytes: float = 0.0
    download_rate: float = math.inf
    upload_rate: float = math.inf
    network_sigma: float = 0.0
    jitter_sigma: float = 0.0
    dropout_probability: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("seconds_per_example", "download_bytes", "upload_bytes"):
            _check(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        for name in ("compute_sigma", "network_sigma", "jitter_sigma"):
            _check(0 <= getattr(self, name) < math.inf, name, getattr(self, name), "0 or more")
        for name in ("download_rate", "upload_rate"):
            _check(getattr(self, name) > 0, name, getattr(self, name), "more than 0")
        _check(
            0 <= self.dropout_probability < 1,
            "dropout_probability",
            self.dropout_probability,
            "at least 0, and below 1",
        )

    def device(self, client_id: Hashable) -> Device:
        """How fast a client is; always the same for the same client."""
        compute, download, upload, *_ = map(_NORMAL.inv_cdf, _uniforms(self.seed, "device", client_id))
        return Device(
            self.seconds_per_example * math.exp(self.compute_sigma * compute),
            self.download_rate * math.exp(self.network_sigma * download),
            self.upload_rate * math.exp(self.network_sigma * upload),
        )

    def participate(
        self, client_ids: Sequence[Hashable], num_examples: Sequence[float], participation: int
    ) -> Participation:
        """How long clients take to work through their examples, and which of them report.

        Args:
          client_ids: the clients.
          num_examples: for each of them the number of examples, counted as often as the client goes through them.
          participation: a number of the occasion, most often of the round; another occasion, another outcome.
        """
        seconds, reports = np.zeros(len(client_ids)), np.zeros(len(client_ids), bool)
        for i, (client_id, count) in enumerate(zip(client_ids, num_examples, strict=True)):
            device = self.device(client_id)
            jitter, dropout, moment, *_ = _uniforms(self.seed, "participation", client_id, participation)
            total = (
                self.download_bytes / device.download_rate
                + count * device.seconds_per_example * math.exp(self.jitter_sigma * _NORMAL.inv_cdf(jitter))
                + self.upload_bytes / device.upload_rate
            )
            reports[i] = dropout >= self.dropout_probability
            seconds[i] = total if reports[i] else total * moment
        return Participation(seconds, reports)


class RoundOutcome(NamedTuple):
    """How a round of a server that selects clients and waits for them ends.

    Attributes:
      selected: the clients that were asked.
      reported: those whose reports count, in the order of `selected`; none if the round was abandoned.
      dropped: those that vanished before the round ended.
      late: those that were still at work when it ended, or whose reports came when it had enough.
      seconds: how long the round took.
    """

    selected: list[Any]
    reported: list[Any]
    dropped: list[Any]
    late: list[Any]
    seconds: float


@final
class SystemSimulation:
    """Rounds as a server plays them with real devices: it asks more clients than it needs, and waits only so long.

    A round ends with the `size`-th report, at the deadline, or when nobody is left to wait for, whichever is first.
    Note what follows for learning: slow clients, and those with many examples, take part less often.

    An object is a sampling function, `(round_num, size)` to the clients whose reports count, and can be given to
    whatever takes one. Rounds are functions of their numbers alone.

    Example:
      >>> system = SystemModel(seconds_per_example=1.0)
      >>> sizes = {"ann": 3, "bob": 5, "cleo": 50}
      >>> rounds = SystemSimulation(lambda round_num, size: list(sizes), system, sizes.get, over_selection=1.5)
      >>> rounds(0, 2)
      ['ann', 'bob']
      >>> rounds.elapsed(range(3), 2).tolist()
      [5.0, 10.0, 15.0]

    References:
      Bonawitz et al., "Towards Federated Learning at Scale: System Design", 2019, sections 2.2 and 9.
    """

    def __init__(
        self,
        sample: Callable[[int, int], Sequence[Any]],
        system: SystemModel,
        num_examples: Callable[[Any], float | None],
        *,
        over_selection: float = 1.0,
        deadline: float | None = None,
        min_reports: int = 0,
        epochs: int = 1,
    ) -> None:
        """Takes the parts.

        Args:
          sample: `(round_num, size)` to the clients that the server asks, for example of `build_uniform_sampling_fn`.
          system: the devices.
          num_examples: `(client_id)` to the number of examples, for example `data.num_examples`.
          over_selection: how many clients are asked for each report that is needed; 1.3 at Bonawitz et al.
          deadline: how many seconds the server waits at most; None for any time.
          min_reports: a round with fewer reports than that is abandoned, and counts none of them.
          epochs: how often a client goes through its examples.

        Raises:
          KoinonValueError: if `over_selection` is less than 1, `deadline` not positive, or `min_reports` negative.
        """
        _check(over_selection >= 1, "over_selection", over_selection, "1 or more")
        _check(deadline is None or deadline > 0, "deadline", deadline, "more than 0 seconds")
        _check(min_reports >= 0, "min_reports", min_reports, "0 or more")
        self._sample = sample
        self._system = system
        self._num_examples = num_examples
        self._over_selection = over_selection
        self._deadline = math.inf if deadline is None else deadline
        self._min_reports = min_reports
        self._epochs = epochs

    def __call__(self, round_num: int, size: int) -> list[Any]:
        """The clients whose reports count in a round that aims at `size` of them."""
        return self.outcome(round_num, size).reported

    def outcome(self, round_num: int, size: int) -> RoundOutcome:
        """How a round that aims at `size` reports ends."""
        # Rounded first: 1.1 * 10 is more than 11 in floating point.
        selected = list(self._sample(round_num, math.ceil(round(size * self._over_selection, 9))))
        work = [self._epochs * (self._num_examples(client_id) or 0) for client_id in selected]
        seconds, reports = self._system.participate(selected, work, round_num)
        end = self._end(seconds, reports, size)
        order = np.argsort(np.where(reports, seconds, np.inf), kind="stable")
        counted = np.zeros(len(selected), bool)
        counted[order[:size]] = True
        counted &= reports & (seconds <= end)
        dropped = ~reports & (seconds <= end)
        late = ~counted & ~dropped
        if counted.sum() < self._min_reports:
            counted[:] = False
        reported, vanished, too_late = (_chosen(selected, mask) for mask in (counted, dropped, late))
        return RoundOutcome(selected, reported, vanished, too_late, end)

    def elapsed(self, rounds: Iterable[int], size: int) -> np.ndarray:
        """The simulated time at the end of each of some rounds, played one after the other; float `[rounds]`."""
        return np.cumsum([self.outcome(round_num, size).seconds for round_num in rounds])

    def _end(self, seconds: np.ndarray, reports: np.ndarray, size: int) -> float:
        if size == 0 or not len(seconds):
            return 0.0
        arrivals = np.sort(seconds[reports])
        enough = float(arrivals[size - 1]) if len(arrivals) >= size else math.inf
        return min(enough, self._deadline, float(seconds.max()))


def _chosen(client_ids: list[Any], mask: np.ndarray) -> list[Any]:
    return [client_ids[i] for i in np.flatnonzero(mask).tolist()]


def _uniforms(seed: int, purpose: str, client_id: Hashable, occasion: int = 0) -> list[float]:
    """Eight numbers strictly between 0 and 1 that depend on the arguments only; independent for different ones."""
    if isinstance(client_id, np.generic):
        client_id = client_id.item()
    # Not Python's `hash`, which is another one in each process.
    digest = hashlib.blake2b(repr((seed, purpose, client_id, occasion)).encode()).digest()
    bits = np.frombuffer(digest, "<u8") >> np.uint64(12)
    return ((bits + 0.5) * 2.0**-52).tolist()


def _check(is_fine: bool, name: str, found: Any, expected: str) -> None:
    if not is_fine:
        raise KoinonValueError(f"`{name}` has an impossible value.", expected=expected, found=str(found))
