"""The keys that the protocol derives, each for one purpose in one sum."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from koinon.secure._crypto import KeyPair, derive, digest
from koinon.secure._messages import Roster
from koinon.secure._residues import expand
from koinon.secure._setup import Setup


def session_of(setup: Setup, roster: Roster) -> bytes:
    """What every key of a sum depends on: the setup, and who takes part with which keys.

    Clients that were told different things share no keys, so they cannot be made to believe each other.
    """
    numbers = (setup.threshold, setup.modulus, setup.length, setup.max_input, int(setup.active_server))
    agreed = b"".join(number.to_bytes(9, "big") for number in numbers)
    return digest(agreed + digest(roster.to_bytes()))


def box_key(own: KeyPair, other_public: bytes, session: bytes, sender: int, recipient: int) -> bytes:
    """The key by which a client seals its shares for another one."""
    return derive(own.agree(other_public), session, "shares", sender, recipient)


def box_context(session: bytes, sender: int, recipient: int) -> bytes:
    """What a sealed box is bound to."""
    return session + sender.to_bytes(4, "big") + recipient.to_bytes(4, "big")


def pairwise_mask(own: KeyPair, other_public: bytes, session: bytes, pair: tuple[int, int], setup: Setup) -> np.ndarray:
    """The mask that the client of the lower id adds, and that of the higher one subtracts."""
    key = derive(own.agree(other_public), session, "pairwise mask", *sorted(pair))
    return expand(key, setup.modulus, setup.length)


def self_mask(seed: bytes, session: bytes, client: int, setup: Setup) -> np.ndarray:
    """The mask that a client adds for itself, so that a late message of it tells nothing."""
    return expand(derive(seed, session, "own mask", client), setup.modulus, setup.length)


def list_to_sign(session: bytes, survivors: Iterable[int]) -> bytes:
    """What a client signs to confirm who is left; no other thing that it signs begins like this."""
    return b"survivors" + session + b"".join(client.to_bytes(4, "big") for client in sorted(survivors))


def commitment_to(seed: bytes, session: bytes, client: int) -> bytes:
    """What tells whether a seed is the one that the client made its own mask of, and nothing else."""
    return derive(seed, session, "commitment", client)
