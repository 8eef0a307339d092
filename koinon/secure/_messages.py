"""The messages of the protocol, and their bytes.

A message is the four bytes `KOSS`, a version, its kind, the id of the round, and its fields; numbers are big-endian,
and lists are sorted by client and name nobody twice. So a message has one form in bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar, final

from koinon._errors import SecureMessageError
from koinon.secure._crypto import KEY_BYTES, SIGNATURE_BYTES, TAG_BYTES
from koinon.secure._setup import ROUND_BYTES
from koinon.secure._shamir import PRIME, SHARE_BYTES

_HEAD = b"KOSS\x01"
BOX_BYTES = 2 * SHARE_BYTES + TAG_BYTES
_Message = TypeVar("_Message", bound="Message")
_Item = TypeVar("_Item")


@dataclasses.dataclass(frozen=True)
class Message:
    """What one party of a secure sum sends to another.

    Attributes:
      round_id: 16 bytes that tell this sum from all others.
    """

    KIND: ClassVar[int]
    round_id: bytes

    def to_bytes(self) -> bytes:
        """The message in bytes."""
        return _HEAD + bytes([self.KIND]) + self.round_id + self._body()

    @classmethod
    def from_bytes(cls: type[_Message], data: bytes) -> _Message:
        """The message that `to_bytes` wrote.

        Raises:
          SecureMessageError: the bytes are no message of this class.
        """
        message = read_message(data)
        if not isinstance(message, cls):
            raise SecureMessageError(
                "A message is of another kind.", expected=cls.__name__, found=type(message).__name__
            )
        return message

    def _body(self) -> bytes:
        raise NotImplementedError

    @classmethod
    def _read(cls, round_id: bytes, reader: _Reader) -> Message:
        raise NotImplementedError


@final
@dataclasses.dataclass(frozen=True)
class AdvertiseKeys(Message):
    """Stage 1, from a client: its public keys.

    Attributes:
      sender: the client.
      encryption_key: the key of X25519 by which the others send it their shares.
      mask_key: the key of X25519 by which it agrees on masks with the others.
      signature: by Ed25519 over the rest of the message; empty where keys are not signed.
    """

    KIND: ClassVar[int] = 1
    sender: int
    encryption_key: bytes
    mask_key: bytes
    signature: bytes = b""

    def signed_part(self) -> bytes:
        """The bytes that the signature is for."""
        return dataclasses.replace(self, signature=b"").to_bytes()

    def _body(self) -> bytes:
        return _id(self.sender) + self.encryption_key + self.mask_key + bytes([bool(self.signature)]) + self.signature

    @classmethod
    def _read(cls, round_id: bytes, reader: _Reader) -> AdvertiseKeys:
        sender, encryption_key, mask_key = reader.number(4), reader.take(KEY_BYTES), reader.take(KEY_BYTES)
        is_signed = reader.number(1)
        if is_signed > 1:
            raise _malformed("a flag that is neither 0 nor 1")
        return cls(round_id, sender, encryption_key, mask_key, reader.take(SIGNATURE_BYTES * is_signed))


@final
@dataclasses.dataclass(frozen=True)
class Roster(Message):
    """Stage 2, to all clients: the keys of those that take part, by client."""

    KIND: ClassVar[int] = 2
    keys: Mapping[int, AdvertiseKeys]

    def _body(self) -> bytes:
        def entry(client: int) -> bytes:
            data = self.keys[client].to_bytes()
            return len(data).to_bytes(4, "big") + data

        return _entries(self.keys, entry)

    @classmethod
    def _read(cls, round_id: bytes, reader: _Reader) -> Roster:
        keys = reader.entries(lambda: AdvertiseKeys.from_bytes(reader.take(reader.number(4))))
        if any(key.sender != client or key.round_id != round_id for client, key in keys.items()):
            raise _malformed("keys under another name, or of another round")
        return cls(round_id, keys)


@final
@dataclasses.dataclass(frozen=True)
class EncryptedShares(Message):
    """Stage 2, from a client: shares of its secrets, sealed for each of the others.

    Attributes:
      sender: the client.
      commitment: 32 bytes that tell whether what the server puts together from shares is the secret of the own mask.
      boxes: by recipient, what only it can open.
    """

    KIND: ClassVar[int] = 3
    sender: int
    commitment: bytes
    boxes: Mapping[int, bytes]

    def _body(self) -> bytes:
        return _id(self.sender) + self.commitment + _entries(self.boxes, self.boxes.__getitem__)

    @classmethod
    def _read(cls, round_id: bytes, reader: _Reader) -> EncryptedShares:
        sender, commitment = reader.number(4), reader.take(KEY_BYTES)
        return cls(round_id, sender, commitment, reader.entries(lambda: reader.take(BOX_BYTES)))


@final
@dataclasses.dataclass(frozen=True)
class ShareDelivery(Message):
    """Stage 3, to one client: the shares that the others sealed for it.

    Attributes:
      recipient: the client.
      boxes: by sender.
    """

    KIND: ClassVar[int] = 4
    recipient: int
    boxes: Mapping[int, bytes]

    def _body(self) -> bytes:
        return _id(self.recipient) + _entries(self.boxes, self.boxes.__getitem__)

    @classmethod
    def _read(cls, round_id: bytes, reader: _Reader) -> ShareDelivery:
        recipient = reader.number(4)
        return cls(round_id, recipient, reader.entries(lambda: reader.take(BOX_BYTES)))


@final
@dataclasses.dataclass(frozen=True)
class MaskedInput(Message):
    """Stage 3, from a client: its numbers under masks.

    Attributes:
      sender: the client.
      masked: residues, little-endian, each in as many bytes as the modulus needs.
    """

    KIND: ClassVar[int] = 5
    sender: int
    masked: bytes

    def _body(self) -> bytes:
        return _id(self.sender) + len(self.masked).to_bytes(8, "big") + self.masked

    @classmethod
    def _read(cls, round_id: bytes, reader: _Reader) -> MaskedInput:
        sender = reader.number(4)
        return cls(round_id, sender, reader.take(reader.number(8)))


@final
@dataclasses.dataclass(frozen=True)
class ConfirmRequest(Message):
    """Stage `confirm`, to all clients that are left, where the server is not trusted: whose numbers arrived.

    Attributes:
      survivors: their ids, sorted.
    """

    KIND: ClassVar[int] = 8
    survivors: tuple[int, ...]

    def _body(self) -> bytes:
        return _ids(self.survivors)

    @classmethod
    def _read(cls, round_id: bytes, reader: _Reader) -> ConfirmRequest:
        return cls(round_id, reader.ids())


@final
@dataclasses.dataclass(frozen=True)
class Confirmation(Message):
    """Stage `confirm`, from a client: its signature under the list of those that are left.

    Attributes:
      sender: the client.
      signature: by Ed25519, 64 bytes.
    """

    KIND: ClassVar[int] = 9
    sender: int
    signature: bytes

    def _body(self) -> bytes:
        return _id(self.sender) + self.signature

    @classmethod
    def _read(cls, round_id: bytes, reader: _Reader) -> Confirmation:
        return cls(round_id, reader.number(4), reader.take(SIGNATURE_BYTES))


@final
@dataclasses.dataclass(frozen=True)
class UnmaskRequest(Message):
    """The last stage, to all clients that are left: whose numbers arrived.

    Attributes:
      survivors: their ids, sorted.
      confirmations: by client, its signature under this list; empty where the server is trusted to keep to the
        protocol.
    """

    KIND: ClassVar[int] = 6
    survivors: tuple[int, ...]
    confirmations: Mapping[int, bytes] = dataclasses.field(default_factory=dict)

    def _body(self) -> bytes:
        return _ids(self.survivors) + _entries(self.confirmations, self.confirmations.__getitem__)

    @classmethod
    def _read(cls, round_id: bytes, reader: _Reader) -> UnmaskRequest:
        return cls(round_id, reader.ids(), reader.entries(lambda: reader.take(SIGNATURE_BYTES)))


@final
@dataclasses.dataclass(frozen=True)
class UnmaskShares(Message):
    """The last stage, from a client: for each other one a share of one of its two secrets, never of both.

    Attributes:
      sender: the client.
      self_shares: of those whose numbers arrived, a share of what their own mask is made of.
      key_shares: of those who left before, a share of the key that they agreed on masks with.
    """

    KIND: ClassVar[int] = 7
    sender: int
    self_shares: Mapping[int, int]
    key_shares: Mapping[int, int]

    def _body(self) -> bytes:
        shares = (_entries(part, lambda c, p=part: _share(p[c])) for part in (self.self_shares, self.key_shares))
        return _id(self.sender) + b"".join(shares)

    @classmethod
    def _read(cls, round_id: bytes, reader: _Reader) -> UnmaskShares:
        return cls(round_id, reader.number(4), reader.entries(reader.share), reader.entries(reader.share))


_KINDS: dict[int, type[Message]] = {
    cls.KIND: cls
    for cls in (
        AdvertiseKeys,
        Roster,
        EncryptedShares,
        ShareDelivery,
        MaskedInput,
        UnmaskRequest,
        UnmaskShares,
        ConfirmRequest,
        Confirmation,
    )
}


def read_message(data: bytes) -> Message:
    """The message of any kind that some bytes are.

    Raises:
      SecureMessageError: the bytes are no message.
    """
    reader = _Reader(data)
    if reader.take(len(_HEAD)) != _HEAD:
        raise _malformed("another beginning than that of this version of the protocol")
    kind = reader.number(1)
    if kind not in _KINDS:
        raise _malformed(f"the kind {kind}")
    message = _KINDS[kind]._read(reader.take(ROUND_BYTES), reader)
    reader.end()
    return message


def write_shares(key_share: int, self_share: int) -> bytes:
    """What a client seals for another one."""
    return _share(key_share) + _share(self_share)


def read_shares(data: bytes) -> tuple[int, int]:
    """The shares that `write_shares` wrote.

    Raises:
      SecureMessageError: the bytes are no two shares.
    """
    reader = _Reader(data)
    shares = reader.share(), reader.share()
    reader.end()
    return shares


class _Reader:
    """Reads from the front of some bytes, and never past their end."""

    def __init__(self, data: bytes) -> None:
        if not isinstance(data, bytes):
            raise _malformed(type(data).__name__)
        self._data = data
        self._position = 0

    def take(self, count: int) -> bytes:
        end = self._position + count
        if end > len(self._data):
            raise _malformed(f"an end after {len(self._data)} bytes, where {end} were announced")
        taken = self._data[self._position : end]
        self._position = end
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def share(self) -> int:
        share = self.number(SHARE_BYTES)
        if share >= PRIME:
            raise _malformed("a share that is not in its field")
        return share

    def entries(self, read: Callable[[], _Item]) -> dict[int, _Item]:
        """A list by client. What is not there cannot be announced: every entry is read before the next."""
        items: dict[int, _Item] = {}
        last = -1
        for _ in range(self.number(4)):
            client = self.number(4)
            if client <= last:
                raise _malformed("clients that are not sorted, or named twice")
            items[client], last = read(), client
        return items

    def ids(self) -> tuple[int, ...]:
        return tuple(self.entries(lambda: b""))

    def end(self) -> None:
        if self._position != len(self._data):
            raise _malformed(f"{len(self._data) - self._position} bytes behind its end")


def _entries(by_client: Mapping[int, Any], write: Callable[[int], bytes]) -> bytes:
    return _id(len(by_client)) + b"".join(_id(client) + write(client) for client in sorted(by_client))


def _ids(clients: tuple[int, ...]) -> bytes:
    return _entries(dict.fromkeys(clients), lambda _: b"")


def _id(number: int) -> bytes:
    return number.to_bytes(4, "big")


def _share(share: int) -> bytes:
    return share.to_bytes(SHARE_BYTES, "big")


def _malformed(found: str) -> SecureMessageError:
    return SecureMessageError("Some bytes are no message of a secure sum.", found=found)
