"""Sessions, generated from the members of the workspace: `nox -l` lists them.

The environments are those of the `modelfix` command (``.modelfix/environments``), made from the
locks and reused between runs; nox is the front door.
"""

import re
import shutil
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import nox

ROOT = Path(__file__).parent
sys.path.insert(0, str(ROOT / "packages" / "study" / "src"))

from modelfix.environments import EnvironmentFailed, clean_environ, ensure, find_uv  # noqa: E402
from modelfix.workspace import Environment, Member, Workspace, bounds  # noqa: E402

WORKSPACE = Workspace(ROOT)
REPORTS = ROOT / ".modelfix" / "reports"
NO_TESTS = 5  # pytest's exit code when nothing was collected
HOME = "modelfix"  # the environment of the command, and of everything that looks at the whole
ENGINES = "study-engines"  # the command with Ray and submitit
# Environments beside the members': a dependency group of the root, and whose needs it shares.
TOOLS: dict[str, list[str]] = {"dev": [], "docs": ["packages/study/pyproject.toml"]}
# What is tried of the built wheels: extras, and an approach of each framework with quick options.
EXTRAS = ("model,layer,neuron-torch", "neuron-tensorflow", "new")
INSTALLED = {
    "i-repair": ["--set", "iterations=50", "--set", "gamma=[2]"],
    "arachne": ["--set", "population=20", "--set", "generations=10"],
}

nox.options.default_venv_backend = "none"
nox.options.sessions = ["tests"]
nox.options.error_on_external_run = False


def python_of(session: nox.Session, name: str) -> str:
    """Return the Python of an environment, made if need be."""
    try:
        return str(ensure(WORKSPACE, WORKSPACE.environments[name]))
    except EnvironmentFailed as error:
        session.error(str(error))


def run(session: nox.Session, environment: str, *arguments: str, **options) -> None:
    """Run Python with `arguments` in an environment."""
    python = python_of(session, environment)
    session.run(python, *arguments, env=clean_environ(), include_outer_env=False, **options)


def modelfix(session: nox.Session, *arguments: str) -> None:
    """Run the `modelfix` command."""
    run(session, HOME, "-m", "modelfix", *arguments, success_codes=[0])


# -- the product -----------------------------------------------------------------------------------


def _register_fix(name: str, session_name: str) -> None:
    @nox.session(name=session_name, tags=["fix", session_name.rsplit("-", 1)[0]])
    def fix(session: nox.Session) -> None:
        modelfix(session, "fix", "--approach", name, *session.posargs)

    fix.__doc__ = f"Prepare a subject, fix it with {name}, evaluate and print the comparison."


for _member in WORKSPACE.approaches:
    _register_fix(_member.name, _member.session)


@nox.session
def prepare(session: nox.Session) -> None:
    """Prepare a subject: `nox -s prepare -- mnist-lenet5`."""
    modelfix(session, "prepare", *session.posargs)


@nox.session
def evaluate(session: nox.Session) -> None:
    """Evaluate records: `nox -s evaluate -- RECORD_FOLDER ...`."""
    modelfix(session, "evaluate", *session.posargs)


@nox.session
def study(session: nox.Session) -> None:
    """Run a study of `studies/`: `nox -s study -- mnist --engine ray`; default smoke."""
    name, *options = session.posargs or ["smoke"]
    environment = ENGINES if any(option.startswith("--engine") for option in options) else HOME
    file = str(ROOT / "studies" / f"{name}.yaml")
    run(session, environment, "-m", "modelfix", "study", "run", file, *options, success_codes=[0])


@nox.session(name="modelfix")
def command(session: nox.Session) -> None:
    """Run any `modelfix` command: `nox -s modelfix -- approaches`."""
    modelfix(session, *session.posargs)


# -- tests -----------------------------------------------------------------------------------------


def pytest(session: nox.Session, name: str, *arguments: str) -> str:
    """Run an environment's tests and return the path of their JUnit report."""
    report = REPORTS / f"{name}.xml"
    report.unlink(missing_ok=True)
    run(
        session,
        name,
        "-m",
        "pytest",
        "-q",
        f"--junitxml={report}",
        *arguments,
        success_codes=[0, NO_TESTS],
    )
    return str(report)


def tests_of(environment: Environment) -> list[str]:
    """Return what pytest runs in an environment; the command's also runs what crosses packages."""
    crossing = [str(ROOT / "tests")] if environment.name == HOME else []
    return [*environment.tests, *crossing]


def counts(report: Path) -> dict[str, int]:
    """Return how many tests of a JUnit report passed, failed and were skipped."""
    if not report.exists():
        return {"passed": 0, "failed": 1, "skipped": 0}
    suite = ElementTree.parse(report).getroot().find("testsuite")
    total, skipped = int(suite.get("tests")), int(suite.get("skipped"))
    failed = int(suite.get("failures")) + int(suite.get("errors"))
    return {"passed": total - failed - skipped, "failed": failed, "skipped": skipped}


def run_everywhere(session: nox.Session, *arguments: str) -> None:
    """Run the tests of every environment, then print one summary."""
    REPORTS.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict[str, int]] = {}
    for name, environment in WORKSPACE.environments.items():
        session.log(f"tests of {name}")
        crashed = False
        try:
            pytest(session, name, *tests_of(environment), *arguments)
        except nox.command.CommandFailed:
            crashed = True
        results[name] = counts(REPORTS / f"{name}.xml")
        if crashed and not results[name]["failed"]:
            results[name]["failed"] = 1
    total = {
        key: sum(result[key] for result in results.values())
        for key in ("passed", "failed", "skipped")
    }
    width = max(len(name) for name in results)
    print()
    for name, result in results.items():
        line = ", ".join(f"{number} {what}" for what, number in result.items() if number)
        print(f"{name:{width}}  {line or 'no tests'}")
    print()
    print(
        f"{total['passed']} passed, {total['failed']} failed, {total['skipped']} skipped",
        flush=True,
    )
    if total["failed"] or not total["passed"]:
        session.error("some tests failed")


@nox.session
def tests(session: nox.Session) -> None:
    """Run every member's tests, each in its own environment, and what crosses packages."""
    run_everywhere(session, *session.posargs)


@nox.session
def slow(session: nox.Session) -> None:
    """Run the tests that take long."""
    run_everywhere(session, "-m", "slow", *session.posargs)


def _register_tests(environment: Environment) -> None:
    @nox.session(name=f"tests-{environment.name}")
    def member_tests(session: nox.Session) -> None:
        REPORTS.mkdir(parents=True, exist_ok=True)
        pytest(session, environment.name, *tests_of(environment), *session.posargs)

    member_tests.__doc__ = f"Run the tests of the environment {environment.name}."


for _environment in WORKSPACE.environments.values():
    _register_tests(_environment)


@nox.session(name="report-browser")
def report_browser(session: nox.Session) -> None:
    """Click through the HTML report in headless Chromium and compare its statistics."""
    if not (shutil.which("chromium") or shutil.which("chromium-browser")):
        session.skip("no chromium on PATH; install it (Debian: `apt-get install chromium`)")
    REPORTS.mkdir(parents=True, exist_ok=True)
    name = "study-browser"
    pytest(session, name, *WORKSPACE.environments[name].tests, "-m", "slow", *session.posargs)


# -- development -----------------------------------------------------------------------------------


def tools(session: nox.Session, name: str = "dev") -> Path:
    """Install the tools of a dependency group beside the session and return their folder."""
    folder = ROOT / ".modelfix" / "environments" / name
    lock = ROOT / "locks" / f"{name}.txt"
    marker = folder / "made-of.txt"
    made_of = "\n".join([*(member.name for member in WORKSPACE.members), lock.read_text()])
    if not marker.exists() or marker.read_text() != made_of:
        uv = find_uv()
        session.run(
            uv, "venv", "-q", "--clear", "--no-project", "--python", sys.executable, str(folder)
        )
        python = str(folder / "bin" / "python")
        install = [uv, "pip", "install", "-q", "--python", python]
        session.run(*install, "--require-hashes", "-r", str(lock))
        editable = [part for member in WORKSPACE.members for part in ("-e", str(member.folder))]
        session.run(*install, "--no-deps", *editable)
        marker.write_text(made_of)
    return folder / "bin"


@nox.session
def lint(session: nox.Session) -> None:
    """Check style (ruff) and the layers of the packages (import-linter)."""
    folder = tools(session)
    session.run(str(folder / "ruff"), "check", ".")
    session.run(str(folder / "ruff"), "format", "--check", ".")
    session.run(str(folder / "lint-imports"))


@nox.session
def types(session: nox.Session) -> None:
    """Check types (mypy)."""
    folder = tools(session)
    sources = [str(m.folder / "src" / m.import_name) for m in WORKSPACE.members]
    session.run(str(folder / "mypy"), *(s for s in sources if Path(s).is_dir()))


@nox.session
def lock(session: nox.Session) -> None:
    """Refresh the locks: all, or those named after `--`."""
    own = [part for m in WORKSPACE.members for part in ("--no-emit-package", m.distribution)]
    base = [
        find_uv(), "pip", "compile", "--quiet", "--universal", "--python-version", "3.11",
        "--generate-hashes", "--no-header", "--no-annotate", *own,
    ]  # fmt: skip
    for name, environment in WORKSPACE.environments.items():
        if session.posargs and name not in session.posargs:
            continue
        extras = [part for extra in environment.extras for part in ("--extra", extra)]
        source = str(environment.member.folder / "pyproject.toml")
        session.run(*base, source, *extras, "-o", str(WORKSPACE.lock(environment)))
    for name, sources in TOOLS.items():
        if not session.posargs or name in session.posargs:
            lock = str(ROOT / "locks" / f"{name}.txt")
            session.run(*base, *sources, "--group", name, "-o", lock)


@nox.session
def catalogue(session: nox.Session) -> None:
    """Refresh the catalogue of approaches that the command ships, and the subjects' pages."""
    run(session, HOME, "-m", "modelfix.catalogue")
    run(session, HOME, "-m", "modelfix_core.subjects.pages", str(ROOT / "docs" / "subjects"))


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation into .modelfix/site; `nox -s docs -- serve` shows it."""
    folder = tools(session, "docs")
    arguments = session.posargs or ["build", "--strict"]
    environ = {**clean_environ(), "NO_MKDOCS_2_WARNING": "1"}
    session.run(str(folder / "mkdocs"), *arguments, env=environ, include_outer_env=False)


@nox.session(name="docs-examples")
def docs_examples(session: nox.Session) -> None:
    """Run the commands of the documentation and compare their output; `-- --update` writes it."""
    python = tools(session, "docs") / "python"
    modelfix(session, "prepare", "fashion-mini-lenet5", "--home", str(ROOT / "results"))
    script = str(ROOT / "docs" / "tools" / "examples.py")
    session.run(str(python), script, *session.posargs, env=clean_environ(), include_outer_env=False)


@nox.session
def wheels(session: nox.Session) -> None:
    """Build every member into dist/, install the wheels outside the checkout and fix models there.

    Our own members come from dist/ alone, everything else from the package index.
    """
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    session.run(find_uv(), "build", "--quiet", "--all-packages", "--out-dir", str(dist))
    cache = session.run(find_uv(), "cache", "dir", silent=True).strip()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        pins = [f"{m.distribution} @ {_wheel(dist, m).as_uri()}" for m in WORKSPACE.members]
        (place / "pins.txt").write_text("\n".join(pins))
        environ = clean_environ() | {
            "UV_CONSTRAINT": str(place / "pins.txt"),
            "UV_CACHE_DIR": cache,
            "XDG_CACHE_HOME": str(place / "cache"),  # where the command makes its environments
        }
        installed = place / "installed"
        with session.chdir(place):
            new = ["venv", "--quiet", "--no-project", "--python", sys.executable, str(installed)]
            session.run(find_uv(), *new, env=environ)
            python = str(installed / "bin" / "python")
            install = [find_uv(), "pip", "install", "--quiet", "--python", python]
            for extra in EXTRAS:
                session.run(*install, "--dry-run", f"modelfix[{extra}]", env=environ)
            session.run(*install, "modelfix", env=environ)
            for approach, options in INSTALLED.items():
                command = ["fix", "--approach", approach, "--no-attack", *options]
                session.run(str(installed / "bin" / "modelfix"), *command, env=environ)


def _wheel(dist: Path, member: Member) -> Path:
    (wheel,) = dist.glob(f"{member.distribution.replace('-', '_')}-*.whl")
    return wheel


@nox.session
def version(session: nox.Session) -> None:
    """Give all members a version and the bounds that belong to it: `nox -s version -- 0.2.0`."""
    (new,) = session.posargs or session.error("give the version: nox -s version -- 0.2.0")
    for member in WORKSPACE.members:
        path = member.folder / "pyproject.toml"
        text = re.sub(r'^version = ".*"$', f'version = "{new}"', path.read_text(), flags=re.M)
        text = re.sub(r"(modelfix[\w\[\]-]*)>=[\d.]+,<[\d.]+", rf"\g<1>{bounds(new)}", text)
        path.write_text(text)
    stated = WORKSPACE.root / "packages" / "study" / "src" / "modelfix" / "__init__.py"
    stated.write_text(re.sub(r'(__version__ = )".*"', rf'\g<1>"{new}"', stated.read_text()))
    print("next: a section in CHANGELOG.md, nox -s lock, nox -s tests wheels")


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Measure speed as ratios against a baseline in one run: all, or those named after `--`."""
    out = ROOT / ".modelfix" / "benchmarks"
    out.mkdir(parents=True, exist_ok=True)
    modelfix(session, "prepare", "fashion-mini-lenet5", "--home", str(ROOT / "results"))
    for script in sorted((ROOT / "benchmarks").glob("bench_*.py")):
        if session.posargs and script.stem.removeprefix("bench_") not in session.posargs:
            continue
        match = re.search(r"^# environment: (\S+)", script.read_text(), re.MULTILINE)
        if match is None:
            session.error(f"{script}: names no environment (`# environment: NAME`)")
        session.log(f"{script.stem} in {match.group(1)}")
        json = str(out / f"{script.stem}.jsonl")
        run(session, match.group(1), str(script), "--json", json)
