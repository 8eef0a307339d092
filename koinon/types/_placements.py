"""The two places where values live."""

from __future__ import annotations

from typing import Any, Final, NoReturn, final

from koinon._errors import KoinonValueError


@final
class PlacementLiteral:
    """A place where values live: `CLIENTS` or `SERVER`.

    The two literals are singletons, also when copied or pickled, so that they may be compared by identity.

    Attributes:
      name: what the compact notation prints after `@`.
      uri: the lower-case identifier that serialized forms use.
      default_all_equal: whether a type placed here is all-equal unless it says otherwise.

    >>> str(CLIENTS), repr(CLIENTS)
    ('CLIENTS', "PlacementLiteral('clients')")
    """

    __slots__ = ("default_all_equal", "name", "uri")

    name: str
    uri: str
    default_all_equal: bool

    def __init__(self, name: str, uri: str, default_all_equal: bool) -> None:
        for attribute, value in (("name", name), ("uri", uri), ("default_all_equal", default_all_equal)):
            object.__setattr__(self, attribute, value)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"A placement is immutable: cannot set `{name}`.")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"A placement is immutable: cannot delete `{name}`.")

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"PlacementLiteral({self.uri!r})"

    def __eq__(self, other: object) -> bool:
        return self.uri == other.uri if isinstance(other, PlacementLiteral) else NotImplemented

    def __hash__(self) -> int:
        return hash(("PlacementLiteral", self.uri))

    def __copy__(self) -> PlacementLiteral:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> PlacementLiteral:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return placement_from_uri, (self.uri,)


CLIENTS: Final = PlacementLiteral("CLIENTS", "clients", default_all_equal=False)
SERVER: Final = PlacementLiteral("SERVER", "server", default_all_equal=True)

_BY_URI = {placement.uri: placement for placement in (CLIENTS, SERVER)}


def placement_from_uri(uri: str) -> PlacementLiteral:
    """Returns the placement with this identifier.

    Args:
      uri: `"clients"` or `"server"`.

    Raises:
      KoinonValueError: if there is no such placement.

    >>> placement_from_uri("server") is SERVER
    True
    """
    placement = _BY_URI.get(uri) if isinstance(uri, str) else None
    if placement is None:
        raise KoinonValueError(
            "There is no placement with this identifier.", expected="'clients' or 'server'", found=repr(uri)
        )
    return placement
