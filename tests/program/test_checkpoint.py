"""Program states on disk: what was saved survives faults, and what is damaged is never taken for sound."""

from __future__ import annotations

import errno
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from koinon._errors import (
    ProgramStateCorruptedError,
    ProgramStateExistsError,
    ProgramStateNotFoundError,
    ProgramStateStructureError,
    ProgramStateWriteError,
    UnsupportedTypeError,
)
from koinon.program import FileProgramStateManager, ProgramStateManager

LIKE = {"round": 0, "w": np.zeros(100)}


def state(number: int) -> dict[str, Any]:
    """A state that tells which one it is."""
    return {"round": number, "w": np.full(100, float(number))}


def saved(root: pathlib.Path, *versions: int, **options: Any) -> FileProgramStateManager:
    """A manager of a directory in which the given versions are saved."""
    manager = FileProgramStateManager(root, **options)
    for version in versions:
        manager.save(state(version), version)
    return manager


def flip(path: pathlib.Path, bit: int) -> None:
    """Flips one bit of a file."""
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(data)


def test_it_is_a_program_state_manager(tmp_path: pathlib.Path) -> None:
    """The class has the methods of the protocol."""
    assert isinstance(FileProgramStateManager(tmp_path), ProgramStateManager)


def test_nothing_saved_is_none_and_zero(tmp_path: pathlib.Path) -> None:
    """An empty directory has no versions, and its latest state is `(None, 0)`."""
    manager = FileProgramStateManager(tmp_path / "new" / "directory")
    assert manager.get_versions() is None
    assert manager.load_latest(LIKE) == (None, 0)


def test_a_state_is_loaded_by_version_and_as_the_latest(tmp_path: pathlib.Path) -> None:
    """Another manager, as after a restart, loads what the first has saved."""
    saved(tmp_path, 0, 1, 10, 2)
    manager = FileProgramStateManager(tmp_path)
    assert manager.get_versions() == [0, 1, 2, 10]
    loaded, version = manager.load_latest(LIKE)
    assert version == 10
    np.testing.assert_equal(loaded, state(10))
    np.testing.assert_equal(manager.load(2, LIKE), state(2))


def test_a_state_of_jax_values_goes_on_with_the_same_numbers(tmp_path: pathlib.Path) -> None:
    """A restored PRNG key makes the same random numbers, and a restored array is a JAX array."""
    original = {"key": jax.random.key(3), "w": jnp.ones(2, jnp.bfloat16)}
    manager = FileProgramStateManager(tmp_path)
    manager.save(original, 1)
    restored = manager.load(1, original)
    assert isinstance(restored["w"], jax.Array)
    assert restored["w"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(jax.random.normal(restored["key"], (3,)), jax.random.normal(original["key"], (3,)))


def test_a_version_that_is_not_saved_is_an_error(tmp_path: pathlib.Path) -> None:
    """The error says which versions there are."""
    manager = saved(tmp_path, 1, 2)
    with pytest.raises(ProgramStateNotFoundError, match=r"version 3 .*\n.*\[1, 2\]"):
        manager.load(3, LIKE)
    with pytest.raises(ProgramStateNotFoundError, match="version 4"):
        manager.remove(4)


def test_a_version_is_saved_once(tmp_path: pathlib.Path) -> None:
    """Saving a version again is an error and changes nothing."""
    manager = saved(tmp_path, 1)
    with pytest.raises(ProgramStateExistsError, match="version 1"):
        manager.save(state(9), 1)
    np.testing.assert_equal(manager.load(1, LIKE), state(1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"root_dir": ""}, "root_dir"),
        ({"prefix": "a/b"}, "prefix"),
        ({"keep_every_k": 0}, "keep_every_k"),
    ],
)
def test_impossible_options_are_refused(tmp_path: pathlib.Path, arguments: dict[str, Any], message: str) -> None:
    """An empty directory name, a prefix with directories, and a period of zero are errors."""
    with pytest.raises(ValueError, match=message):
        FileProgramStateManager(**{"root_dir": tmp_path, **arguments})


@pytest.mark.parametrize("version", [-1, 1.5, "1"])
def test_versions_are_non_negative_integers(tmp_path: pathlib.Path, version: Any) -> None:
    """Other versions are refused before anything is written."""
    with pytest.raises((ValueError, TypeError)):
        FileProgramStateManager(tmp_path).save(state(0), version)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "versions", "kept"),
    [
        ({}, range(10), [0, 6, 7, 8, 9]),
        ({"keep_first": False}, range(10), [5, 6, 7, 8, 9]),
        ({"keep_total": 0}, range(10), [*range(10)]),
        ({"keep_total": 1}, range(4), [3]),
        ({"keep_total": 2}, range(4), [0, 3]),
        ({"keep_total": 3, "keep_every_k": 4}, range(15), [0, 12, 14]),
        ({"keep_total": 0, "keep_every_k": 4}, range(1, 15), [1, 4, 8, 12, 14]),
        ({"keep_total": 2, "keep_every_k": 4, "keep_first": False}, range(15), [12, 14]),
    ],
)
def test_old_versions_are_removed(tmp_path: pathlib.Path, options: Any, versions: Any, kept: list[int]) -> None:
    """The latest stays, then the first, then the newest of those that the period divides, up to the total."""
    assert saved(tmp_path, *versions, **options).get_versions() == kept


def test_all_versions_can_be_removed(tmp_path: pathlib.Path) -> None:
    """Removing one or all leaves other files alone."""
    manager = saved(tmp_path, 1, 2, 3)
    (tmp_path / "notes").write_text("keep me")
    manager.remove(2)
    assert manager.get_versions() == [1, 3]
    manager.remove_all()
    assert os.listdir(tmp_path) == ["notes"]


STRAY_NAMES = [
    *("program_state_1_0", "program_state_01", "program_state_", "program_state_-1", "program_state_9.0"),
    *("program_state_latest~", "program_state_ 9", "program_state_\u0669", "_temp1", "01", "1_0", "latest~"),
    "xprogram_state_9",
]


@pytest.mark.parametrize("name", STRAY_NAMES)
def test_stray_names_are_no_versions(tmp_path: pathlib.Path, name: str) -> None:
    """Files and directories whose names only resemble a version are ignored, and left alone."""
    (tmp_path / name).write_bytes(b"stray")
    (tmp_path / "program_state_77").mkdir()
    manager = saved(tmp_path, 3)
    assert manager.get_versions() == [3]
    assert manager.load_latest(LIKE)[1] == 3
    assert (tmp_path / name).read_bytes() == b"stray"


def damage_by_flip(path: pathlib.Path) -> None:
    flip(path, 1234)


def damage_by_truncation(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def damage_by_emptying(path: pathlib.Path) -> None:
    path.write_bytes(b"")


def damage_by_exchange(path: pathlib.Path) -> None:
    shutil.copy(path.with_name("program_state_1"), path)


DAMAGES = [damage_by_flip, damage_by_truncation, damage_by_emptying, damage_by_exchange]


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_newest_sound_version_is_loaded_and_the_damage_told(tmp_path: pathlib.Path, damage: Any) -> None:
    """A damaged version is passed over with a warning that names it; loading it by its number is an error."""
    manager = saved(tmp_path, 1, 2, 3)
    damage(tmp_path / "program_state_3")
    with pytest.warns(RuntimeWarning, match=r"Loaded program state 2 .*version 3: "):
        loaded, version = manager.load_latest(LIKE)
    assert version == 2
    np.testing.assert_equal(loaded, state(2))
    with pytest.raises(ProgramStateCorruptedError):
        manager.load(3, LIKE)


def test_a_program_that_fell_back_can_save_the_damaged_version_again(tmp_path: pathlib.Path) -> None:
    """The damaged file is replaced, and the program is as if nothing had happened."""
    manager = saved(tmp_path, 1, 2)
    damage_by_flip(tmp_path / "program_state_2")
    manager.save(state(2), 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert manager.load_latest(LIKE)[1] == 2


def test_a_program_never_starts_over_silently(tmp_path: pathlib.Path) -> None:
    """If all versions are damaged, the latest state is an error, and not `(None, 0)`."""
    manager = saved(tmp_path, 1, 2)
    damage_by_flip(tmp_path / "program_state_1")
    damage_by_emptying(tmp_path / "program_state_2")
    with pytest.raises(ProgramStateCorruptedError, match=r"every one is damaged(.|\n)*version 2: (.|\n)*version 1: "):
        manager.load_latest(LIKE)


def test_a_state_of_another_structure_is_not_passed_over(tmp_path: pathlib.Path) -> None:
    """A program that was changed is told so, and does not go on from an older state that happens to fit."""
    manager = saved(tmp_path, 1)
    manager.save({"round": 2, "w": np.zeros(101)}, 2)
    with pytest.raises(ProgramStateStructureError, match=r"differs at \.w"):
        manager.load_latest(LIKE)


def test_a_file_that_cannot_be_opened_is_not_passed_over(tmp_path: pathlib.Path, monkeypatch: Any) -> None:
    """Errors that may pass, like too many open files, are raised; an unreadable disk counts as damage."""
    manager = saved(tmp_path, 1, 2)
    code, real_open = errno.EMFILE, open

    def failing_open(path: Any, *arguments: Any, **options: Any) -> Any:
        if str(path).endswith("program_state_2"):
            raise OSError(code, os.strerror(code))
        return real_open(path, *arguments, **options)

    monkeypatch.setattr("builtins.open", failing_open)
    with pytest.raises(OSError, match="Too many open files"):
        manager.load_latest(LIKE)
    code = errno.EIO
    with pytest.warns(RuntimeWarning, match="Input/output error"):
        assert manager.load_latest(LIKE)[1] == 1


def assert_flips_are_found(tmp_path: pathlib.Path, flips: int) -> None:
    manager = saved(tmp_path, 1, 2)
    path = tmp_path / "program_state_2"
    rng = np.random.default_rng(0)
    for bit in rng.integers(path.stat().st_size * 8, size=flips).tolist():
        flip(path, bit)
        with pytest.warns(RuntimeWarning, match="version 2"):
            assert manager.load_latest(LIKE)[1] == 1
        flip(path, bit)
    assert manager.load_latest(LIKE)[1] == 2


def test_every_flipped_bit_is_found(tmp_path: pathlib.Path) -> None:
    """Whichever bit of the newest file is flipped, the one before is loaded."""
    assert_flips_are_found(tmp_path, 300)


@pytest.mark.soak
def test_ten_thousand_flipped_bits_are_found(tmp_path: pathlib.Path) -> None:
    """The same at the size of the reliability plan."""
    assert_flips_are_found(tmp_path, 10_000)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts descriptors in /proc")
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES, errno.EDQUOT])
@pytest.mark.parametrize("call", ["open", "write", "fsync", "close", "replace"])
def test_a_failing_system_call_leaves_the_previous_state(
    tmp_path: pathlib.Path, monkeypatch: Any, call: str, code: int
) -> None:
    """Whichever call of a save fails, and however often it worked before, the save can be repeated."""
    manager = saved(tmp_path, 1)
    descriptors = open_descriptors()
    real = getattr(os, call)
    failures = 0
    while failures < 100:
        remaining = failures

        def failing(*arguments: Any, **options: Any) -> Any:
            nonlocal remaining
            if remaining == 0:
                if call == "close":
                    real(*arguments, **options)
                raise OSError(code, os.strerror(code))
            remaining -= 1
            return real(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, failing)
            try:
                manager.save(state(2), 2)
                break
            except ProgramStateWriteError as raised:
                error = raised
        failures += 1
        assert error.errno == code
        assert os.strerror(code) in str(error)
        assert manager.load_latest(LIKE)[1] == 1
        assert open_descriptors() == descriptors
        manager.save(state(2), 2)
        assert sorted(os.listdir(tmp_path)) == ["program_state_1", "program_state_2"]
        manager.remove(2)
    # The file and its directory are opened, synchronized and closed; the contents may take any number of writes.
    assert failures == {"open": 2, "fsync": 2, "close": 2, "replace": 1}.get(call, failures)
    assert 0 < failures < 100
    assert open_descriptors() == descriptors


def test_short_writes_are_continued(tmp_path: pathlib.Path, monkeypatch: Any) -> None:
    """A system that writes few bytes at a time gets the rest again."""
    real_write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, data: real_write(descriptor, data[:7]))
        manager = saved(tmp_path, 1)
    np.testing.assert_equal(manager.load(1, LIKE), state(1))


def test_a_state_that_cannot_be_saved_leaves_no_file(tmp_path: pathlib.Path) -> None:
    """An unsupported leaf is an error before anything has a name."""
    with pytest.raises(UnsupportedTypeError, match=r"\.b"):
        FileProgramStateManager(tmp_path).save({"a": np.ones(3), "b": object()}, 1)
    assert os.listdir(tmp_path) == []


def test_temporary_files_of_a_crash_are_swept(tmp_path: pathlib.Path, monkeypatch: Any) -> None:
    """What a killed save has left goes with the next save; other hidden files stay."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
        patch.setattr(os, "unlink", lambda *_: None)  # as if the process had died: nothing is cleaned up
        with pytest.raises(ProgramStateWriteError):
            saved(tmp_path, 1)
    (tmp_path / ".hidden.tmp").touch()
    assert len(os.listdir(tmp_path)) == 2
    manager = saved(tmp_path, 2)
    assert sorted(os.listdir(tmp_path)) == [".hidden.tmp", "program_state_2"]
    assert manager.get_versions() == [2]


def test_a_full_disk_leaves_the_previous_state(tmp_path: pathlib.Path) -> None:
    """With a real limit on the size of files, the save fails and the state before it stays."""
    manager = saved(tmp_path, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(ProgramStateWriteError) as caught:
            manager.save({"round": 2, "w": np.zeros(10_000)}, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert os.listdir(tmp_path) == ["program_state_1"]
    assert manager.load_latest(LIKE)[1] == 1


def run_program(root: pathlib.Path, rounds: int) -> None:
    """A program whose state depends on every round, and that goes on from its latest state."""
    manager = FileProgramStateManager(root, keep_total=3)
    current, version = manager.load_latest(PROGRAM_STATE)
    current = PROGRAM_STATE if current is None else current
    for number in range(version + 1, rounds + 1):
        current = {"sum": np.sin(current["sum"] + number)}
        manager.save(current, number)


PROGRAM_STATE = {"sum": np.zeros(50_000)}


def kill_programs(root: pathlib.Path, kills: int, rounds: int = 40) -> None:
    """Kills a program at random moments until it is through, again and again."""
    rng = np.random.default_rng(0)
    attempt = 0
    while kills > 0:
        attempt += 1
        status = -1
        while status != 0:
            child = os.fork()
            if child == 0:
                run_program(root / str(attempt), rounds)
                os._exit(0)
            if kills > 0:
                time.sleep(rng.uniform(0, 0.1))
                os.kill(child, signal.SIGKILL)
                kills -= 1
            status = os.waitpid(child, 0)[1]
            assert status in (0, signal.SIGKILL), status


def assert_kills_do_no_harm(root: pathlib.Path, kills: int) -> None:
    """Compares programs that were killed with the same arithmetic done in one go."""
    # In a process of its own, because this one has the threads of JAX, and should not fork.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, __file__, str(root), str(kills)], check=True, timeout=600, env=environment)
    expected, rounds = PROGRAM_STATE["sum"], 40
    for number in range(1, rounds + 1):
        expected = np.sin(expected + number)
    for attempt in root.iterdir():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            final, version = FileProgramStateManager(attempt).load_latest(PROGRAM_STATE)
        assert version == rounds
        np.testing.assert_array_equal(final["sum"], expected)


def test_a_program_that_is_killed_ends_as_if_it_had_not_been(tmp_path: pathlib.Path) -> None:
    """SIGKILL at random moments, also within saves, costs rounds but never a bit of the result."""
    assert_kills_do_no_harm(tmp_path, 20)


@pytest.mark.soak
def test_two_hundred_kills_do_no_harm(tmp_path: pathlib.Path) -> None:
    """The same at the size of the reliability plan."""
    assert_kills_do_no_harm(tmp_path, 200)


if __name__ == "__main__":
    kill_programs(pathlib.Path(sys.argv[1]), int(sys.argv[2]))
