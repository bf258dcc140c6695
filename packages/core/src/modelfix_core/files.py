"""Atomic files: a reader sees the old content or the new one, never a half-written one."""

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from modelfix_core.errors import ModelfixError

LEFTOVER = re.compile(r"\..+\.[a-z0-9_]{8}")  # as `atomic_path` names its temporary files


@contextlib.contextmanager
def explain_write_errors(target: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write `target` into one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise ModelfixError(
                f"{target}: the disk is full ({os.strerror(error.errno)}); free some space or "
                "choose another folder, then run the same command again."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise ModelfixError(
                f"{target}: cannot be written ({os.strerror(error.errno)}); choose a folder in "
                "which you may write."
            ) from error
        raise


@contextlib.contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Give a temporary path beside `target`; rename it to `target` if the block succeeds.

    Raises
    ------
    ModelfixError
        If the folder cannot be written or the disk is full; `target` is then untouched.
    """
    target = Path(target)
    with explain_write_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o644)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that writers killed in the middle have left in `folder`.

    Nobody else may be writing there.
    """
    for path in Path(folder).glob(".*"):
        if path.is_file() and LEFTOVER.fullmatch(path.name):
            path.unlink(missing_ok=True)


def write_text(target: Path, text: str) -> None:
    """Write `text` to `target` atomically."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(target: Path, data: bytes) -> None:
    """Write `data` to `target` atomically."""
    with atomic_path(target) as temporary:
        temporary.write_bytes(data)


def replace_folder(source: Path, target: Path) -> None:
    """Put the finished folder `source` in the place of `target`."""
    with explain_write_errors(target):
        old = target.with_name(f".{target.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            target.replace(old)
        source.replace(target)
        shutil.rmtree(old, ignore_errors=True)
