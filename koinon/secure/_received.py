"""What both parties check of the messages that they receive."""

from __future__ import annotations

from koinon._errors import SecureMessageError
from koinon.secure._crypto import is_signed
from koinon.secure._messages import AdvertiseKeys, Message
from koinon.secure._setup import Setup


def check_round(message: Message, setup: Setup) -> None:
    """Raises a SecureMessageError unless a message is of this sum."""
    if message.round_id != setup.round_id:
        raise SecureMessageError(
            "A message is of another sum.", expected=setup.round_id.hex(), found=message.round_id.hex()
        )


def check_signed(keys: AdvertiseKeys, client: int, setup: Setup) -> None:
    """Raises a SecureMessageError unless the keys of a client are signed by it, where keys are signed."""
    if setup.identities is None:
        return
    if not is_signed(setup.identities[client], keys.signature, keys.signed_part()):
        raise SecureMessageError("The keys of a client are not signed by it.", found=client)
