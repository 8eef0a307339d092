"""Optimizers for servers and clients: the classic ones, schedules, and every optax transformation."""

from koinon.learning._adafactor import build_adafactor
from koinon.learning._optimizer import LEARNING_RATE_KEY, Optimizer, from_optax
from koinon.learning._optimizer_rules import (
    build_adagrad,
    build_adam,
    build_adamw,
    build_rmsprop,
    build_sgdm,
    build_yogi,
)
from koinon.learning._schedule import schedule_learning_rate

__all__ = [
    "LEARNING_RATE_KEY",
    "Optimizer",
    "build_adafactor",
    "build_adagrad",
    "build_adam",
    "build_adamw",
    "build_rmsprop",
    "build_sgdm",
    "build_yogi",
    "from_optax",
    "schedule_learning_rate",
]
