"""``modelfix study run | check | status``: a grid of cells from one study file."""

import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from modelfix.grid.plan import Plan

INCOMPLETE = 1
REFRESH = 2.0  # seconds

StudyFile = Annotated[Path, typer.Argument(metavar="STUDY", help="A study file (YAML).")]
HomeOption = Annotated[
    Path, typer.Option("--home", envvar="MODELFIX_HOME", help="Where subjects and runs are kept.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
ParallelOption = Annotated[
    int | None, typer.Option("--parallel", min=1, help="At most so many cells at once.")
]


def run(
    study: StudyFile,
    engine: Annotated[str, typer.Option(help="local, ray or slurm.")] = "local",
    parallel: ParallelOption = None,
    address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster; default: the one this machine is part of.")
    ] = None,
    partition: Annotated[str | None, typer.Option(help="Of Slurm.")] = None,
    store: Annotated[
        str | None,
        typer.Option(help="URL (fsspec) to copy by, where machines share no folder: s3://bucket."),
    ] = None,
    retry: Annotated[
        list[str] | None,
        typer.Option(help="Run complete cells with this outcome again: failure; repeatable."),
    ] = None,
    home: HomeOption = Path("results"),
) -> None:
    """Run a study: entrants x subjects x repetitions; the same command goes on where it was.

    Example: modelfix study run studies/smoke.yaml
    """
    from modelfix_core.approach import Outcome

    from modelfix.cells import Interrupted
    from modelfix.grid import engines, status
    from modelfix.grid.display import Display
    from modelfix.grid.run import StudyRun
    from modelfix.runtimes import Runtimes

    again = _outcomes(Outcome, retry or [])
    plan = _plan(study, home, store)
    folder = str(plan.folder / "slurm")
    chosen = engines.make(
        engine, parallel=parallel, address=address, partition=partition, folder=folder
    )
    signal.signal(signal.SIGTERM, _interrupt)
    running = StudyRun(plan)
    try:
        cells = running.prepare(Runtimes(), again)
        with Display(plan, running.standings, chosen.slots) as display:
            running.watch = display
            running.run(cells, chosen)
    except KeyboardInterrupt:
        raise Interrupted from None
    _show(plan, running.standings)
    if any(one.state not in status.COMPLETE for one in running.standings.values()):
        raise typer.Exit(INCOMPLETE)


def check(
    study: StudyFile,
    parallel: ParallelOption = None,
    home: HomeOption = Path("results"),
    as_json: JsonOption = False,
) -> None:
    """List a study's cells before anything runs: what applies, what is needed, how long it takes.

    Example: modelfix study check studies/icse26.yaml
    """
    import json

    from modelfix.grid import checking
    from modelfix.grid.engines.local import Local

    plan = _plan(study, home)
    found = checking.look(plan, Local(parallel).slots)
    if as_json:
        print(json.dumps(found.as_dict(), indent=2))
    else:
        checking.show(found)


def status(
    study: Annotated[
        Path | None,
        typer.Argument(metavar="STUDY", help="A study file; default the studies of --home."),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Stay, and show changes as they come.")
    ] = False,
    home: HomeOption = Path("results"),
    as_json: JsonOption = False,
) -> None:
    """Show where the cells of a study stand, also while it runs, on whatever engine."""
    import json

    from modelfix_core.errors import ModelfixError
    from rich.console import Group
    from rich.live import Live

    from modelfix.grid.run import STUDY_FILE
    from modelfix.grid.status import as_rows, matrix, read

    files = [study] if study else sorted((home / "studies").glob(f"*/{STUDY_FILE}"))
    if not files:
        raise ModelfixError(f"{home}: no study was run here; give a study file.")
    plans = [_plan(path, home) for path in files]
    if as_json:
        print(json.dumps([row for plan in plans for row in as_rows(plan, read(plan))], indent=2))
        return
    if watch:
        with Live(auto_refresh=False) as live:
            while True:
                live.update(Group(*(matrix(plan, read(plan)) for plan in plans)), refresh=True)
                time.sleep(REFRESH)
    for plan in plans:
        if len(plans) > 1:
            print(f"{plan.study.name}:")
        _show(plan, read(plan))


def _plan(study: Path, home: Path, store: str | None = None) -> "Plan":
    from modelfix.cells import Home
    from modelfix.grid.plan import Plan
    from modelfix.grid.study import load

    place = Home(home.absolute())
    return Plan(load(study, place), place, store)


def _show(plan: "Plan", standings: dict) -> None:
    """Print the matrix, and why cells failed or have no record."""
    from modelfix.grid.status import State, matrix
    from modelfix.tables import _console

    console = _console()
    console.print(matrix(plan, standings))
    explained = (State.FAILURE, State.TROUBLE)
    for cell, one in standings.items():
        if one.state in explained:
            why = f"{cell.name}: {one.state}: {one.reason}"
            console.print(why, markup=False, highlight=False, soft_wrap=True)


def _outcomes(kind: Any, names: list[str]) -> list:
    from modelfix_core.errors import ModelfixError

    known = [str(outcome).lower() for outcome in kind]
    for name in names:
        if name.lower() not in known:
            raise ModelfixError(f"--retry {name!r}: choose from {', '.join(known)}.")
    return [kind(name.upper()) for name in names]


def _interrupt(*_: object) -> NoReturn:
    """End a run whose machine is told to go down as one that the user interrupts."""
    raise KeyboardInterrupt


def register(study: typer.Typer) -> None:
    """Add the commands to ``modelfix study``."""
    for command in (run, check, status):
        study.command()(command)
