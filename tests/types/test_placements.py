"""The two placements."""

from __future__ import annotations

import copy
import pickle

import pytest

from koinon import _errors as errors
from koinon.types import CLIENTS, SERVER, placement_from_uri


def test_placements_have_the_names_identifiers_and_defaults_of_tff() -> None:
    """A placement knows its name, its identifier and whether its values are all-equal by default."""
    assert (CLIENTS.name, CLIENTS.uri, CLIENTS.default_all_equal) == ("CLIENTS", "clients", False)
    assert (SERVER.name, SERVER.uri, SERVER.default_all_equal) == ("SERVER", "server", True)


def test_placements_print_as_in_tff() -> None:
    """`str` is the name, `repr` shows the identifier."""
    assert (str(CLIENTS), repr(CLIENTS)) == ("CLIENTS", "PlacementLiteral('clients')")
    assert (str(SERVER), repr(SERVER)) == ("SERVER", "PlacementLiteral('server')")


@pytest.mark.parametrize("placement", [CLIENTS, SERVER])
def test_placements_are_singletons(placement) -> None:
    """Copies, pickles and look-ups give the very object."""
    assert copy.copy(placement) is placement
    assert copy.deepcopy([placement])[0] is placement
    assert pickle.loads(pickle.dumps(placement)) is placement
    assert placement_from_uri(placement.uri) is placement


def test_placements_are_equal_by_identifier_only() -> None:
    """Two placements are not equal, nor is a placement equal to its text."""
    assert CLIENTS != SERVER
    assert CLIENTS != "clients"
    assert len({CLIENTS, SERVER, placement_from_uri("clients")}) == 2


@pytest.mark.parametrize("uri", ["CLIENTS", "", "moon", 3, None, []])
def test_unknown_identifiers_are_refused(uri) -> None:
    """There are two placements and no more."""
    with pytest.raises(errors.KoinonValueError, match="no placement with this identifier"):
        placement_from_uri(uri)


def test_placements_are_immutable() -> None:
    """No attribute of a placement can be set or deleted."""
    with pytest.raises(AttributeError, match="immutable"):
        CLIENTS.name = "x"
    with pytest.raises(AttributeError, match="immutable"):
        del CLIENTS.name
