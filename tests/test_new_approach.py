"""A contributor's first hour: `modelfix new`, its lock, its session, its tests, in a copy."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from modelfix.environments import clean_environ


@pytest.fixture
def checkout(root, tmp_path, home, modelfix):
    """A copy of the workspace as it is, with the default subject."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=root, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    copy = tmp_path / "checkout"
    for name in filter(lambda name: (root / name).is_file(), listed):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, copy / name)
    assert modelfix("prepare", "fashion-mini-lenet5").returncode == 0
    shutil.copytree(home / "subjects", copy / "results" / "subjects")
    return copy


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["torch", "tensorflow"])
def test_a_new_approach_works_from_the_start(checkout, framework):
    nox = Path(sys.executable).with_name("nox")

    def session(name, *arguments):
        command = [nox, "-s", name, "--", *arguments]
        done = subprocess.run(
            command, cwd=checkout, env=clean_environ(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout

    session("modelfix", "new", "neuron", "my-approach", "--framework", framework)
    session("lock", "my-approach")
    session("tests-my-approach")
    said = session("fix-neuron-my-approach", "--no-attack")
    assert "My Approach (neuron-level) on fashion-mini-lenet5" in said
    assert "FIXED" in said
    session("catalogue")
    session("tests-modelfix", "-k", "test_workspace or test_new or test_wheels")
