"""Program states on disk: saved whole or not at all, and never mistaken for one another."""

from __future__ import annotations

import contextlib
import errno
import operator
import os
import re
import warnings
from typing import Any, Protocol, runtime_checkable

from koinon._errors import ProgramStateCorruptedError, ProgramStateExistsError, ProgramStateNotFoundError
from koinon.program._atomic import make_directory, temporary_target, write_atomically
from koinon.program._container import container_chunks, decode_container


@runtime_checkable
class ProgramStateManager(Protocol):
    """Saves and loads the state of a program, so that a program that was stopped goes on where it was."""

    def get_versions(self) -> list[int] | None:
        """The saved versions in ascending order; None if nothing is saved."""
        ...

    def load(self, version: int, structure: Any) -> Any:
        """The state saved as `version`, in the containers of `structure`."""
        ...

    def load_latest(self, structure: Any) -> tuple[Any, int]:
        """The newest state that can be loaded and its version; `(None, 0)` if nothing is saved."""
        ...

    def save(self, state: Any, version: int) -> None:
        """Saves `state` as `version`."""
        ...


class FileProgramStateManager:
    """Keeps program states in a directory, one checksummed file per version.

    A save is atomic and durable: a program or a machine that dies at any moment leaves every version that was saved,
    and either the whole new one or nothing of it. A file that was damaged since is found by its checksum, and
    `load_latest` then goes back to the newest version that is whole, and says so. Files of other names in the
    directory are left alone. One program at a time may save to a directory; any number may load.

    The latest version is always kept. Of the others, those that `keep_every_k` divides are kept, and of these the
    newest, so that with the latest and the first there are `keep_total`.

    Example:
      >>> import tempfile, numpy as np
      >>> manager = FileProgramStateManager(tempfile.mkdtemp())
      >>> manager.load_latest({"w": np.zeros(2)})
      (None, 0)
      >>> manager.save({"w": np.ones(2)}, version=1)
      >>> manager.load_latest({"w": np.zeros(2)})
      ({'w': array([1., 1.])}, 1)
    """

    def __init__(
        self,
        root_dir: str | os.PathLike[str],
        prefix: str = "program_state_",
        keep_total: int = 5,
        keep_first: bool = True,
        keep_every_k: int = 1,
    ) -> None:
        """Makes the directory if it does not exist.

        Args:
          root_dir: the directory.
          prefix: what the names of the files start with; the version follows.
          keep_total: how many versions to keep; zero or less for no limit.
          keep_first: whether the first version is kept too, for example because it holds the initial weights.
          keep_every_k: keep only versions that this divides, besides the latest and the first; 1 for all.

        Raises:
          ValueError: if `root_dir` is empty, `prefix` holds a path separator, or `keep_every_k` is less than one.
        """
        if not os.fspath(root_dir):
            raise ValueError("`root_dir` must be the path of a directory, and is empty.")
        if os.path.basename(prefix) != prefix:
            raise ValueError(f"`prefix` must be the beginning of a file name, without directories; found {prefix!r}.")
        if keep_every_k < 1:
            raise ValueError(f"`keep_every_k` must be at least 1; found {keep_every_k}.")
        self._root_dir = os.path.abspath(os.fspath(root_dir))
        self._prefix = prefix
        self._keep_total = keep_total
        self._keep_first = keep_first
        self._keep_every_k = keep_every_k
        # Digits without leading zeros: `int` alone would also read `1_0` and `01` as versions.
        self._name = re.compile(re.escape(prefix) + r"(0|[1-9][0-9]*)", re.ASCII)
        make_directory(self._root_dir)

    def get_versions(self) -> list[int] | None:
        """The saved versions, damaged ones too, in ascending order; None if nothing is saved."""
        with os.scandir(self._root_dir) as entries:
            matches = [self._name.fullmatch(entry.name) for entry in entries if entry.is_file()]
        return sorted(int(match[1]) for match in matches if match is not None) or None

    def load(self, version: int, structure: Any) -> Any:
        """The state saved as `version`.

        Args:
          version: the version.
          structure: a pytree with the fields, shapes and dtypes of the saved state; its containers are those of the
            result, and a leaf comes back as what `structure` has there (see `pytree_from_bytes`).

        Returns:
          The state.

        Raises:
          ProgramStateNotFoundError: if `version` is not saved.
          ProgramStateCorruptedError: if its file is damaged.
          ProgramStateStructureError: if the saved state has other fields, shapes or dtypes than `structure`.
        """
        return self._read(operator.index(version), structure)

    def load_latest(self, structure: Any) -> tuple[Any, int]:
        """The newest state that is whole, and its version.

        Versions that are damaged are passed over with a `RuntimeWarning` that names them and says why. A state of
        another structure is not passed over: it is what the program saved.

        Args:
          structure: as for `load`.

        Returns:
          The state and its version; `(None, 0)` if no version is saved.

        Raises:
          ProgramStateCorruptedError: if versions are saved and all of them are damaged. A program that started over
            at this point would overwrite what might still be rescued.
          ProgramStateStructureError: as for `load`.
        """
        failures: list[str] = []
        for version in reversed(self.get_versions() or []):
            try:
                state = self._read(version, structure)
            except ProgramStateCorruptedError as error:
                failures.append(f"version {version}: {error.what}")
                continue
            except ProgramStateNotFoundError:
                # Another program has removed it since the directory was listed.
                continue
            if failures:
                warnings.warn(
                    f"Loaded program state {version} from {self._root_dir!r}, because later ones are damaged: "
                    + " ".join(failures),
                    RuntimeWarning,
                    stacklevel=2,
                )
            return state, version
        if failures:
            raise ProgramStateCorruptedError(
                f"Program states are saved in {self._root_dir!r}, and every one is damaged.",
                found=" ".join(failures),
                hint="restore the directory from a backup, or remove its files to start over",
            )
        return None, 0

    def save(self, state: Any, version: int) -> None:
        """Saves `state` as `version`, and removes the versions that are not to be kept.

        A damaged file of this version is replaced.

        Args:
          state: a pytree; see `pytree_to_bytes` for what it may hold.
          version: a non-negative integer, larger for later states.

        Raises:
          ProgramStateExistsError: if `version` is saved already.
          ProgramStateWriteError: if the operating system refuses; the versions saved before are untouched.
          UnsupportedTypeError: if `state` has a leaf that cannot be saved.
        """
        version = operator.index(version)
        if version < 0:
            raise ValueError(f"A version must not be negative; found {version}.")
        self._sweep()
        path = self._path(version)
        if os.path.exists(path) and self._is_sound(version):
            raise ProgramStateExistsError(
                f"A program state of version {version} is saved already in {self._root_dir!r}.",
                hint="save under the next version, or call `remove` first",
            )
        write_atomically(path, container_chunks(state, {"version": version}))
        self._remove_old(version)

    def remove(self, version: int) -> None:
        """Removes a saved version.

        Raises:
          ProgramStateNotFoundError: if `version` is not saved.
        """
        try:
            os.unlink(self._path(operator.index(version)))
        except FileNotFoundError:
            raise self._not_found(version) from None

    def remove_all(self) -> None:
        """Removes all saved versions."""
        for version in self.get_versions() or []:
            self.remove(version)

    def _path(self, version: int) -> str:
        return os.path.join(self._root_dir, f"{self._prefix}{version}")

    def _read(self, version: int, structure: Any) -> Any:
        try:
            with open(self._path(version), "rb") as file:
                data = file.read()
        except FileNotFoundError:
            raise self._not_found(version) from None
        except OSError as error:
            # A disk that cannot read a file back has damaged it; other errors may pass, and are not for hiding.
            if error.errno != errno.EIO:
                raise
            raise ProgramStateCorruptedError(f"The disk cannot read the file: {error}.") from error
        metadata, state = decode_container(data, structure)
        if metadata.get("version") != version:
            raise ProgramStateCorruptedError(
                "The file was saved as another version and has been renamed.",
                expected=f"version {version}",
                found=f"version {metadata.get('version')}",
            )
        return state

    def _is_sound(self, version: int) -> bool:
        try:
            self._read(version, None)
        except ProgramStateCorruptedError:
            return False
        return True

    def _remove_old(self, saved: int) -> None:
        versions = self.get_versions() or []
        kept = {saved, *versions[-1:]}
        if self._keep_first and self._keep_total != 1:
            kept.update(versions[:1])
        others = [version for version in versions if version % self._keep_every_k == 0 and version not in kept]
        if self._keep_total > 0:
            room = max(0, self._keep_total - len(kept))
            others = others[max(0, len(others) - room) :]
        for version in set(versions) - kept - set(others):
            try:
                os.unlink(self._path(version))
            except OSError as error:
                warnings.warn(f"Program state {version} could not be removed: {error}", RuntimeWarning, stacklevel=3)

    def _sweep(self) -> None:
        """Removes the temporary files of saves that a crash has interrupted."""
        with os.scandir(self._root_dir) as entries:
            names = [entry.name for entry in entries]
        for name in names:
            target = temporary_target(name)
            if target is not None and self._name.fullmatch(target):
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(self._root_dir, name))

    def _not_found(self, version: int) -> ProgramStateNotFoundError:
        return ProgramStateNotFoundError(
            f"No program state of version {version} is saved in {self._root_dir!r}.",
            found=f"versions {self.get_versions() or 'none'}",
        )
