"""Corrupted clients, to try robust aggregations with: what they send, and what they train on."""

from koinon.simulation._attacks import (
    Attack,
    HonestClients,
    a_little_is_enough,
    byzantine_factory,
    constant,
    flip_labels,
    gaussian,
    random_sign,
    sign_flip,
)

__all__ = [
    "Attack",
    "HonestClients",
    "a_little_is_enough",
    "byzantine_factory",
    "constant",
    "flip_labels",
    "gaussian",
    "random_sign",
    "sign_flip",
]
