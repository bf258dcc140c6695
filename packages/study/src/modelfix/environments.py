"""Isolated environments, made by uv from the committed locks or from the package index.

Standard library only, because the noxfile uses it before anything is installed.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from modelfix import __version__
from modelfix.workspace import Environment, Workspace

MARKER = "modelfix.json"


class EnvironmentFailed(Exception):
    """An environment could not be made; the message says which and why."""


def ensure(workspace: Workspace, environment: Environment) -> Path:
    """Return the Python of an environment of the checkout; make it if it is missing or stale.

    Parameters
    ----------
    workspace : Workspace
    environment : Environment

    Returns
    -------
    Path
        Of the Python interpreter.
    """
    members = workspace.closure(environment)
    lock = workspace.lock(environment)
    if not lock.exists():
        raise EnvironmentFailed(
            f"{lock}: the lock of environment {environment.name} is missing; make it with "
            "`nox -s lock`."
        )
    editable = [argument for member in members for argument in ("-e", str(member.folder))]
    steps = [
        ["--require-hashes", "-r", str(lock)],
        ["--no-deps", *editable],
    ]
    texts = [
        lock.read_text(),
        *((member.folder / "pyproject.toml").read_text() for member in members),
    ]
    folder = workspace.root / ".modelfix" / "environments" / environment.name
    return _ensure(folder, steps, _digest(texts))


def ensure_published(distribution: str, extras: str = "") -> Path:
    """Return the Python of an environment with a published member of this version."""
    requirement = f"{distribution}{extras}=={__version__}"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = f"{distribution}{extras}-{__version__}".replace("[", "-").replace("]", "")
    return _ensure(cache / "modelfix" / "environments" / name, [[requirement]], requirement)


def _digest(texts: list[str]) -> str:
    return hashlib.sha256("\0".join([*texts, sys.version]).encode()).hexdigest()


def _ensure(folder: Path, steps: list[list[str]], digest: str) -> Path:
    python = folder / "bin" / "python"
    with _locked(folder):
        if _ready(folder, digest) and python.exists():
            return python
        print(f"modelfix: making the environment {folder.name} (once)", file=sys.stderr, flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        _uv("venv", "--quiet", "--no-project", "--python", sys.executable, str(folder))
        for step in steps:
            _uv("pip", "install", "--quiet", "--python", str(python), *step)
        (folder / MARKER).write_text(json.dumps({"digest": digest}))
    return python


def _ready(folder: Path, digest: str) -> bool:
    try:
        return json.loads((folder / MARKER).read_text())["digest"] == digest
    except (OSError, ValueError, KeyError):
        return False


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Two processes that make one environment at the same time would break it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def find_uv() -> str:
    """Return the path of uv: the one installed beside this Python, else the one on PATH."""
    try:
        from uv import find_uv_bin

        return find_uv_bin()
    except (ImportError, FileNotFoundError):
        path = shutil.which("uv")
    if path is None:
        raise EnvironmentFailed("uv is missing; install it with `pip install uv`.")
    return path


def clean_environ() -> dict[str, str]:
    """Return this process's environment without what would leak its Python into another's."""
    leaks = {"VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "__PYVENV_LAUNCHER__"}
    return {key: value for key, value in os.environ.items() if key not in leaks}


def _uv(*arguments: str) -> None:
    environ = clean_environ() | {"UV_PYTHON_DOWNLOADS": "never"}
    done = subprocess.run(
        [find_uv(), *arguments], env=environ, stderr=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise EnvironmentFailed(
            f"`uv {' '.join(arguments)}` failed (network, disk space or an unsupported platform): "
            f"{done.stderr.strip()[-2000:]}"
        )
