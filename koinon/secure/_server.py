"""The server of the protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, final

import numpy as np

from koinon._errors import KoinonTypeError, SecureMessageError, SecureSumAbortedError
from koinon.secure import _shamir
from koinon.secure._crypto import KeyPair, is_signed, require_cryptography
from koinon.secure._keys import commitment_to, list_to_sign, pairwise_mask, self_mask, session_of
from koinon.secure._messages import (
    AdvertiseKeys,
    Confirmation,
    ConfirmRequest,
    EncryptedShares,
    MaskedInput,
    Message,
    Roster,
    ShareDelivery,
    UnmaskRequest,
    UnmaskShares,
)
from koinon.secure._received import check_round, check_signed
from koinon.secure._residues import add, from_wire, subtract
from koinon.secure._setup import Setup

_OF_CLIENTS = (AdvertiseKeys, EncryptedShares, MaskedInput, Confirmation, UnmaskShares)
_EXPECTED: dict[str, type[Message]] = dict(
    zip(("advertise", "share", "mask", "confirm", "unmask"), _OF_CLIENTS, strict=True)
)


class SecureSum(NamedTuple):
    """The result of a secure sum.

    Attributes:
      total: the sum of the clients' vectors modulo the modulus, uint64.
      clients: the ids of the clients whose vectors are in it, sorted.
    """

    total: np.ndarray
    clients: tuple[int, ...]


@final
class Server:
    """The server of a secure sum: in each stage it receives messages of the clients, and closes the stage.

    Whoever did not send its message when a stage is closed is out. Where fewer than the threshold are left, the sum is
    aborted. A message that is refused changes nothing; the client can send a good one, until the stage is closed.

    Args:
      setup: what all parties agreed on.

    Raises:
      MissingDependencyError: the package `cryptography` is not installed.

    References:
      Keith Bonawitz et al.: Practical Secure Aggregation for Privacy-Preserving Machine Learning, CCS 2017, figure 4.
      https://doi.org/10.1145/3133956.3133982

    Example:
      >>> import koinon as ko
      >>> setup = ko.secure.Setup([1, 2, 3], modulus=1000, length=2)
      >>> server, clients = ko.secure.Server(setup), {id: ko.secure.Client(setup, id) for id in setup.clients}
      >>> for client in clients.values():
      ...     server.receive(client.advertise())
      >>> for id, roster in server.close_stage().items():
      ...     server.receive(clients[id].share_keys(roster))
      >>> for id, shares in server.close_stage().items():
      ...     server.receive(clients[id].mask(shares, [id, 300 * id]))
      >>> for id, request in server.close_stage().items():
      ...     server.receive(clients[id].unmask(request))
      >>> result = server.finish()
      >>> result.total.tolist(), result.clients  # 300 * (1 + 2 + 3) modulo 1000
      ([6, 800], (1, 2, 3))
    """

    def __init__(self, setup: Setup) -> None:
        require_cryptography()
        self._setup = setup
        self._stage = setup.stages[0]
        self._inbox: dict[int, Message] = {}
        self._roster: Mapping[int, AdvertiseKeys] = {}
        self._session = b""
        self._shared: dict[int, EncryptedShares] = {}
        self._masked: dict[int, np.ndarray] = {}
        self._confirmed: dict[int, bytes] = {}
        self._answers: dict[int, UnmaskShares] = {}

    def __repr__(self) -> str:
        # Of what arrived only how much: messages have masked numbers and shares of secrets.
        return f"<Server of {len(self._setup.clients)} clients at stage {self._stage!r}, {len(self._inbox)} messages>"

    @property
    def stage(self) -> str:
        """The stage, one of those of the setup, or `done` or `aborted`."""
        return self._stage

    def receive(self, message: Message) -> None:
        """Takes a client's message of this stage.

        Raises:
          KoinonTypeError: this is no message of a client.
          SecureMessageError: it is of another sum, of another stage, of a client that is out, or it was sent before;
            or what is in it is wrong.
          SecureSumAbortedError: the sum was aborted.
        """
        self._require_running()
        if not isinstance(message, _OF_CLIENTS):
            names = ", ".join(_EXPECTED[stage].__name__ for stage in self._setup.stages)
            raise KoinonTypeError("This is no message of a client.", expected=names, found=type(message).__name__)
        check_round(message, self._setup)
        if self.stage not in _EXPECTED or not isinstance(message, _EXPECTED[self.stage]):
            raise SecureMessageError(
                "A message is of another stage.", expected=f"`{self.stage}`", found=type(message).__name__
            )
        if message.sender not in self._expected_senders():
            raise SecureMessageError(
                "A message is of a client that does not take part, or was too late before.", found=message.sender
            )
        if message.sender in self._inbox:
            raise SecureMessageError("A client sends a message twice.", found=message.sender)
        self._check_content(message)
        self._inbox[message.sender] = message

    def close_stage(
        self,
    ) -> dict[int, Roster] | dict[int, ShareDelivery] | dict[int, ConfirmRequest] | dict[int, UnmaskRequest]:
        """Ends the stage, and returns what each client that is left is to be sent.

        Raises:
          SecureSumAbortedError: too few are left.
          SecureMessageError: the last stage is ended by `finish`.
        """
        self._require_running()
        if self.stage not in self._setup.stages[:-1]:
            raise SecureMessageError("There is no message after the last stage.", found=self.stage, hint="`finish()`")
        self._require_enough()
        inbox, self._inbox = self._inbox, {}
        self._stage = self._setup.stages[self._setup.stages.index(self.stage) + 1]
        left = tuple(sorted(inbox))
        round_id = self._setup.round_id
        if self.stage == "share":
            self._roster = {client: inbox[client] for client in left}  # pyright: ignore[reportAttributeAccessIssue]
            roster = Roster(round_id, self._roster)
            self._session = session_of(self._setup, roster)
            return dict.fromkeys(left, roster)
        if self.stage == "mask":
            self._shared = {client: inbox[client] for client in left}  # pyright: ignore[reportAttributeAccessIssue]
            return {
                client: ShareDelivery(
                    round_id,
                    client,
                    {other: sent.boxes[client] for other, sent in self._shared.items() if other != client},
                )
                for client in left
            }
        survivors = tuple(sorted(self._masked))
        if self.stage == "confirm":
            return dict.fromkeys(left, ConfirmRequest(round_id, survivors))
        return dict.fromkeys(left, UnmaskRequest(round_id, survivors, dict(self._confirmed)))

    def finish(self) -> SecureSum:
        """Takes the masks off, and returns the sum over the clients whose numbers arrived.

        Raises:
          SecureSumAbortedError: too few clients answered, or shares are wrong.
          SecureMessageError: this is not the last stage.
        """
        self._require_running()
        if self.stage != "unmask":
            raise SecureMessageError("The sum is not at its last stage.", expected="`unmask`", found=self.stage)
        self._require_enough()
        setup = self._setup
        total = np.zeros(setup.length, np.uint64)
        # All secrets before any sum: an abort must not leave a sum with some masks taken off.
        seeds = {client: self._seed_of(client) for client in self._masked}
        gone = {client: self._key_of(client) for client in self._shared.keys() - self._masked.keys()}
        for client, masked in self._masked.items():
            total = add(total, masked, setup.modulus)
            total = subtract(total, self_mask(seeds[client], self._session, client, setup), setup.modulus)
            for other, key in gone.items():
                mask = pairwise_mask(key, self._roster[client].mask_key, self._session, (client, other), setup)
                total = (subtract if client < other else add)(total, mask, setup.modulus)
        clients = tuple(sorted(self._masked))
        self._forget("done")
        return SecureSum(total, clients)

    def _expected_senders(self) -> tuple[int, ...] | Mapping[int, object]:
        before = {"share": self._roster, "mask": self._shared, "confirm": self._masked}
        if self.stage == "unmask":
            return self._confirmed if self._setup.active_server else self._masked
        return before.get(self.stage, self._setup.clients)

    def _check_content(self, message: Message) -> None:
        match message:
            case AdvertiseKeys():
                check_signed(message, message.sender, self._setup)
            case EncryptedShares():
                _check_clients(message.sender, message.boxes, self._roster.keys() - {message.sender})
            case MaskedInput():
                self._masked[message.sender] = from_wire(message.masked, self._setup.modulus, self._setup.length)
            case Confirmation():
                identities, signed = self._setup.identities or {}, list_to_sign(self._session, self._masked)
                if not is_signed(identities[message.sender], message.signature, signed):
                    raise SecureMessageError(
                        "A client did not sign the list of those that are left.", found=message.sender
                    )
                self._confirmed[message.sender] = message.signature
            case UnmaskShares():
                _check_clients(message.sender, message.self_shares, self._masked.keys())
                _check_clients(message.sender, message.key_shares, self._shared.keys() - self._masked.keys())
                self._answers[message.sender] = message

    def _seed_of(self, client: int) -> bytes:
        """What the own mask of a client that is left was made of."""
        points = {self._setup.point(sender): answer.self_shares[client] for sender, answer in self._answers.items()}
        seed = _shamir.combine(self._some(points))
        if seed is None or commitment_to(seed, self._session, client) != self._shared[client].commitment:
            raise self._wrong_shares(client)
        return seed

    def _key_of(self, client: int) -> KeyPair:
        """The key that a client which went away agreed on masks with."""
        points = {self._setup.point(sender): answer.key_shares[client] for sender, answer in self._answers.items()}
        secret = _shamir.combine(self._some(points))
        if secret is None or KeyPair(secret).public != self._roster[client].mask_key:
            raise self._wrong_shares(client)
        return KeyPair(secret)

    def _some(self, shares: Mapping[int, int]) -> dict[int, int]:
        return dict(sorted(shares.items())[: self._setup.threshold])

    def _wrong_shares(self, client: int) -> SecureSumAbortedError:
        self._forget("aborted")
        return SecureSumAbortedError(
            "The shares of a client's secret do not fit together, so the sum is aborted.",
            found=f"shares of the client {client}",
            hint="a client sent a wrong share; start another sum",
        )

    def _require_running(self) -> None:
        if self.stage == "aborted":
            raise SecureSumAbortedError("The sum was aborted before.", hint="start another sum")

    def _require_enough(self) -> None:
        if len(self._inbox) < self._setup.threshold:
            stage, count = self.stage, len(self._inbox)
            self._forget("aborted")
            raise SecureSumAbortedError(
                f"Too few clients are left after the stage `{stage}`, so the sum is aborted.",
                expected=f"at least {self._setup.threshold}",
                found=count,
                hint="start another sum, with more clients or more time",
            )

    def _forget(self, stage: str) -> None:
        self._stage = stage
        for kept in (self._inbox, self._shared, self._masked, self._confirmed, self._answers):
            kept.clear()


def _check_clients(sender: int, named: Mapping[int, object], expected: object) -> None:
    if named.keys() != expected:
        raise SecureMessageError(
            "A client sends shares for others than it was asked for.",
            expected=f"for {sorted(expected)}",  # pyright: ignore[reportArgumentType]
            found=f"for {sorted(named)}, from {sender}",
        )
