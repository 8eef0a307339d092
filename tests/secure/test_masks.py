"""The parts of the protocol: masks, shares, residues, keys."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from koinon import secure
from koinon.errors import MissingDependencyError
from koinon.secure import _shamir
from koinon.secure._crypto import KeyPair, Stream, derive, seal, unseal
from koinon.secure._residues import add, expand, from_wire, subtract, to_wire

KEY = bytes(range(32))
MODULI = st.integers(2, 2**63) | st.sampled_from([2**8, 2**32, 2**63, 2**63 - 25, 3])


def test_the_stream_is_that_of_rfc_8439():
    """The key stream of the appendix A.1, test vector 1: key, nonce and counter are zero."""
    words = "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"

    assert Stream(bytes(32)).read(32).hex() == words


def test_a_key_is_derived_by_hkdf():
    """RFC 5869 by hand: extract with the salt, expand with the purpose and the ids."""
    extracted = hmac.new(b"salt", b"secret", hashlib.sha256).digest()
    info = b"koinon secure sum: shares" + (7).to_bytes(4, "big") + (9).to_bytes(4, "big")

    assert derive(b"secret", b"salt", "shares", 7, 9) == hmac.new(extracted, info + b"\x01", hashlib.sha256).digest()


@pytest.mark.parametrize("modulus", [2**16, 2**32, 10**6 + 3, 3 * 2**30, 2**62 + 1])
def test_masks_are_uniform_over_the_whole_range(modulus):
    """A million words in 256 classes: the chi-square statistic below its 1 - 1e-6 quantile, the ends included."""
    mask = expand(KEY, modulus, 1_000_000)
    edges = [modulus * i // 256 for i in range(257)]
    counts = np.bincount(np.searchsorted(np.array(edges[1:], np.uint64), mask, side="right"), minlength=256)
    expected = np.diff(np.array(edges, object)).astype(float) * 1_000_000 / modulus

    assert ((counts - expected) ** 2 / expected).sum() < 372.0  # for 255 degrees of freedom
    assert int(mask.max()) < modulus
    # The probability that the top is missed by more than this is exp(-20).
    assert modulus - int(mask.max()) <= max(1, 20 * modulus // 1_000_000)
    assert int(mask.min()) <= max(1, 20 * modulus // 1_000_000)


def test_a_changed_bit_of_the_key_changes_half_of_the_mask():
    """No bit of the key is lost on the way."""
    mask = expand(KEY, 2**63, 2000)
    for byte in range(32):
        other = expand(KEY[:byte] + bytes([KEY[byte] ^ 1]) + KEY[byte + 1 :], 2**63, 2000)
        changed = np.unpackbits((mask ^ other).view(np.uint8)).sum() / (2000 * 63)

        assert abs(changed - 0.5) < 6 * 0.5 / np.sqrt(2000 * 63)


@given(MODULI, st.data())
def test_residues_are_added_and_written_exactly(modulus, data):
    """As Python's integers, at the ends of the range too."""
    numbers = st.integers(0, modulus - 1) | st.sampled_from([0, modulus - 1])
    left, right = (data.draw(st.lists(numbers, min_size=3, max_size=3)) for _ in range(2))
    a, b = np.array(left, np.uint64), np.array(right, np.uint64)

    assert add(a, b, modulus).tolist() == [(x + y) % modulus for x, y in zip(left, right, strict=True)]
    assert subtract(a, b, modulus).tolist() == [(x - y) % modulus for x, y in zip(left, right, strict=True)]
    assert from_wire(to_wire(a, modulus), modulus, 3).tolist() == left


def test_so_many_shares_tell_a_secret_and_fewer_do_not():
    """Every subset of the threshold gives it; one fewer fits every secret."""
    secret = bytes(range(100, 132))
    shares = _shamir.split(secret, [1, 2, 3, 4, 5], 3)
    for chosen in itertools.combinations(shares, 3):
        assert _shamir.combine({point: shares[point] for point in chosen}) == secret
    assert all(
        _shamir.combine({point: shares[point] for point in chosen}) != secret
        for chosen in itertools.combinations(shares, 2)
    )
    # Two shares and any third value make some secret of the field: the third decides, so two decide nothing.
    guesses = {_shamir.combine({1: shares[1], 2: shares[2], 3: guess}) for guess in range(20)}
    assert len(guesses) == 20


def test_the_field_of_the_shares_is_the_least_prime_that_holds_a_key():
    """No witness among forty says that it is composite, and all numbers between 2**256 and it are."""
    assert is_probably_prime(_shamir.PRIME)
    assert not any(is_probably_prime(n) for n in range(2**256 + 1, _shamir.PRIME))


def is_probably_prime(n):
    """The test of Miller and Rabin for the first forty bases."""
    odd, twos = n - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in range(2, 42):
        x = pow(base, odd, n)
        if x not in (1, n - 1) and not any((x := x * x % n) == n - 1 for _ in range(twos - 1)):
            return False
    return True


def test_two_clients_agree_and_a_third_does_not():
    """A shared secret, and a box that opens in its own context only."""
    a, b, c = KeyPair(), KeyPair(), KeyPair()
    key = derive(a.agree(b.public), b"salt", "shares", 1, 2)
    box = seal(key, b"text", b"context")

    assert KeyPair(a.secret).public == a.public
    assert derive(b.agree(a.public), b"salt", "shares", 1, 2) == key
    assert derive(c.agree(a.public), b"salt", "shares", 1, 2) != key
    assert unseal(key, box, b"context") == b"text"
    assert unseal(key, box, b"another") is None


def test_without_the_package_the_extra_is_named(monkeypatch):
    """The protocol is optional."""
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    setup = secure.Setup([1, 2], modulus=10, length=1)
    with pytest.raises(MissingDependencyError, match=r"koinon\[secure\]"):
        secure.Server(setup)
    with pytest.raises(MissingDependencyError, match=r"koinon\[secure\]"):
        secure.Client(setup, 1)
