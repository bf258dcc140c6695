"""The `modelfix` command; heavy imports happen inside the commands: help answers at once."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelfix import __version__, own
from modelfix.fix_cli import evaluate, fix
from modelfix.gate_cli import compare
from modelfix.new_approach import new
from modelfix.post_cli import card, post_process
from modelfix.recommend_cli import recommend
from modelfix.study_cli import study

if TYPE_CHECKING:
    from modelfix_core.subject import Subject

DEFAULT_SUBJECT = "fashion-mini-lenet5"
USER_ERROR = 2
INTERRUPTED = 130

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Fix trained classifiers that mispredict, and see what got better and what broke.",
    epilog="Example: modelfix fix --approach arachne --subject fashion-mini-lenet5",
)


app.add_typer(study, name="study")
app.command("post-process")(post_process)
app.command()(card)
app.command()(recommend)
app.command()(compare)
app.command()(fix)
app.command()(new)
app.command()(evaluate)


HomeOption = Annotated[
    Path, typer.Option("--home", envvar="MODELFIX_HOME", help="Where subjects and runs are kept.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
SubjectOption = Annotated[str, typer.Option("--subject", "-s", help="A named or prepared subject.")]
HOME = Path("results")


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        print(f"modelfix {__version__}")
        raise typer.Exit


@app.command()
def approaches(as_json: JsonOption = False) -> None:
    """List the approaches: category, framework, what they need."""
    from modelfix import tables
    from modelfix.catalogue import Catalogue, as_dict

    catalogue = Catalogue()
    if as_json:
        _print_json([as_dict(info) for info in catalogue.infos.values()])
    else:
        tables.approaches(catalogue)
    for broken in catalogue.broken:
        _complain(broken.reason, "warning")


@app.command()
def subjects(home: HomeOption = HOME, as_json: JsonOption = False) -> None:
    """List the subjects with their state: what is prepared, and what the others need."""
    from modelfix_core.subjects.availability import availability
    from modelfix_core.subjects.catalogue import CATALOGUE

    from modelfix import tables
    from modelfix.cells import PREPARED, Home

    folder = Home(home).subjects
    rows = []
    for name, subject in CATALOGUE.items():
        there = availability(subject, folder)
        row = {"name": name, "state": there.state, "how": there.how, "about": subject.summary}
        rows.append(row)
    own = {path.parent.name for path in folder.glob(f"*/{PREPARED}")} - CATALOGUE.keys()
    rows += [
        {"name": name, "state": "ready", "how": f"Prepared in {folder / name}.", "about": "Yours."}
        for name in sorted(own)
    ]
    if as_json:
        _print_json(rows)
    else:
        tables.subjects(rows, folder)


@app.command()
def check(
    subject: SubjectOption = DEFAULT_SUBJECT,
    approach: Annotated[
        list[str] | None, typer.Option("--approach", "-a", help="Default: every approach.")
    ] = None,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Say which approaches can be applied to a subject, before any work."""
    from dataclasses import asdict

    from modelfix import tables
    from modelfix.applicability import applicability
    from modelfix.catalogue import Catalogue

    catalogue = Catalogue()
    infos = [catalogue.find(name) for name in approach] if approach else catalogue.infos.values()
    found = applicability(_load_subject(Path(home), subject), infos, catalogue)
    rows = [asdict(row) for row in found]
    if as_json:
        _print_json(rows)
    else:
        tables.applicability(rows, subject)


@app.command()
def prepare(
    subject: Annotated[str | None, typer.Argument(help="A named subject.")] = None,
    name: own.Name = None,
    model: own.ModelSource = None,
    weights: own.Weights = None,
    data: own.Data = None,
    labels: own.Labels = None,
    classes: own.Classes = None,
    group_column: own.GroupColumn = None,
    risk: own.Risk = None,
    scale: own.Scale = None,
    mean: own.Mean = None,
    std: own.Std = None,
    layout: own.LayoutOption = None,
    history: own.History = None,
    seed: Annotated[int, typer.Option(help="Of splits and training.")] = 0,
    home: HomeOption = HOME,
) -> None:
    """Prepare a named subject, or one of your own model and data.

    Example: modelfix prepare --name mine --model my.onnx --data folder/
    """
    from modelfix_core.errors import ModelfixError

    from modelfix import cells
    from modelfix.runtimes import Runtimes

    place = cells.Home(Path(home).absolute())
    mine = own.Own(
        name, model, weights, data, labels, classes, group_column, risk, scale, mean, std, layout,
        history,
    )  # fmt: skip
    if subject is not None and mine.given:
        raise ModelfixError("give either a named subject or --model with --data, not both.")
    if subject is not None:
        cells.prepare(place, Runtimes(), subject, ["--seed", str(seed)])
    else:
        subject = cells.prepare_own(place, Runtimes(), mine, seed)
    print(f"{place.subject(subject)}")


@app.command()
def explain(
    run: Annotated[Path, typer.Argument(help="Record folder (runs/SUBJECT/ENTRANT/N).")],
    most: Annotated[int, typer.Option(min=1, help="Rows shown of each table.")] = 20,
    pictures: Annotated[bool, typer.Option(help="Draw the pictures.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Show what was blamed and what was changed, with the approach's evidence and pictures.

    The pictures lie in RUN/explanation: the blamed and changed weights, test inputs that are newly
    right and newly wrong, and a contact sheet for each evidence about images.
    """
    from modelfix import tables
    from modelfix.explanation import Explanation
    from modelfix.pictures import draw_all

    explanation = Explanation(run)
    drawn = draw_all(explanation, run / "explanation") if pictures else []
    if as_json:
        content = {**explanation.as_dict(most), "pictures": [str(path) for path in drawn]}
        _print_json(content)
    else:
        tables.explanation(explanation, most, drawn)


@app.command()
def plant(
    subject: SubjectOption = DEFAULT_SUBJECT,
    layer: Annotated[
        str | None, typer.Option(help="Layer to disturb; default the one before the last.")
    ] = None,
    weights: Annotated[int, typer.Option(min=1, help="How many weights to disturb.")] = 1,
    broken: Annotated[
        str, typer.Option(help="Share of the right inputs that must break at least.")
    ] = "5%",
    seed: Annotated[int, typer.Option(help="Of the choice of weights.")] = 0,
    home: HomeOption = HOME,
) -> None:
    """Plant a known fault in a subject's model, so that localisation can be scored."""
    planted = _plant(Path(home), subject, layer, weights, broken, seed)
    print(f"{planted.folder}")


@app.command()
def localise(
    subject: SubjectOption = DEFAULT_SUBJECT,
    approach: Annotated[
        list[str] | None,
        typer.Option("--approach", "-a", help="Default: every approach that localises."),
    ] = None,
    layer: Annotated[
        str | None, typer.Option(help="Layer to disturb; default the one before the last.")
    ] = None,
    weights: Annotated[int, typer.Option(min=1, help="How many weights to disturb.")] = 1,
    broken: Annotated[
        str, typer.Option(help="Share of the right inputs that must break at least.")
    ] = "5%",
    seed: Annotated[int, typer.Option(help="Of the choice of weights and of the fixing.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    seconds: Annotated[
        float | None, typer.Option("--time-limit", help="Seconds for each approach.")
    ] = None,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Plant a fault and score what each approach blames: ranks and precision at k."""
    from modelfix import blame, cells, tables
    from modelfix.catalogue import Catalogue
    from modelfix.runtimes import Runtimes

    infos = blame.localising(Catalogue(), approach)
    planted = _plant(Path(home), subject, layer, weights, broken, seed)
    place, runtimes = cells.Home(Path(home).absolute()), Runtimes()
    rows = [
        blame.score(place, runtimes, planted, info.name, seed=seed, device=device, seconds=seconds)
        for info in infos
    ]
    if as_json:
        _print_json(rows)
    else:
        tables.blame(rows, planted.card)


@app.command()
def doctor(
    subject: Annotated[
        str | None, typer.Option("--subject", "-s", help="Check one prepared subject thoroughly.")
    ] = None,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Check this machine, the environments and the prepared subjects."""
    from modelfix import tables
    from modelfix.doctor import examine

    findings = examine(Path(home).absolute(), subject)
    if as_json:
        _print_json([finding.as_dict() for finding in findings])
    else:
        tables.findings(findings)
    if any(not finding.ok for finding in findings):
        raise typer.Exit(1)


def _load_subject(home: Path, subject: str) -> "Subject":
    from modelfix import cells
    from modelfix.runtimes import Runtimes

    return cells.load_subject(cells.Home(home.absolute()), Runtimes(), subject)


def _plant(
    home: Path, subject: str, layer: str | None, weights: int, broken: str, seed: int
) -> Any:
    """Return the subject with the planted fault, made if need be."""
    from modelfix_core.subjects.planted import prepare_planted

    from modelfix import gate

    return prepare_planted(
        _load_subject(home, subject),
        layer=layer,
        size=weights,
        broken=gate.parse_share(broken, "--broken"),
        seed=seed,
    ).subject


def _print_json(content: Any) -> None:
    print(json.dumps(content, indent=2))


def _complain(message: str, kind: str = "error") -> None:
    print(f"{kind}: {message}", file=sys.stderr)


def main() -> int:
    """Run the command; a user's mistake is one sentence and exit code 2."""
    try:
        code = app(standalone_mode=False)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _explain(error)
    return code if isinstance(code, int) else 0


def _explain(error: Exception) -> int:
    """Print what a user needs to know of `error`; what is no user's mistake is raised again."""
    from modelfix_core.errors import ModelfixError

    from modelfix.cells import AlreadySaid, Interrupted
    from modelfix.environments import EnvironmentFailed

    if hasattr(error, "show") and hasattr(error, "exit_code"):  # typer's own: a wrong option
        error.show()
        return error.exit_code
    if isinstance(error, Interrupted | typer.Abort):
        _complain("interrupted; the same command goes on from here.", "modelfix")
        return INTERRUPTED
    if isinstance(error, AlreadySaid):
        return USER_ERROR
    if isinstance(error, ModelfixError | EnvironmentFailed):
        _complain(str(error))
        return USER_ERROR
    raise error
