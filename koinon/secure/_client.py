"""A client of the protocol."""

from __future__ import annotations

import secrets
from typing import Any, final

from koinon._errors import KoinonTypeError, KoinonValueError, SecureMessageError, SecureRequestRefusedError
from koinon.secure import _shamir
from koinon.secure._crypto import KEY_BYTES, KeyPair, SigningKey, is_signed, require_cryptography, seal, unseal
from koinon.secure._keys import (
    box_context,
    box_key,
    commitment_to,
    list_to_sign,
    pairwise_mask,
    self_mask,
    session_of,
)
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
    read_shares,
    write_shares,
)
from koinon.secure._received import check_round, check_signed
from koinon.secure._residues import add, subtract, to_residues, to_wire
from koinon.secure._setup import Setup


@final
class Client:
    """One client of a secure sum: it answers each of the server's messages once, in their order.

    What it sends last are shares of the other clients' secrets, of one secret of each: of the mask of those that are
    left, or of the key of those that went away. It answers that once, for more than half of the clients, itself among
    them; so no server gets both secrets of anybody. Where the server is not trusted, it answers only if as many clients
    as have to be left signed the same list of them. It refuses everything else, and says why.

    Args:
      setup: what all parties agreed on.
      client: the id of this client.
      signing_key: where `setup` has identities, the key behind its own.

    Raises:
      KoinonValueError: the client is none of this sum, or has no key to sign with.
      MissingDependencyError: the package `cryptography` is not installed.

    Example:
      >>> import koinon as ko
      >>> setup = ko.secure.Setup([1, 2, 3], modulus=1000, length=1)
      >>> message = ko.secure.Client(setup, 2).advertise()
      >>> message.sender, len(message.to_bytes())
      (2, 91)
    """

    def __init__(self, setup: Setup, client: int, signing_key: SigningKey | None = None) -> None:
        require_cryptography()
        if client not in setup.clients:
            raise KoinonValueError("This client does not take part.", expected=f"one of {setup.clients}", found=client)
        if (setup.identities is None) != (signing_key is None):
            raise KoinonValueError("Keys are signed where the setup has identities, and only there.", found=client)
        if setup.identities is not None and signing_key is not None:
            if setup.identities[client] != signing_key.public:
                raise KoinonValueError("The signing key is not that of this client.", found=client)
        self._setup = setup
        self._id = client
        self._signing_key = signing_key
        self._stage = 0
        self._encryption, self._mask_key, self._seed = KeyPair(), KeyPair(), secrets.token_bytes(KEY_BYTES)
        self._keys: dict[int, AdvertiseKeys] = {}
        self._session = b""
        self._shares: dict[int, tuple[int, int]] = {}
        self._confirmed: frozenset[int] | None = None

    def __repr__(self) -> str:
        return f"<Client {self._id} at stage {self._stage_name!r}>"

    def advertise(self) -> AdvertiseKeys:
        """Stage 1: the public keys.

        Raises:
          SecureRequestRefusedError: they were advertised before.
        """
        self._expect("advertise")
        message = AdvertiseKeys(self._setup.round_id, self._id, self._encryption.public, self._mask_key.public)
        if self._signing_key is not None:
            signature = self._signing_key.sign(message.signed_part())
            message = AdvertiseKeys(message.round_id, self._id, message.encryption_key, message.mask_key, signature)
        self._stage += 1
        return message

    def share_keys(self, roster: Roster) -> EncryptedShares:
        """Stage 2: shares of its two secrets for each of the other clients that take part.

        Args:
          roster: the keys of those clients, from the server.

        Raises:
          SecureMessageError: the message is of another sum, or names wrong keys.
          SecureRequestRefusedError: fewer take part than must be left at the end, or this was asked before.
        """
        self._expect("share")
        self._check_message(roster, Roster)
        self._check_roster(roster)
        session = session_of(self._setup, roster)
        points = {client: self._setup.point(client) for client in roster.keys}
        threshold = self._setup.threshold
        key_shares = _shamir.split(self._mask_key.secret, [*points.values()], threshold)
        self_shares = _shamir.split(self._seed, [*points.values()], threshold)
        boxes = {}
        for other, point in points.items():
            if other == self._id:
                self._shares[other] = key_shares[point], self_shares[point]
                continue
            key = box_key(self._encryption, roster.keys[other].encryption_key, session, self._id, other)
            plaintext = write_shares(key_shares[point], self_shares[point])
            boxes[other] = seal(key, plaintext, box_context(session, self._id, other))
        self._keys, self._session = dict(roster.keys), session
        self._stage += 1
        commitment = commitment_to(self._seed, session, self._id)
        return EncryptedShares(self._setup.round_id, self._id, commitment, boxes)

    def mask(self, delivery: ShareDelivery, values: Any) -> MaskedInput:
        """Stage 3: the numbers under the masks of all pairs, and under its own.

        Args:
          delivery: the shares of the other clients, from the server.
          values: `length` integers from 0 to `max_input`.

        Raises:
          SecureMessageError: the message is of another sum or for another client, or shares were tampered with.
          SecureRequestRefusedError: too few clients are left, or this was asked before.
          KoinonTypeError, SecureSumRangeError: the values are no such integers.
        """
        self._expect("mask")
        self._check_message(delivery, ShareDelivery)
        if delivery.recipient != self._id:
            raise SecureMessageError("Shares are for another client.", expected=self._id, found=delivery.recipient)
        unknown = delivery.boxes.keys() - (self._keys.keys() - {self._id})
        if unknown:
            raise SecureMessageError("Shares come from clients that do not take part.", found=sorted(unknown))
        self._require_enough(len(delivery.boxes) + 1)
        setup = self._setup
        total = to_residues(values, setup.max_input, setup.length)
        shares = {other: self._open(other, box) for other, box in delivery.boxes.items()}
        total = add(total, self_mask(self._seed, self._session, self._id, setup), setup.modulus)
        for other in shares:
            pair = (self._id, other)
            one = pairwise_mask(self._mask_key, self._keys[other].mask_key, self._session, pair, setup)
            total = (add if self._id < other else subtract)(total, one, setup.modulus)
        self._shares |= shares
        self._stage += 1
        return MaskedInput(setup.round_id, self._id, to_wire(total, setup.modulus))

    def confirm(self, request: ConfirmRequest) -> Confirmation:
        """Stage `confirm`, where the server is not trusted: a signature under the list of those that are left.

        Args:
          request: whose numbers arrived, from the server.

        Raises:
          SecureMessageError: the message is of another sum, or names clients that do not take part.
          SecureRequestRefusedError: too few are left, this client is not among them, this was asked before, or the
            setup has no such stage.
        """
        self._expect("confirm")
        self._check_message(request, ConfirmRequest)
        self._confirmed = frozenset(self._check_survivors(request.survivors))
        self._stage += 1
        assert self._signing_key is not None  # since the setup has identities where it has this stage
        signature = self._signing_key.sign(list_to_sign(self._session, self._confirmed))
        return Confirmation(self._setup.round_id, self._id, signature)

    def unmask(self, request: UnmaskRequest) -> UnmaskShares:
        """The last stage: a share of one secret of each client that took part in the stage `mask`.

        Args:
          request: whose numbers arrived, from the server, and who confirmed that.

        Raises:
          SecureMessageError: the message is of another sum, names clients that do not take part, or has signatures
            that are none.
          SecureRequestRefusedError: too few are left or confirm it, this client is not among them or confirmed another
            list, or this was asked before.
        """
        self._expect("unmask")
        self._check_message(request, UnmaskRequest)
        survivors = self._check_survivors(request.survivors)
        if self._confirmed is not None:
            self._check_confirmations(request, self._confirmed)
        key_shares = {other: key for other, (key, _) in self._shares.items() if other not in survivors}
        self_shares = {other: seed for other, (_, seed) in self._shares.items() if other in survivors}
        self._shares.clear()
        self._stage += 1
        return UnmaskShares(self._setup.round_id, self._id, self_shares, key_shares)

    @property
    def _stage_name(self) -> str:
        return (*self._setup.stages, "done")[self._stage]

    def _check_survivors(self, named: tuple[int, ...]) -> set[int]:
        survivors = {*named}
        if len(survivors) < len(named) or not survivors <= self._shares.keys():
            raise SecureMessageError(
                "The server names clients as left that did not share their secrets.",
                expected=f"some of {sorted(self._shares)}",
                found=named,
            )
        self._require_enough(len(survivors))
        if self._id not in survivors:
            raise SecureRequestRefusedError(
                "The server says that this client went away, and asks it for shares.",
                expected=f"{self._id} among those that are left",
                found=named,
                hint="the client's numbers did not arrive; start another sum",
            )
        return survivors

    def _check_confirmations(self, request: UnmaskRequest, confirmed: frozenset[int]) -> None:
        if {*request.survivors} != confirmed:
            raise SecureRequestRefusedError(
                "The server names others as left than those whom this client confirmed.",
                expected=sorted(confirmed),
                found=request.survivors,
            )
        identities, signed = self._setup.identities or {}, list_to_sign(self._session, confirmed)
        for client, signature in request.confirmations.items():
            if client not in confirmed or not is_signed(identities[client], signature, signed):
                raise SecureMessageError("A client did not sign the list of those that are left.", found=client)
        if len(request.confirmations) < self._setup.threshold:
            raise SecureRequestRefusedError(
                "Too few clients confirm who is left; others may have been told another list.",
                expected=f"at least {self._setup.threshold}",
                found=len(request.confirmations),
            )

    def _expect(self, stage: str) -> None:
        if self._stage_name != stage:
            raise SecureRequestRefusedError(
                f"The stage `{stage}` comes once, in its order.",
                expected=f"`{self._stage_name}`",
                found=f"`{stage}`",
                hint="a client answers each message of the server once; a new sum needs new clients",
            )

    def _check_message(self, message: Message, cls: type[Message]) -> None:
        if not isinstance(message, cls):
            raise KoinonTypeError("A message of another kind.", expected=cls.__name__, found=type(message).__name__)
        check_round(message, self._setup)

    def _check_roster(self, roster: Roster) -> None:
        unknown = roster.keys.keys() - {*self._setup.clients}
        if unknown:
            raise SecureMessageError("Clients take part that were not agreed on.", found=sorted(unknown))
        own = roster.keys.get(self._id)
        if own is None or (own.encryption_key, own.mask_key) != (self._encryption.public, self._mask_key.public):
            raise SecureMessageError("The server gives other keys for this client than it has.", found=self._id)
        keys = [key for entry in roster.keys.values() for key in (entry.encryption_key, entry.mask_key)]
        if len({*keys}) < len(keys):
            raise SecureMessageError("Two clients have the same key.", expected="keys that are all different")
        for client, entry in roster.keys.items():
            check_signed(entry, client, self._setup)
        self._require_enough(len(roster.keys))

    def _open(self, sender: int, box: bytes) -> tuple[int, int]:
        key = box_key(self._encryption, self._keys[sender].encryption_key, self._session, sender, self._id)
        plaintext = unseal(key, box, box_context(self._session, sender, self._id))
        if plaintext is None:
            raise SecureMessageError(
                "The shares of a client were tampered with, or it was told another list of keys.", found=sender
            )
        return read_shares(plaintext)

    def _require_enough(self, count: int) -> None:
        if count < self._setup.threshold:
            raise SecureRequestRefusedError(
                "Too few clients are left for a sum that hides each of them.",
                expected=f"at least {self._setup.threshold}",
                found=count,
            )
