"""What the parties of a secure sum agree on before it starts."""

from __future__ import annotations

import dataclasses
import json
import secrets
from collections.abc import Iterable, Mapping
from typing import Any, final

from koinon._errors import KoinonError, KoinonTypeError, KoinonValueError, SecureMessageError, SecureSumFieldError
from koinon.secure._crypto import KEY_BYTES
from koinon.secure._residues import LARGEST_MODULUS

ROUND_BYTES = 16
_MOST_CLIENTS = 2**16


@final
@dataclasses.dataclass(frozen=True)
class Setup:
    """What the server and the clients of one secure sum agree on before it starts.

    More than half of the clients are needed to end a sum, so that a server cannot play two halves of them against each
    other. Against a server that does not keep to the protocol, and with up to a third of the clients at its side, it
    takes more than two thirds of them, signed keys, and a stage more, in which clients compare what they are told of
    who is left: `active_server`.

    Attributes:
      clients: the ids of the clients, from 0 to 2**32 - 1, at least two.
      threshold: so many of them must be left at the end; fewer learn nothing together. None for the least number that
        is more than two thirds.
      modulus: the sum is computed modulo this number, from 2 to 2**63.
      length: how many numbers each client has.
      max_input: the greatest number of a client; None for `modulus - 1`.
      round_id: 16 bytes that no other sum has; None to draw them.
      active_server: whether the server is not trusted to keep to the protocol.
      identities: for each client the public key with which it signs, 32 bytes; None where keys are not signed.

    Raises:
      KoinonTypeError, KoinonValueError: an attribute has another type, or is out of its range.

    References:
      Keith Bonawitz et al.: Practical Secure Aggregation for Privacy-Preserving Machine Learning, CCS 2017, section 4;
      thresholds: section 6.2. https://doi.org/10.1145/3133956.3133982

    >>> import koinon as ko
    >>> setup = ko.secure.Setup.for_sums_of(range(5), max_input=255, length=10)
    >>> setup.threshold, setup.modulus
    (4, 2048)
    """

    clients: tuple[int, ...]
    threshold: int
    modulus: int
    length: int
    max_input: int
    round_id: bytes
    active_server: bool = False
    identities: Mapping[int, bytes] | None = None

    def __init__(
        self,
        clients: Iterable[int],
        *,
        modulus: int,
        length: int,
        threshold: int | None = None,
        max_input: int | None = None,
        round_id: bytes | None = None,
        active_server: bool = False,
        identities: Mapping[int, bytes] | None = None,
    ) -> None:
        ids = tuple(sorted(clients))
        values = {
            "clients": ids,
            "threshold": 2 * len(ids) // 3 + 1 if threshold is None else threshold,
            "modulus": modulus,
            "length": length,
            "max_input": modulus - 1 if max_input is None else max_input,
            "round_id": secrets.token_bytes(ROUND_BYTES) if round_id is None else round_id,
            "active_server": active_server,
            "identities": None if identities is None else dict(identities),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        self._check()

    @classmethod
    def for_sums_of(
        cls,
        clients: Iterable[int],
        *,
        max_input: int,
        length: int,
        threshold: int | None = None,
        round_id: bytes | None = None,
        active_server: bool = False,
        identities: Mapping[int, bytes] | None = None,
    ) -> Setup:
        """The setup for the exact sum of integers from 0 to `max_input`: the modulus is sized for these clients.

        Args:
          clients: see `Setup`, as are the other arguments.
          max_input: the greatest number of a client.
          length: how many numbers each client has.
          threshold: how many clients must be left.
          round_id: what tells this sum from all others.
          active_server: whether the server is not trusted to keep to the protocol.
          identities: the public keys with which the clients sign.

        Raises:
          SecureSumFieldError: the sum over so many clients may have more than 63 bits.
        """
        ids = tuple(clients)
        bits = max(1, (len(ids) * max_input).bit_length())
        available = (LARGEST_MODULUS - 1).bit_length()
        if bits > available:
            raise SecureSumFieldError(
                "The largest modulus is too small for the sum over so many clients.",
                expected=f"at most {available} bits",
                found=f"{bits} bits for {len(ids)} clients with integers of up to {max_input.bit_length()} bits;"
                f" {(LARGEST_MODULUS - 1) // max_input} clients are allowed",
                hint="quantize to fewer bits, or sum over fewer clients",
            )
        return cls(
            ids,
            modulus=1 << bits,
            length=length,
            threshold=threshold,
            max_input=max_input,
            round_id=round_id,
            active_server=active_server,
            identities=identities,
        )

    def to_bytes(self) -> bytes:
        """The setup in bytes, for whoever is to take part: JSON with sorted keys."""
        fields: dict[str, Any] = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields["round_id"] = self.round_id.hex()
        if self.identities is not None:
            fields["identities"] = [self.identities[client].hex() for client in self.clients]
        return json.dumps(fields, sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Setup:
        """The setup that `to_bytes` wrote.

        A client decides for itself whether it agrees: with the threshold, the range, and whose keys there are.

        Raises:
          SecureMessageError: the bytes are no setup, or one that protects nobody.
        """
        try:
            fields = json.loads(data)
            fields["round_id"] = bytes.fromhex(fields["round_id"])
            if fields["identities"] is not None:
                keys = [bytes.fromhex(key) for key in fields["identities"]]
                fields["identities"] = dict(zip(sorted(fields["clients"]), keys, strict=True))
            setup = cls(**fields)
        except (ValueError, TypeError, KeyError, RecursionError, KoinonError) as error:
            raise SecureMessageError("Some bytes are no setup of a secure sum.", found=str(error)) from None
        if setup.to_bytes() != data:
            raise SecureMessageError("Some bytes are no setup of a secure sum.", found="another form of one")
        return setup

    @property
    def stages(self) -> tuple[str, ...]:
        """The names of the stages in their order, in each of which every client sends one message."""
        confirm = ("confirm",) if self.active_server else ()
        return ("advertise", "share", "mask", *confirm, "unmask")

    def point(self, client: int) -> int:
        """Where the polynomial of a secret is evaluated for a client."""
        return self.clients.index(client) + 1

    def _check(self) -> None:
        numbers = (*self.clients, self.threshold, self.modulus, self.length, self.max_input)
        if not all(isinstance(number, int) and not isinstance(number, bool) for number in numbers):
            raise KoinonTypeError("The numbers of a secure sum are integers.", found=repr(numbers))
        count = len(self.clients)
        least = 2 * count // 3 + 1 if self.active_server else count // 2 + 1
        requirements = (
            (2 <= count <= _MOST_CLIENTS, f"2 to {_MOST_CLIENTS} clients", f"{count} clients"),
            (len({*self.clients}) == count, "distinct ids", "an id twice"),
            (all(0 <= client < 2**32 for client in self.clients), "ids from 0 to 2**32 - 1", str(self.clients)),
            (
                max(2, least) <= self.threshold <= count,
                f"a threshold from {max(2, least)} to {count}"
                + (", more than two thirds of the clients" if self.active_server else ", more than half of them"),
                f"{self.threshold}",
            ),
            (2 <= self.modulus <= LARGEST_MODULUS, "a modulus from 2 to 2**63", f"{self.modulus}"),
            (1 <= self.length < 2**32, "a length from 1 to 2**32 - 1", f"{self.length}"),
            (0 <= self.max_input < self.modulus, "a `max_input` from 0 to `modulus - 1`", f"{self.max_input}"),
            (
                isinstance(self.round_id, bytes) and len(self.round_id) == ROUND_BYTES,
                f"a round id of {ROUND_BYTES} bytes",
                repr(self.round_id),
            ),
            (
                self.identities is not None or not self.active_server,
                "the clients' public keys as `identities`, since an active server could advertise keys of its own",
                "none",
            ),
            (
                self.identities is None
                or all(len(self.identities.get(client, b"")) == KEY_BYTES for client in self.clients),
                f"a public key of {KEY_BYTES} bytes for each client",
                "one missing, or of another length",
            ),
        )
        for is_met, expected, found in requirements:
            if not is_met:
                raise KoinonValueError("A secure sum cannot be set up like this.", expected=expected, found=found)
