"""The protocol among clients of one process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np

from koinon._errors import KoinonTypeError, KoinonValueError
from koinon.secure._client import Client
from koinon.secure._crypto import SigningKey
from koinon.secure._messages import Message, read_message
from koinon.secure._server import SecureSum, Server
from koinon.secure._setup import Setup

Stage: TypeAlias = Literal["advertise", "share", "mask", "confirm", "unmask"]


def simulate(
    values: Sequence[Any],
    threshold: int | None = None,
    dropouts: Mapping[int, Stage] | None = None,
    *,
    modulus: int | None = None,
    max_input: int | None = None,
    active_server: bool = False,
    observe: Callable[[Message], None] | None = None,
) -> SecureSum:
    """Runs the protocol among so many clients in this process; every message goes through its bytes.

    Args:
      values: for each client a vector of non-negative integers, all of one length; the clients' ids are 0, 1, ...
      threshold: how many clients must be left at the end; None for the least number above two thirds.
      dropouts: by client, the stage before whose message it goes away: `advertise`, `share`, `mask` or `unmask`, or
        with an active server `confirm`. Numbers of a client that goes away later than before `mask` have arrived, and
        are in the sum.
      modulus: the sum is computed modulo this; None for one that holds the sum.
      max_input: the greatest number of a client; None for the greatest that there is.
      active_server: whether the server is not trusted to keep to the protocol; then keys are signed, and clients
        compare what they are told of who is left.
      observe: called with each message that the server receives.

    Returns:
      The sum, and the clients that are in it.

    Raises:
      SecureSumAbortedError: too few clients are left after a stage.
      KoinonTypeError, KoinonValueError: the values, the threshold or the dropouts are of no such form.
      SecureSumFieldError: the sum may have more than 63 bits.
      MissingDependencyError: the package `cryptography` is not installed.

    >>> import koinon as ko
    >>> result = ko.secure.simulate([[1, 10], [2, 20], [3, 30], [4, 40]], threshold=3, dropouts={3: "mask"})
    >>> result.total.tolist(), result.clients
    ([6, 60], (0, 1, 2))
    """
    vectors = [np.asarray(value) for value in values]
    if not vectors or any(vector.ndim != 1 or vector.shape != vectors[0].shape for vector in vectors):
        raise KoinonTypeError("Each client has a vector, and all have one length.", found=[v.shape for v in vectors])
    signing_keys = {client: SigningKey() for client in range(len(vectors))} if active_server else {}
    identities = {client: key.public for client, key in signing_keys.items()} if active_server else None
    largest = max((int(vector.max()) for vector in vectors if vector.size), default=0)
    common: dict[str, Any] = {
        "length": len(vectors[0]),
        "threshold": threshold,
        "active_server": active_server,
        "identities": identities,
    }
    ids = range(len(vectors))
    if modulus is None:
        setup = Setup.for_sums_of(ids, max_input=max(largest, 1) if max_input is None else max_input, **common)
    else:
        setup = Setup(ids, modulus=modulus, max_input=max_input, **common)
    stages, leaving = setup.stages, dict(dropouts or {})
    if not leaving.keys() <= {*ids} or not {*leaving.values()} <= {*stages}:
        raise KoinonValueError(
            "Nobody can drop out like this.", expected=f"a client, at one of {stages}", found=leaving
        )
    clients = {client: Client(setup, client, signing_keys.get(client)) for client in ids}
    server = Server(setup)

    def send(stage: str, answers: Mapping[int, Callable[[], Message]]) -> None:
        for client, answer in answers.items():
            if client in leaving and stages.index(leaving[client]) <= stages.index(stage):
                continue
            message = read_message(answer().to_bytes())
            if observe is not None:
                observe(message)
            server.receive(message)

    send("advertise", {client: clients[client].advertise for client in ids})
    steps: dict[str, Callable[[int, Any], Message]] = {
        "share": lambda client, roster: clients[client].share_keys(roster),
        "mask": lambda client, shares: clients[client].mask(shares, vectors[client]),
        "confirm": lambda client, request: clients[client].confirm(request),
        "unmask": lambda client, request: clients[client].unmask(request),
    }
    for stage in stages[1:]:
        step = steps[stage]
        requests = {client: read_message(request.to_bytes()) for client, request in server.close_stage().items()}
        send(stage, {client: _answering(step, client, request) for client, request in requests.items()})
    return server.finish()


def _answering(step: Callable[[int, Any], Message], client: int, request: Message) -> Callable[[], Message]:
    return lambda: step(client, request)
