"""What a client refuses, what the server refuses, and that neither learns more than the sum."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from koinon import secure
from koinon.errors import (
    KoinonTypeError,
    KoinonValueError,
    SecureMessageError,
    SecureRequestRefusedError,
    SecureSumAbortedError,
    SecureSumRangeError,
)
from koinon.secure._keys import list_to_sign

VALUES = {1: [5, 0], 2: [6, 10], 3: [7, 20], 4: [8, 30]}


class Round:
    """A sum of four clients, to be led to a stage."""

    def __init__(self, **arguments):
        self.setup = secure.Setup(VALUES, modulus=1000, length=2, threshold=3, **arguments)
        self.clients = {client: secure.Client(self.setup, client) for client in VALUES}
        self.server = secure.Server(self.setup)
        self.sent = {}

    def to(self, stage, gone=()):
        """Runs the stages before one; returns the server's messages that start it."""
        requests = dict.fromkeys(VALUES)
        for name in ("advertise", "share", "mask", "unmask"):
            if name == stage:
                return requests
            self.sent[name] = {c: self.answer(c, name, r) for c, r in requests.items() if c not in gone}
            for message in self.sent[name].values():
                self.server.receive(message)
            requests = self.server.close_stage()
        raise AssertionError(stage)

    def answer(self, client, stage, request):
        """What a client sends at a stage."""
        party = self.clients[client]
        match stage:
            case "advertise":
                return party.advertise()
            case "share":
                return party.share_keys(request)
            case "mask":
                return party.mask(request, VALUES[client])
            case _:
                return party.unmask(request)


def test_no_client_gives_both_secrets_of_another_one():
    """A second question is refused, whatever it is; so is one that says that the client itself is gone."""
    play = Round()
    request = play.to("unmask")[1]
    without_it = dataclasses.replace(request, survivors=(2, 3, 4))
    with pytest.raises(SecureRequestRefusedError, match="this client went away"):
        play.clients[1].unmask(without_it)

    first = play.clients[1].unmask(dataclasses.replace(request, survivors=(1, 3, 4)))
    assert (sorted(first.self_shares), sorted(first.key_shares)) == ([1, 3, 4], [2])
    for again in (request, dataclasses.replace(request, survivors=(1, 2, 3))):
        with pytest.raises(SecureRequestRefusedError, match="comes once"):
            play.clients[1].unmask(again)


def test_two_halves_of_the_clients_cannot_be_played_against_each_other():
    """A server that tells each client what suits it gets too few shares of one of the two secrets."""
    play = Round()
    request = play.to("unmask")[1]
    # The client 4 is said to be left by some, and to be gone by others.
    answers = [
        play.clients[client].unmask(dataclasses.replace(request, survivors=(1, 2, 3, 4)[: 4 - gone]))
        for client, gone in ((1, 0), (2, 0), (3, 1))
    ]
    seeds, keys = (sum(4 in getattr(answer, name) for answer in answers) for name in ("self_shares", "key_shares"))

    assert (seeds, keys) == (2, 1)
    assert min(seeds, keys) < play.setup.threshold  # for any split: 2 * threshold > 4 clients


def test_too_few_are_refused_by_clients_too():
    """A server cannot ask for a sum of fewer than the threshold."""
    play = Round()
    roster = play.to("share")[1]
    few = dataclasses.replace(roster, keys={c: k for c, k in roster.keys.items() if c < 3})
    with pytest.raises(SecureRequestRefusedError, match="Too few clients"):
        play.clients[1].share_keys(few)

    play = Round()
    delivery = play.to("mask")[1]
    with pytest.raises(SecureRequestRefusedError, match="Too few clients"):
        play.clients[1].mask(dataclasses.replace(delivery, boxes={2: delivery.boxes[2]}), [0, 0])

    play = Round()
    request = play.to("unmask")[1]
    with pytest.raises(SecureRequestRefusedError, match="Too few clients"):
        play.clients[1].unmask(dataclasses.replace(request, survivors=(1, 2)))


def test_a_client_refuses_a_list_of_keys_that_is_wrong():
    """Foreign clients, other keys than its own, one key twice, another sum."""
    play, other = Round(), Round()
    roster, foreign = play.to("share")[1], other.to("share")[1]
    keys = dict(roster.keys)
    wrong = {
        "agreed on": {**keys, 9: dataclasses.replace(keys[2], sender=9)},
        "other keys for this client": {**keys, 1: dataclasses.replace(keys[1], mask_key=foreign.keys[1].mask_key)},
        "same key": {**keys, 2: dataclasses.replace(keys[2], mask_key=keys[3].mask_key)},
    }
    for message, bad in wrong.items():
        with pytest.raises(SecureMessageError, match=message):
            play.clients[1].share_keys(dataclasses.replace(roster, keys=bad))
    low_order = {**keys, 2: dataclasses.replace(keys[2], encryption_key=bytes(32))}
    with pytest.raises(SecureMessageError, match="no key to agree with"):
        play.clients[1].share_keys(dataclasses.replace(roster, keys=low_order))
    with pytest.raises(SecureMessageError, match="another sum"):
        play.clients[1].share_keys(foreign)
    with pytest.raises(KoinonTypeError, match="another kind"):
        play.clients[1].share_keys(play.sent["advertise"][1])
    play.clients[1].share_keys(roster)  # what was refused changed nothing


def test_a_client_refuses_shares_that_were_changed():
    """A flipped bit, the shares for another client, those of another one, and those of a replayed sum."""
    play, other = Round(), Round()
    deliveries, foreign = play.to("mask"), other.to("mask")[1]
    delivery = deliveries[1]
    flipped = bytes([delivery.boxes[2][0] ^ 1]) + delivery.boxes[2][1:]
    for boxes in (
        {**delivery.boxes, 2: flipped},
        {**delivery.boxes, 2: delivery.boxes[3]},
        {**delivery.boxes, 2: deliveries[3].boxes[2]},
        foreign.boxes,
    ):
        with pytest.raises(SecureMessageError, match="tampered with"):
            play.clients[1].mask(dataclasses.replace(delivery, boxes=boxes), [0, 0])
    with pytest.raises(SecureMessageError, match="for another client"):
        play.clients[1].mask(deliveries[2], [0, 0])
    with pytest.raises(SecureMessageError, match="do not take part"):
        play.clients[1].mask(dataclasses.replace(delivery, boxes={**delivery.boxes, 7: flipped}), [0, 0])
    other.clients[1].mask(foreign, [0, 0])
    with pytest.raises(SecureMessageError, match="did not share"):
        other.clients[1].unmask(secure.UnmaskRequest(other.setup.round_id, (1, 2, 9)))


def test_clients_that_were_told_different_keys_understand_nothing():
    """A server in the middle would have to be believed by both; every key depends on the whole list."""
    play = Round()
    rosters = play.to("share")
    fewer = {c: k for c, k in rosters[1].keys.items() if c != 4}
    sent = {1: play.clients[1].share_keys(dataclasses.replace(rosters[1], keys=fewer))}
    sent |= {client: play.clients[client].share_keys(rosters[client]) for client in (2, 3, 4)}
    boxes = {client: sent[client].boxes[2] for client in (1, 3, 4)}
    with pytest.raises(SecureMessageError, match="another list of keys"):
        play.clients[2].mask(secure.ShareDelivery(play.setup.round_id, 2, boxes), [0, 0])


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ([1.0, 2.0], KoinonTypeError, "vector of integers"),
        ([1], KoinonTypeError, "vector of integers"),
        ([[1, 2]], KoinonTypeError, "vector of integers"),
        ([True, False], KoinonTypeError, "vector of integers"),
        ([0, -1], SecureSumRangeError, "from -1 to 0"),
        ([0, 101], SecureSumRangeError, "from 0 to 101"),
    ],
)
def test_a_client_brings_integers_in_the_range(values, error, message):
    """Nothing is cast or wrapped silently; a good vector may follow."""
    play = Round(max_input=100)
    delivery = play.to("mask")[1]
    with pytest.raises(error) as caught:
        play.clients[1].mask(delivery, values)
    assert message in str(caught.value)
    play.clients[1].mask(delivery, [0, 100])


def test_every_stage_comes_once_and_in_order():
    """A client that is asked again, or too early, refuses."""
    play = Round()
    with pytest.raises(SecureRequestRefusedError, match="`share` comes once"):
        play.clients[1].share_keys(secure.Roster(play.setup.round_id, {}))
    roster = play.to("share")[1]
    with pytest.raises(SecureRequestRefusedError, match="`advertise` comes once"):
        play.clients[1].advertise()
    play.clients[1].share_keys(roster)
    with pytest.raises(SecureRequestRefusedError, match="`share` comes once"):
        play.clients[1].share_keys(roster)


def test_the_server_refuses_what_it_does_not_expect():
    """Twice, of another sum, of another stage, of a stranger, of one who was too late, of a server; none does harm."""
    play, other = Round(), Round()
    message = play.clients[1].advertise()
    play.server.receive(message)
    stranger = dataclasses.replace(play.clients[2].advertise(), sender=9)
    for bad, text in (
        (message, "twice"),
        (other.clients[2].advertise(), "another sum"),
        (secure.MaskedInput(play.setup.round_id, 2, b""), "another stage"),
        (stranger, "does not take part"),
    ):
        with pytest.raises(SecureMessageError, match=text):
            play.server.receive(bad)
    with pytest.raises(KoinonTypeError, match="no message of a client"):
        play.server.receive(secure.UnmaskRequest(play.setup.round_id, (1,)))
    for client in (3, 4):
        play.server.receive(play.clients[client].advertise())
    requests = play.server.close_stage()
    assert sorted(requests) == [1, 3, 4]
    late = secure.EncryptedShares(play.setup.round_id, 2, bytes(32), {})
    with pytest.raises(SecureMessageError, match="too late before"):
        play.server.receive(late)
    for client, roster in requests.items():
        shares = play.clients[client].share_keys(roster)
        with pytest.raises(SecureMessageError, match="for others than it was asked"):
            play.server.receive(dataclasses.replace(shares, boxes={}))
        play.server.receive(shares)
    for client, delivery in play.server.close_stage().items():
        masked = play.clients[client].mask(delivery, VALUES[client])
        for bad in (masked.masked[1:], b"\xff" * len(masked.masked)):
            with pytest.raises(SecureMessageError, match="masked vector"):
                play.server.receive(dataclasses.replace(masked, masked=bad))
        play.server.receive(masked)
    with pytest.raises(SecureMessageError, match="not at its last stage"):
        play.server.finish()
    for client, request in play.server.close_stage().items():
        play.server.receive(play.clients[client].unmask(request))
    with pytest.raises(SecureMessageError, match="no message after"):
        play.server.close_stage()
    assert play.server.finish().total.tolist() == [5 + 7 + 8, 0 + 20 + 30]
    assert play.server.stage == "done"


@pytest.mark.parametrize("gone", [(), (2,)])
def test_a_wrong_share_aborts_the_sum(gone):
    """Of the own mask and of the key of one who went away; no number comes out."""
    play = Round()
    deliveries = play.to("mask")
    for client in VALUES.keys() - set(gone):
        play.server.receive(play.answer(client, "mask", deliveries[client]))
    answers = {client: play.clients[client].unmask(request) for client, request in play.server.close_stage().items()}
    kind, owner = ("key_shares", 2) if gone else ("self_shares", 3)
    shares = getattr(answers[1], kind)
    answers[1] = dataclasses.replace(answers[1], **{kind: {**shares, owner: shares[owner] ^ 1}})
    for answer in answers.values():
        play.server.receive(answer)
    with pytest.raises(SecureSumAbortedError, match="do not fit together"):
        play.server.finish()
    with pytest.raises(SecureSumAbortedError, match="aborted before"):
        play.server.finish()
    assert play.server.stage == "aborted"


def test_an_aborted_sum_forgets_what_it_received():
    """Too few masked vectors: the server keeps none of them."""
    play = Round()
    deliveries = play.to("mask")
    for client in (1, 2):
        play.server.receive(play.answer(client, "mask", deliveries[client]))
    with pytest.raises(SecureSumAbortedError, match="after the stage `mask`"):
        play.server.close_stage()
    assert not play.server._masked
    with pytest.raises(SecureSumAbortedError):
        play.server.receive(secure.MaskedInput(play.setup.round_id, 3, b""))


def test_masked_numbers_look_like_any_numbers():
    """Whatever a client has, its message is uniform: a chi-square test over 64 classes, for three vectors."""
    length, modulus = 100_000, 2**20 - 3
    setup = secure.Setup([1, 2, 3], modulus=modulus, length=length, threshold=2)
    clients = {client: secure.Client(setup, client) for client in setup.clients}
    server = secure.Server(setup)
    for client in clients.values():
        server.receive(client.advertise())
    for client, roster in server.close_stage().items():
        server.receive(clients[client].share_keys(roster))
    values = {1: np.zeros(length, int), 2: np.full(length, modulus - 1), 3: np.arange(length)}
    masked = {}
    for client, delivery in server.close_stage().items():
        message = clients[client].mask(delivery, values[client])
        words = np.frombuffer(message.masked, np.uint8).reshape(length, 3).astype(np.int64)
        masked[client] = words @ np.array([1, 2**8, 2**16])

        assert chi_square(masked[client], modulus, 64) < 136.0  # the 1 - 1e-7 quantile for 63 degrees of freedom
    # Two clients together are as uniform as one: only all of them tell something.
    assert chi_square((masked[1] + masked[2]) % modulus, modulus, 64) < 136.0


def chi_square(values, modulus, classes):
    """The statistic of equal frequencies over classes of residues of (almost) equal size."""
    edges = [modulus * i // classes for i in range(classes + 1)]
    counts, _ = np.histogram(values, edges)
    expected = len(values) * np.diff(edges) / modulus
    return float(((counts - expected) ** 2 / expected).sum())


def test_keys_are_signed_where_the_server_is_not_trusted():
    """Keys that the server made up, or that are not signed, are refused by clients and by an honest server."""
    signing = {client: secure.SigningKey() for client in VALUES}
    identities = {client: key.public for client, key in signing.items()}
    setup = secure.Setup(VALUES, modulus=10, length=1, threshold=3, active_server=True, identities=identities)
    clients = {client: secure.Client(setup, client, signing[client]) for client in VALUES}
    keys = {client: party.advertise() for client, party in clients.items()}
    made_up = dataclasses.replace(keys[2], mask_key=secure.Client(setup, 2, signing[2]).advertise().mask_key)
    for bad in (made_up, dataclasses.replace(keys[2], signature=b"")):
        with pytest.raises(SecureMessageError, match="not signed by it"):
            clients[1].share_keys(secure.Roster(setup.round_id, {**keys, 2: bad}))
        with pytest.raises(SecureMessageError, match="not signed by it"):
            secure.Server(setup).receive(bad)
    clients[1].share_keys(secure.Roster(setup.round_id, keys))
    for client, key in ((9, signing[1]), (1, None), (1, signing[2])):
        with pytest.raises(KoinonValueError):
            secure.Client(setup, client, key)


class UntrustedRound:
    """A sum of seven clients, of whom all but two are honest, at the stage in which they confirm who is left."""

    def __init__(self):
        everyone = range(7)
        self.signing = {client: secure.SigningKey() for client in everyone}
        identities = {client: key.public for client, key in self.signing.items()}
        self.setup = secure.Setup(everyone, modulus=100, length=1, active_server=True, identities=identities)
        self.clients = {client: secure.Client(self.setup, client, self.signing[client]) for client in everyone}
        self.server = secure.Server(self.setup)
        for client in self.clients.values():
            self.server.receive(client.advertise())
        for client, roster in self.server.close_stage().items():
            self.server.receive(self.clients[client].share_keys(roster))
        for client, delivery in self.server.close_stage().items():
            self.server.receive(self.clients[client].mask(delivery, [client]))

    def list_for(self, without=()):
        """What the server tells a client of those that are left."""
        return secure.ConfirmRequest(self.setup.round_id, tuple(c for c in self.clients if c not in without))


def test_clients_that_are_told_different_lists_give_no_shares():
    """So a server with a third at its side cannot make the sum be of two honest clients, 3 and 4, where 5 must be left.

    Each of the lists has enough clients, and each of the clients 0 to 2 is missing in three of them; with those of its
    own two, the server would have five shares of their keys, and of no client shares of both secrets.
    """
    sum_ = UntrustedRound()
    missing = {0: {1, 2}, 1: {0, 2}, 2: {0, 1}, 3: {0, 1}, 4: {2}}
    signatures = {c: sum_.clients[c].confirm(sum_.list_for(gone)).signature for c, gone in missing.items()}
    for client, gone in missing.items():
        survivors = sum_.list_for(gone).survivors
        # Its own two clients sign whatever the server likes; the others have signed once.
        signed = {c: signatures[c] for c, others in missing.items() if others == gone}
        signed |= {c: sum_.signing[c].sign(list_to_sign(sum_.server._session, survivors)) for c in (5, 6)}
        with pytest.raises(SecureRequestRefusedError, match="Too few clients confirm"):
            sum_.clients[client].unmask(secure.UnmaskRequest(sum_.setup.round_id, survivors, signed))
        with pytest.raises(SecureMessageError, match="did not sign the list"):
            sum_.clients[client].unmask(secure.UnmaskRequest(sum_.setup.round_id, survivors, signatures))
        with pytest.raises(SecureRequestRefusedError, match="others as left"):
            sum_.clients[client].unmask(secure.UnmaskRequest(sum_.setup.round_id, tuple(sum_.clients)))


def test_the_server_takes_signatures_under_its_list_alone():
    """One under another list, or by another client, is refused; with the right ones the sum is exact."""
    sum_ = UntrustedRound()
    requests = sum_.server.close_stage()
    other = sum_.clients[0].confirm(sum_.list_for({6}))
    with pytest.raises(SecureMessageError, match="did not sign the list"):
        sum_.server.receive(other)
    confirmations = {c: sum_.clients[c].confirm(requests[c]) for c in range(1, 7)}
    with pytest.raises(SecureMessageError, match="did not sign the list"):
        sum_.server.receive(dataclasses.replace(confirmations[1], sender=0))
    for confirmation in confirmations.values():
        sum_.server.receive(confirmation)
    for client, request in sum_.server.close_stage().items():
        sum_.server.receive(sum_.clients[client].unmask(request))

    assert sum_.server.finish().total.tolist() == [21]  # 0 + 1 + ... + 6; the client 0 did not confirm, and is in it


def test_a_trusted_server_asks_for_no_confirmation():
    """The setup says which stages there are."""
    sum_ = Round()
    sum_.to("unmask")

    assert sum_.setup.stages == ("advertise", "share", "mask", "unmask")
    with pytest.raises(SecureRequestRefusedError, match="`confirm` comes once"):
        sum_.clients[1].confirm(secure.ConfirmRequest(sum_.setup.round_id, (1, 2, 3, 4)))


def test_the_parties_print_their_stage_and_no_secret():
    """Neither keys nor numbers."""
    sum_ = Round()
    sum_.to("mask")

    assert repr(sum_.server) == "<Server of 4 clients at stage 'mask', 0 messages>"
    assert repr(sum_.clients[2]) == "<Client 2 at stage 'mask'>"
