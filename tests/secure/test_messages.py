"""Messages and their bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from koinon import secure
from koinon.errors import SecureMessageError
from koinon.secure._messages import BOX_BYTES
from koinon.secure._shamir import PRIME

IDS = st.integers(0, 2**32 - 1)
ROUNDS = st.binary(min_size=16, max_size=16)
KEYS = st.binary(min_size=32, max_size=32)
SIGNATURES = st.binary(min_size=64, max_size=64)
SHARES = st.dictionaries(IDS, st.integers(0, PRIME - 1), max_size=3)
BOXES = st.dictionaries(IDS, st.binary(min_size=BOX_BYTES, max_size=BOX_BYTES), max_size=3)


@st.composite
def messages(draw):
    """A message of any kind."""
    round_id = draw(ROUNDS)
    signature = st.just(b"") | SIGNATURES
    survivors = st.lists(IDS, unique=True, max_size=4).map(sorted).map(tuple)
    advertise = st.builds(secure.AdvertiseKeys, st.just(round_id), IDS, KEYS, KEYS, signature)
    kinds = [
        advertise,
        st.lists(advertise, max_size=3, unique_by=lambda m: m.sender).map(
            lambda entries: secure.Roster(round_id, {m.sender: m for m in entries})
        ),
        st.builds(secure.EncryptedShares, st.just(round_id), IDS, KEYS, BOXES),
        st.builds(secure.ShareDelivery, st.just(round_id), IDS, BOXES),
        st.builds(secure.MaskedInput, st.just(round_id), IDS, st.binary(max_size=20)),
        st.builds(secure.ConfirmRequest, st.just(round_id), survivors),
        st.builds(secure.Confirmation, st.just(round_id), IDS, SIGNATURES),
        st.builds(secure.UnmaskRequest, st.just(round_id), survivors, st.dictionaries(IDS, SIGNATURES, max_size=3)),
        st.builds(secure.UnmaskShares, st.just(round_id), IDS, SHARES, SHARES),
    ]
    return draw(st.one_of(kinds))


@given(messages())
def test_a_message_is_what_its_bytes_say(message):
    """Bytes and messages are one to one."""
    data = message.to_bytes()

    assert secure.read_message(data) == message
    assert type(message).from_bytes(data).to_bytes() == data


@given(messages(), st.data())
def test_damaged_bytes_are_refused_or_another_message(message, data):
    """Cut, extended or changed: an error of one class, or a message that has just these bytes."""
    original = message.to_bytes()
    cut = data.draw(st.integers(0, len(original) - 1))
    for damaged in (original[:cut], original + b"\0"):
        with pytest.raises(SecureMessageError):
            secure.read_message(damaged)
    position, value = data.draw(st.integers(0, len(original) - 1)), data.draw(st.integers(0, 255))
    changed = original[:position] + bytes([value]) + original[position + 1 :]
    try:
        read = secure.read_message(changed)
    except SecureMessageError:
        return
    assert read.to_bytes() == changed


def test_what_is_announced_must_be_there():
    """A list of four billion clients in a message of thirty bytes is refused at its first entry."""
    head = secure.ConfirmRequest(bytes(16), ()).to_bytes()
    with pytest.raises(SecureMessageError, match="were announced"):
        secure.read_message(head[:-4] + b"\xff" * 4)


def test_a_message_is_read_as_what_it_is():
    """Another kind, another beginning, unsorted clients, keys under another name, no bytes."""
    request = secure.ConfirmRequest(bytes(16), (1, 2))
    data = request.to_bytes()
    with pytest.raises(SecureMessageError, match="another kind"):
        secure.Roster.from_bytes(data)
    for bad in (b"XXXX" + data[4:], data[:5] + b"\x0a" + data[6:], data[:-8] + data[-4:] + data[-8:-4]):
        with pytest.raises(SecureMessageError, match="no message"):
            secure.read_message(bad)
    keys = secure.AdvertiseKeys(bytes(16), 1, bytes(32), bytes(32))
    with pytest.raises(SecureMessageError, match="no message"):
        secure.read_message(secure.Roster(bytes(16), {2: keys}).to_bytes())
    with pytest.raises(SecureMessageError, match="no message"):
        secure.read_message("text")


def test_a_setup_is_what_its_bytes_say():
    """With and without identities; other bytes, and setups that protect nobody, are refused."""
    plain = secure.Setup([3, 1, 2], modulus=2**63, length=7, max_input=5)
    keys = {client: secure.SigningKey().public for client in (1, 2, 3)}
    signed = secure.Setup([3, 1, 2], modulus=10, length=7, active_server=True, identities=keys)
    for setup in (plain, signed):
        data = setup.to_bytes()

        assert secure.Setup.from_bytes(data) == setup
        for bad in (
            data[:-1],
            data + b" ",
            data.replace(b'"threshold": 3', b'"threshold": 1'),
            data.replace(b'"length": 7', b'"length": "7"'),
            data.replace(b'"length"', b'"width"'),
            data.replace(b"[1, 2, 3]", b"[3, 2, 1]"),
            b"[" * 100_000,
            b"null",
            b"\xff",
        ):
            assert bad != data
            with pytest.raises(SecureMessageError, match="no setup"):
                secure.Setup.from_bytes(bad)
