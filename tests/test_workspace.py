"""The house stands: every member complete, every lock host-free, the layers kept apart."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from modelfix import __version__
from modelfix.catalogue import FILE, Catalogue, render
from modelfix.workspace import Workspace, bounds

WORKSPACE = Workspace.find()
MEMBERS = {member.name: member for member in WORKSPACE.members}
FOUNDATION = {"core", "metrics", "stats", "study", "testing"}
VERSION = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)(\[[^\]]*\])?(?P<bounds>[^;]*)")


def test_members_are_those_in_the_folders(root):
    folders = {path.parent.name for path in root.glob("packages/**/pyproject.toml")}
    assert folders == MEMBERS.keys()
    assert folders >= FOUNDATION
    assert len(WORKSPACE.approaches) == len(MEMBERS) - len(FOUNDATION) >= 4


@pytest.mark.parametrize("name", MEMBERS)
def test_member_is_complete(name):
    member = MEMBERS[name]
    for part in ("pyproject.toml", "README.md", "LICENSE"):
        assert (member.folder / part).stat().st_size > 0, part
    assert (member.folder / "src" / member.import_name / "__init__.py").exists()
    assert list((member.folder / "tests").rglob("test_*.py"))
    project = member.project["project"]
    assert project["version"] == __version__
    assert project["license"] == "Apache-2.0"
    assert project["license-files"] == ["LICENSE"]
    licence = (member.folder / "LICENSE").read_text()
    assert licence == (WORKSPACE.root / "LICENSE").read_text()


@pytest.mark.parametrize("name", [member.name for member in WORKSPACE.approaches])
def test_approach_is_complete(name):
    member = MEMBERS[name]
    assert member.distribution == f"modelfix-{name}"
    assert list(member.project["project"]["entry-points"]["modelfix.approaches"]) == [name]
    standard = (member.folder / "tests" / "test_standard.py").read_text()
    assert "ApproachStandardTests" in standard
    assert (member.folder / "tests" / "test_fidelity.py").exists()
    info = Catalogue().infos[name]
    assert info.category == member.category
    benchmarks = [path.read_text() for path in (WORKSPACE.root / "benchmarks").glob("bench_*.py")]
    assert any(f"# environment: {name}\n" in text for text in benchmarks)


def test_every_member_has_its_sessions(root):
    nox = Path(sys.executable).with_name("nox")
    listed = subprocess.run([nox, "-l"], cwd=root, capture_output=True, text=True, check=True)
    sessions = set(re.findall(r"^[*-] (\S+)", listed.stdout, re.MULTILINE))
    assert {member.session for member in WORKSPACE.approaches} <= sessions
    assert {f"tests-{environment}" for environment in WORKSPACE.environments} <= sessions
    assert {"prepare", "evaluate", "tests", "slow", "lint", "types"} <= sessions
    assert {"lock", "wheels", "benchmarks", "catalogue"} <= sessions


@pytest.mark.parametrize("name", WORKSPACE.environments)
def test_lock_is_committed_complete_and_names_no_host(name):
    environment = WORKSPACE.environments[name]
    text = WORKSPACE.lock(environment).read_text()
    assert "--hash=sha256:" in text
    assert not re.search(r"https?://|file:|@ ", text)
    locked = {
        re.split(r"[=\[ ]", line)[0].lower() for line in text.splitlines() if line[:1].isalpha()
    }
    ours = {member.distribution for member in MEMBERS.values()}
    assert not locked & ours
    wanted = set()
    for member in WORKSPACE.closure(environment):
        if member.category is None or member.name == environment.member.name:
            extras = environment.extras if member == environment.member else ()
            wanted |= {name.lower() for name in member.requirements(extras)}
    missing = {w.replace("_", "-") for w in wanted - ours} - {n.replace("_", "-") for n in locked}
    assert not missing, "the lock is stale: nox -s lock"


@pytest.mark.parametrize("name", WORKSPACE.environments)
def test_two_frameworks_never_share_an_environment(name):
    text = WORKSPACE.lock(WORKSPACE.environments[name]).read_text()
    assert not (
        re.search(r"^torch==", text, re.M) and re.search(r"^tensorflow(-cpu)?==", text, re.M)
    )


@pytest.mark.parametrize("name", MEMBERS)
def test_bounds_between_members_hold(name):
    """uv does not check the bounds that members put on each other."""
    ours = {member.distribution: member for member in MEMBERS.values()}
    project = MEMBERS[name].project["project"]
    lines = [*project["dependencies"]]
    lines += [line for extra in project.get("optional-dependencies", {}).values() for line in extra]
    for line in lines:
        match = VERSION.match(line)
        if match["name"] in ours and match["name"] != project["name"]:
            version = ours[match["name"]].project["project"]["version"]
            assert version == __version__
            assert match["bounds"].strip() == bounds(__version__), line


def test_catalogue_is_fresh():
    catalogue = Catalogue()
    assert not catalogue.broken
    fresh = render([catalogue.infos[member.name] for member in WORKSPACE.approaches])
    shipped = WORKSPACE.root / "packages" / "study" / "src" / "modelfix" / FILE
    assert shipped.read_text() == fresh, "refresh it with `nox -s catalogue`"


def test_readme_lists_every_approach(root):
    readme = (root / "README.md").read_text()
    for member in WORKSPACE.approaches:
        info = Catalogue().infos[member.name]
        folder = member.folder.relative_to(root)
        row = f"| [{info.title}]({folder}) | {info.abbreviation} | {info.category} |"
        assert row in readme
        assert f"`nox -s {member.session}`" in readme


def test_layers_name_every_member(root):
    """A member that the contracts forget would be checked by nobody."""
    with (root / "pyproject.toml").open("rb") as file:
        linter = tomllib.load(file)["tool"]["importlinter"]
    names = {member.import_name for member in MEMBERS.values()}
    assert set(linter["root_packages"]) == names
    approaches = {member.import_name for member in WORKSPACE.approaches}
    for contract in linter["contracts"]:
        if contract["name"].startswith("An approach imports core"):
            assert set(contract["source_modules"]) == approaches


@pytest.mark.parametrize("module", ["modelfix.cli", "modelfix_core", "modelfix_metrics"])
def test_light_modules_import_no_framework(module):
    code = f"import sys, {module}; print([m for m in ('torch', 'tensorflow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_loads_nothing_heavy():
    code = (
        "import sys; sys.argv = ['modelfix', '--help']\n"
        "from modelfix.cli import main; main()\n"
        "heavy = {'numpy', 'onnx', 'onnxruntime', 'pyarrow', 'sklearn', 'pydantic', 'torch'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_no_trace_of_a_machine_or_a_registry(root):
    files = subprocess.run(
        ["git", "ls-files"], cwd=root, capture_output=True, text=True, check=False
    ).stdout.split("\n")
    hosts = re.compile(r"py" r"pi\.org|python" r"hosted|npm" r"js\.(org|com)|deb\.deb" r"ian")
    for name in filter(None, files):
        path = root / name
        if (
            path.suffix in {".py", ".md", ".toml", ".txt", ".json", ".yaml", ".yml", ""}
            and path.is_file()
        ):
            assert not hosts.search(path.read_text(errors="ignore")), name
