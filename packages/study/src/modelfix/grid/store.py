"""A store of subjects and records for machines that share no folder: any file system of fsspec.

It has the layout of a home. A record or subject is there once its card is, which is written last.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from filelock import FileLock
from modelfix_core.errors import ModelfixError
from modelfix_core.files import atomic_path, explain_write_errors, replace_folder
from modelfix_core.record import FILE
from modelfix_core.subject import CARD_FILE

from modelfix.cells import Home


class Store:
    """Copies folders of a home to and from a URL such as ``s3://bucket/study``.

    Parameters
    ----------
    url : str
    home : Home

    Raises
    ------
    ModelfixError
        If fsspec, or what it needs for the URL, is not installed.
    """

    def __init__(self, url: str, home: Home) -> None:
        try:
            from fsspec.core import url_to_fs

            self._files, self._root = url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise ModelfixError(f"the store {url} cannot be opened ({error}).") from None
        self.url, self.home = url, home

    def push_subject(self, name: str) -> None:
        """Copy a prepared subject into the store, unless this very one is there."""
        self._push(self.home.subject(name), CARD_FILE)

    def pull_subject(self, name: str) -> None:
        """Copy a subject here, unless it is here."""
        folder = self.home.subject(name)
        with explain_write_errors(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{name}.store.lock")):
            if not (folder / CARD_FILE).exists():
                self._pull(folder, CARD_FILE)

    def push_record(self, record: Path) -> None:
        """Copy a record into the store, in the place of an older one."""
        self._push(record, FILE)

    def pull_record(self, record: Path) -> None:
        """Copy a record here if the store has another one than there is here."""
        there = self._read(record, FILE)
        if there is not None and there != _content(record / FILE):
            self._pull(record, FILE)

    def _push(self, folder: Path, card: str) -> None:
        content = _content(folder / card)
        if content is None or content == self._read(folder, card):
            return
        place = self._place(folder)
        with self._explained():
            if self._files.exists(f"{place}/{card}"):
                self._files.rm(f"{place}/{card}")
            kept = set()
            for path in sorted(folder.rglob("*")):
                name = path.relative_to(folder).as_posix()
                if path.is_file() and name != card:
                    self._put(path, f"{place}/{name}")
                    kept.add(name)
            self._put(folder / card, f"{place}/{card}")
            for name in self._names(place) - kept - {card}:
                self._files.rm(f"{place}/{name}")

    def _put(self, path: Path, target: str) -> None:
        self._files.makedirs(target.rpartition("/")[0], exist_ok=True)
        self._files.put_file(str(path), target)

    def _pull(self, folder: Path, card: str) -> None:
        place, partial = self._place(folder), folder.with_name(f".{folder.name}.pulled")
        shutil.rmtree(partial, ignore_errors=True)
        with self._explained():
            for name in sorted(self._names(place)):
                if ".." in PurePosixPath(name).parts:
                    raise ModelfixError(f"{self.url}: {name!r} is no path inside a folder.")
                with atomic_path(partial / name) as temporary:
                    self._files.get_file(f"{place}/{name}", str(temporary))
        if (partial / card).exists():
            replace_folder(partial, folder)

    def _names(self, place: str) -> set[str]:
        found = self._files.find(place)
        return {path[path.index(place) + len(place) + 1 :] for path in found}

    def _place(self, folder: Path) -> str:
        return f"{self._root}/{folder.relative_to(self.home.root).as_posix()}"

    def _read(self, folder: Path, card: str) -> bytes | None:
        with self._explained():
            try:
                return self._files.cat_file(f"{self._place(folder)}/{card}")
            except FileNotFoundError:
                return None

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (ModelfixError, FileNotFoundError):
            raise
        except Exception as error:  # those of the file systems share no public base class
            reason = f"{type(error).__name__}: {error}"
            raise ModelfixError(f"{self.url}: cannot be used as a store ({reason}).") from error


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
