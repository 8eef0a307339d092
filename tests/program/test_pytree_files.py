"""Released values in files of their own: what comes back, what a mistake says, what damage does."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from koinon.errors import ProgramStateCorruptedError, ProgramStateStructureError, ReleasedValueNotFoundError
from koinon.program import PytreeFileReleaseManager, ReleaseManager, load_pytree

VALUE = {"key": jax.random.key(3), "w": (jnp.arange(3, dtype=jnp.bfloat16), np.float64([[1.5]]))}


def test_a_value_comes_back_as_it_was(tmp_path: pathlib.Path) -> None:
    """By number or name, with its dtypes, in the containers that are asked for; the newest under its key."""
    manager = PytreeFileReleaseManager(tmp_path / "models", prefix="m_")
    manager.release({"w": np.zeros(1)}, 10)
    manager.release(VALUE, 10)
    manager.release(np.int32(7), "final")
    found = PytreeFileReleaseManager(tmp_path / "models", prefix="m_").get_value(10, VALUE)

    assert isinstance(manager, ReleaseManager)
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["m_10", "m_final"]
    assert jax.tree.structure(found) == jax.tree.structure(VALUE)
    assert jax.random.key_data(found["key"]).tolist() == jax.random.key_data(VALUE["key"]).tolist()
    assert [(leaf.dtype, leaf.tolist()) for leaf in found["w"]] == [
        (jnp.bfloat16, [0, 1, 2]),
        (np.float64, [[1.5]]),
    ]
    assert load_pytree(tmp_path / "models" / "m_final") == manager.get_value("final") == 7


def test_what_is_not_there_or_damaged_or_another_is_an_error(tmp_path: pathlib.Path) -> None:
    """Each with its own class; the first names the keys that there are."""
    manager = PytreeFileReleaseManager(tmp_path)
    with pytest.raises(ReleasedValueNotFoundError, match="no values at all"):
        manager.get_value(1)
    manager.release({"w": np.zeros(2)}, 3)
    with pytest.raises(ReleasedValueNotFoundError, match="keys 3"):
        manager.get_value(1)
    with pytest.raises(ProgramStateStructureError):
        manager.get_value(3, {"w": np.zeros(4)})
    file = tmp_path / "release_3"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ProgramStateCorruptedError):
        manager.get_value(3)


@pytest.mark.parametrize(
    "mistake",
    [
        lambda root: PytreeFileReleaseManager(""),
        lambda root: PytreeFileReleaseManager(root, prefix="a/b"),
        lambda root: PytreeFileReleaseManager(root).release(1, "../up"),
        lambda root: PytreeFileReleaseManager(root).get_value(""),
    ],
)
def test_names_do_not_lead_out_of_the_directory(tmp_path: pathlib.Path, mistake: Any) -> None:
    """Empty paths, and separators in a prefix or a key, are refused."""
    with pytest.raises(ValueError, match=r"path of a directory|without directories"):
        mistake(tmp_path / "root")

    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
