"""What the protocol takes from the package `cryptography`: key agreement, key derivation, streams, sealed boxes."""

from __future__ import annotations

import importlib
from typing import Any, final

from koinon._errors import MissingDependencyError, SecureMessageError

KEY_BYTES = 32
SIGNATURE_BYTES = 64
TAG_BYTES = 16
# Every key seals one message and starts one stream, so a constant nonce is never used twice with a key.
_NONCE_OF_BOX = bytes(12)
_NONCE_OF_STREAM = bytes(16)


def require_cryptography() -> None:
    """Checks that the package is there.

    Raises:
      MissingDependencyError: where it is not.
    """
    _module("exceptions")


@final
class KeyPair:
    """A key pair of X25519 (RFC 7748).

    Args:
      secret: the 32 bytes of the secret key; None to draw them from the operating system.
    """

    def __init__(self, secret: bytes | None = None) -> None:
        keys = _module("hazmat.primitives.asymmetric.x25519").X25519PrivateKey
        self._key = keys.generate() if secret is None else keys.from_private_bytes(secret)
        self.secret: bytes = self._key.private_bytes_raw()
        self.public: bytes = self._key.public_key().public_bytes_raw()

    def agree(self, public: bytes) -> bytes:
        """The secret that the two holders share, 32 bytes.

        Raises:
          SecureMessageError: the public key is none, or one that makes the same secret with everybody.
        """
        keys = _module("hazmat.primitives.asymmetric.x25519").X25519PublicKey
        try:
            return self._key.exchange(keys.from_public_bytes(public))
        except ValueError:
            raise SecureMessageError(
                "A public key of another client is no key to agree with.",
                expected="a point of Curve25519 of large order",
                found=public.hex(),
            ) from None


@final
class SigningKey:
    """A key of Ed25519 (RFC 8032), with which a client signs the keys that it advertises.

    Args:
      secret: 32 bytes; None to draw them from the operating system.

    Raises:
      MissingDependencyError: the package `cryptography` is not installed.

    >>> import koinon as ko
    >>> key = ko.secure.SigningKey()
    >>> len(key.public), ko.secure.SigningKey(key.secret).public == key.public
    (32, True)
    """

    def __init__(self, secret: bytes | None = None) -> None:
        keys = _module("hazmat.primitives.asymmetric.ed25519").Ed25519PrivateKey
        self._key = keys.generate() if secret is None else keys.from_private_bytes(secret)
        self.secret: bytes = self._key.private_bytes_raw()
        self.public: bytes = self._key.public_key().public_bytes_raw()

    def sign(self, data: bytes) -> bytes:
        """The signature of some bytes, 64 bytes."""
        return self._key.sign(data)


def is_signed(public: bytes, signature: bytes, data: bytes) -> bool:
    """Whether a signature is that of the holder of a public key."""
    keys = _module("hazmat.primitives.asymmetric.ed25519").Ed25519PublicKey
    try:
        keys.from_public_bytes(public).verify(signature, data)
    except (ValueError, _module("exceptions").InvalidSignature):
        return False
    return True


def derive(secret: bytes, salt: bytes, purpose: str, *ids: int) -> bytes:
    """A key of 32 bytes by HKDF-SHA256 (RFC 5869), for one purpose and these clients.

    Args:
      secret: what only the holders of the key know.
      salt: what tells one run of the protocol from all others.
      purpose: what the key is for.
      *ids: the clients that it is for, in their order.
    """
    hkdf = _module("hazmat.primitives.kdf.hkdf").HKDF
    info = b"koinon secure sum: " + purpose.encode() + b"".join(id_.to_bytes(4, "big") for id_ in ids)
    return hkdf(algorithm=_hash(), length=KEY_BYTES, salt=salt, info=info).derive(secret)


def digest(data: bytes) -> bytes:
    """SHA-256, 32 bytes."""
    hashed = _module("hazmat.primitives.hashes").Hash(_hash())
    hashed.update(data)
    return hashed.finalize()


@final
class Stream:
    """A stream of pseudorandom bytes: ChaCha20 (RFC 8439) under a key that is used for nothing else.

    Args:
      key: 32 bytes.
    """

    def __init__(self, key: bytes) -> None:
        ciphers = _module("hazmat.primitives.ciphers")
        self._cipher = ciphers.Cipher(ciphers.algorithms.ChaCha20(key, _NONCE_OF_STREAM), mode=None).encryptor()

    def read(self, count: int) -> bytes:
        """The next bytes."""
        return self._cipher.update(bytes(count))


def seal(key: bytes, plaintext: bytes, context: bytes) -> bytes:
    """Encrypts and authenticates by ChaCha20-Poly1305 (RFC 8439), under a key that is used for nothing else."""
    return _aead(key).encrypt(_NONCE_OF_BOX, plaintext, context)


def unseal(key: bytes, ciphertext: bytes, context: bytes) -> bytes | None:
    """What was sealed under the key in this context; None where this was not."""
    try:
        return _aead(key).decrypt(_NONCE_OF_BOX, ciphertext, context)
    except _module("exceptions").InvalidTag:
        return None


def _aead(key: bytes) -> Any:
    return _module("hazmat.primitives.ciphers.aead").ChaCha20Poly1305(key)


def _hash() -> Any:
    return _module("hazmat.primitives.hashes").SHA256()


def _module(name: str) -> Any:
    try:
        return importlib.import_module(f"cryptography.{name}")
    except ImportError:
        raise MissingDependencyError("cryptography", extra="secure", purpose="The secure sum protocol") from None
