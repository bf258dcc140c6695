"""What crosses packages is tested in the environment of the command, from outside."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from modelfix.environments import clean_environ
from modelfix.workspace import Workspace

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def workspace() -> Workspace:
    return Workspace(ROOT)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the end-to-end tests keep subjects and runs."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def modelfix(home: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command as a user does and return what it printed."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "modelfix", *map(str, arguments)]
        environ = clean_environ() | {"MODELFIX_HOME": str(home), "COLUMNS": "160"}
        return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)

    return run
