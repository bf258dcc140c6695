import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from modelfix.environments import EnvironmentFailed, clean_environ, ensure
from modelfix.workspace import Workspace

ROOT = """
[tool.uv]
python-downloads = "never"
[tool.uv.workspace]
members = ["packages/core", "packages/approaches-*/*"]
[tool.uv.sources]
base-things = { workspace = true }
"""
MEMBER = """
[build-system]
requires = ["uv_build>=0.9,<0.14"]
build-backend = "uv_build"
[project]
name = "{name}"
version = "0.1.0"
dependencies = {dependencies}
{more}
"""


def member(folder, name, dependencies="[]", more=""):
    module = folder / "src" / name.replace("-", "_")
    module.mkdir(parents=True)
    (module / "__init__.py").write_text("where = __file__\n")
    text = MEMBER.format(name=name, dependencies=dependencies, more=more)
    (folder / "pyproject.toml").write_text(text)


@pytest.fixture
def workspace(tmp_path):
    (tmp_path / "pyproject.toml").write_text(ROOT)
    (tmp_path / "locks").mkdir()
    parts = '[tool.modelfix.environments]\nbase = []\nbase-extra = ["more"]'
    member(tmp_path / "packages" / "core", "base-things", more=parts)
    member(tmp_path / "packages" / "approaches-layer" / "patch", "patch-things", '["base-things"]')
    for name in ("base", "base-extra", "patch"):
        (tmp_path / "locks" / f"{name}.txt").write_text("")
    return Workspace(tmp_path)


def test_members_categories_and_closures(workspace):
    core, patch = workspace.members
    assert (core.category, patch.category) == (None, "layer")
    assert (core.session, patch.session) == (None, "fix-layer-patch")
    assert workspace.approaches == [patch]
    assert list(workspace.environments) == ["base", "base-extra", "patch"]
    closure = workspace.closure(workspace.environments["patch"])
    assert [m.name for m in closure] == ["patch", "core"]


def test_tests_of_a_part_lie_in_a_folder_of_its_name():
    checkout = Workspace.find()
    core, torch = (checkout.environments[name] for name in ("core", "core-torch"))
    tests = core.member.folder / "tests"
    assert torch.tests == [str(tests / "torch")]
    assert core.tests[0] == str(tests)
    assert f"--ignore={tests / 'torch'}" in core.tests
    metrics = checkout.environments["metrics"]
    assert metrics.tests == [str(metrics.member.folder / "tests")]


def test_environment_is_made_once_and_again_when_stale(workspace, capfd):
    environment = workspace.environments["patch"]
    with ThreadPoolExecutor(2) as pool:  # two at once must not break it
        first, second = pool.map(lambda _: ensure(workspace, environment), range(2))
    assert first == second
    made = "making the environment patch"
    assert capfd.readouterr().err.count(made) == 1
    code = "import patch_things, base_things; print(patch_things.where)"
    done = subprocess.run(
        [first, "-c", code], env=clean_environ(), capture_output=True, text=True, check=True
    )
    assert str(workspace.root) in done.stdout
    ensure(workspace, environment)
    assert made not in capfd.readouterr().err
    workspace.lock(environment).write_text("# changed\n")
    ensure(workspace, environment)
    assert made in capfd.readouterr().err


def test_interrupted_making_is_started_again(workspace):
    environment = workspace.environments["patch"]
    python = ensure(workspace, environment)
    (python.parents[1] / "modelfix.json").unlink()
    assert ensure(workspace, environment) == python
    subprocess.run([python, "-c", "import base_things"], env=clean_environ(), check=True)


def test_missing_lock_is_said(workspace):
    workspace.lock(workspace.environments["base"]).unlink()
    with pytest.raises(EnvironmentFailed, match="nox -s lock"):
        ensure(workspace, workspace.environments["base"])


def test_failed_install_is_said(workspace):
    environment = workspace.environments["base"]
    workspace.lock(environment).write_text(
        "no-such-package-of-ours==1 --hash=sha256:" + "0" * 64 + "\n"
    )
    with pytest.raises(EnvironmentFailed, match="no-such-package-of-ours"):
        ensure(workspace, environment)


def test_environment_of_a_process_does_not_leak(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setenv("VIRTUAL_ENV", "/elsewhere")
    environ = clean_environ()
    assert "PYTHONPATH" not in environ
    assert "VIRTUAL_ENV" not in environ
    assert sys.executable
