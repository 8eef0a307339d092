"""How the clients of a round are drawn: what an accountant has to know, and must not be told wrong."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, TypeAlias

import numpy as np

from koinon._errors import KoinonTypeError, KoinonValueError


@dataclasses.dataclass(frozen=True)
class PoissonSampling:
    """Every client takes part in a round with one probability, independently of the others and of other rounds.

    The size of a cohort is random then. Neighbouring data sets differ by one client that is there or not.

    Attributes:
      probability: in (0, 1].

    Raises:
      KoinonTypeError: where the probability is no number.
      KoinonValueError: where it is out of its range.
    """

    probability: float
    label: ClassVar[str] = "poisson"

    def __post_init__(self) -> None:
        check_real(self.probability, "A sampling probability")
        if not 0.0 < self.probability <= 1.0:
            raise KoinonValueError("A sampling probability must be in (0, 1].", found=self.probability)


@dataclasses.dataclass(frozen=True)
class FixedSizeSampling:
    """Every round has the same number of clients, drawn uniformly without replacement.

    Neighbouring data sets differ by one client that is replaced by another. The sum changes by up to twice the clip
    then, so that a noise multiplier counts half.

    Attributes:
      cohort: the number of clients in a round.
      population: the number of clients altogether.

    Raises:
      KoinonTypeError: where one is no int.
      KoinonValueError: where the cohort is empty or larger than the population.
    """

    cohort: int
    population: int
    label: ClassVar[str] = "fixed size"

    def __post_init__(self) -> None:
        for number in (self.cohort, self.population):
            if not isinstance(number, int | np.integer) or isinstance(number, bool):
                raise KoinonTypeError("Numbers of clients must be ints.", expected="two ints", found=repr(number))
        if not 0 < self.cohort <= self.population:
            raise KoinonValueError(
                "A cohort must have at least one client, and no more than there are.",
                expected=f"1 to {self.population}",
                found=self.cohort,
            )


@dataclasses.dataclass(frozen=True)
class NoSampling:
    """Nothing is assumed: a client may take part in every round, and whoever sees the rounds may know when it did."""

    label: ClassVar[str] = "no"


CohortSampling: TypeAlias = PoissonSampling | FixedSizeSampling | NoSampling


def check_real(number: object, what: str) -> None:
    """Raises a KoinonTypeError unless an argument is a real number, which a bool is not."""
    if not isinstance(number, int | float | np.integer | np.floating) or isinstance(number, bool):
        raise KoinonTypeError(f"{what} must be a number.", expected="an int or a float", found=repr(number))


def check_cohort_sampling(sampling: object) -> None:
    """Raises a KoinonTypeError unless an argument says how cohorts are drawn."""
    if not isinstance(sampling, PoissonSampling | FixedSizeSampling | NoSampling):
        raise KoinonTypeError(
            "An accountant has to be told how the cohorts are drawn.",
            expected="PoissonSampling, FixedSizeSampling or NoSampling",
            found=repr(sampling),
            hint="`NoSampling()` assumes nothing, and is right for any cohorts",
        )
