"""Sums of which the server sees nothing but the total, among machines: masks that cancel, and survive dropouts.

Each pair of clients agrees on a mask, which one adds and the other subtracts, and each client adds one of its own.
The server adds up what it receives; for each client that is left it then gets, in shares from the others, what takes
the own mask off, and for each that went away, what takes its masks with the others off. It never gets both of one.
Where the server is not trusted to keep to the protocol, keys are signed, and before they send these shares clients
compare, by signatures, what they were told of who is left.

This is the protocol of Bonawitz et al. 2017 as state machines for a client and for the server, with messages that are
dataclasses and bytes. It moves no bytes itself: a program carries them, over connections that tell it who is speaking.
`simulate` runs it among clients of one process.
"""

from koinon.secure._client import Client
from koinon.secure._crypto import SigningKey
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
    read_message,
)
from koinon.secure._server import SecureSum, Server
from koinon.secure._setup import Setup
from koinon.secure._simulate import simulate

__all__ = [
    "AdvertiseKeys",
    "Client",
    "ConfirmRequest",
    "Confirmation",
    "EncryptedShares",
    "MaskedInput",
    "Message",
    "Roster",
    "SecureSum",
    "Server",
    "Setup",
    "ShareDelivery",
    "SigningKey",
    "UnmaskRequest",
    "UnmaskShares",
    "read_message",
    "simulate",
]
