"""``modelfix fix`` and ``modelfix evaluate``."""

import json
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelfix import own

if TYPE_CHECKING:
    from modelfix_core.job import Job

    from modelfix.cells import Cell, Home
    from modelfix.gate import Limits
    from modelfix.runtimes import Runtimes

DEFAULT_SUBJECT = "fashion-mini-lenet5"
AUTO = "auto"
NONE_PASSED = 1
AUTOMATIC = "With --approach auto"


class Corrupted(StrEnum):
    """How a fall of accuracy is measured against the limit of 10."""

    POINTS = "points"
    RELATIVE = "relative"


HomeOption = Annotated[
    Path, typer.Option("--home", envvar="MODELFIX_HOME", help="Where subjects and runs are kept.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]
Attacked = Annotated[int, typer.Option(min=1, help="Inputs that the attack tries.")]
Attack = Annotated[bool, typer.Option(help="Measure adversarial robustness (ASR).")]
HOME = Path("results")


def _limit(help_text: str) -> Any:
    return typer.Option(metavar="SHARE", help=help_text, rich_help_panel=AUTOMATIC)


def fix(
    approach: Annotated[
        str,
        typer.Option(
            "--approach",
            "-a",
            help="Its name or abbreviation; auto tries all that apply and keeps the best.",
        ),
    ],
    subject: Annotated[
        str, typer.Option("--subject", "-s", help="A named or prepared subject.")
    ] = DEFAULT_SUBJECT,
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
    preset: Annotated[str, typer.Option(help="A preset of the approach.")] = "default",
    option: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="An option of the approach; repeatable."),
    ] = None,
    repetitions: Annotated[int, typer.Option("--repetitions", "-r", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="The first of all draws.")] = 0,
    device: Device = "cpu",
    time_limit: Annotated[
        str | None,
        typer.Option(help="Of one repetition (with auto: of everything), such as 90s or 10m."),
    ] = None,
    memory: Annotated[
        float | None, typer.Option("--memory-limit", help="GiB for one repetition.")
    ] = None,
    corrupted: Annotated[
        Corrupted,
        typer.Option(help="Fall of accuracy that counts as CORRUPTED: 10 points or 10 %."),
    ] = Corrupted.POINTS,
    attacked: Attacked = 1000,
    attack: Attack = True,
    keep: Annotated[
        str,
        typer.Option(
            rich_help_panel=AUTOMATIC,
            help="What must not get worse on the validation split: accuracy, fairness, "
            "compatibility (NFR); with commas.",
        ),
    ] = "accuracy",
    max_nfr: Annotated[
        str | None, _limit("Largest negative flip rate allowed; to keep compatibility: 1%.")
    ] = None,
    max_accuracy_loss: Annotated[
        str | None, _limit("Largest fall of accuracy allowed; to keep accuracy: 0%.")
    ] = None,
    max_slice_loss: Annotated[
        str | None, _limit("Largest fall of accuracy allowed on any one class or group.")
    ] = None,
    max_aaod_rise: Annotated[
        str | None, _limit("Largest rise of the odds difference allowed; to keep fairness: 0%.")
    ] = None,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Fix a subject, or your own model on your own data, and compare before and after.

    Example: modelfix fix --approach arachne --subject mnist-lenet5 --repetitions 3
    """
    from modelfix_core.errors import ModelfixError
    from modelfix_core.job import Job
    from modelfix_core.subjects.catalogue import CATALOGUE

    from modelfix import cells, gate, tables
    from modelfix.catalogue import Catalogue
    from modelfix.runtimes import Runtimes

    automatic = approach == AUTO
    if automatic and (option or preset != "default" or repetitions != 1):
        raise ModelfixError(
            "--approach auto takes every approach as it is: leave out --set, --preset and "
            "--repetitions."
        )
    limits = gate.parse_limits(max_nfr, max_accuracy_loss, max_slice_loss, max_aaod_rise)
    kept = _keep(keep)
    seconds = None if time_limit is None else _seconds(time_limit)
    info = None if automatic else Catalogue().find(approach)
    place, runtimes = cells.Home(Path(home).absolute()), Runtimes()
    config = _options(option or [])
    mine = own.Own(
        name, model, weights, data, labels, classes, group_column, risk, scale, mean, std, layout,
        history,
    )  # fmt: skip
    if mine.given:
        subject = cells.prepare_own(place, runtimes, mine)
    elif subject in CATALOGUE:
        cells.prepare(place, runtimes, subject)
    else:
        cells.load_subject(place, runtimes, subject)

    def job(approach: str, seconds: float | None, repetition: int = 1) -> Job:
        entrant = cells.entrant_name(approach, preset, config)
        return Job(
            approach=approach,
            preset=preset,
            config=config,
            subject=place.subject(subject),
            record=place.record(subject, entrant, repetition),
            repetition=repetition,
            seed=seed,
            device=device,
            seconds=seconds,
            memory=None if memory is None else int(memory * 1024**3),
            corrupted=corrupted.value,
        )

    settings = _settings(device, attacked, attack)
    if info is None:
        _auto(place, runtimes, subject, kept, limits, job, seconds, settings, as_json)
        return
    results = [
        cells.fix(place, runtimes, job(info.name, seconds, repetition))
        for repetition in range(1, repetitions + 1)
    ]
    _evaluate(runtimes, results, place.subject(subject), settings)
    if as_json:
        _print_json([_cell_json(cell) for cell in results])
    else:
        tables.comparison(results, info)


def _auto(
    place: "Home",
    runtimes: "Runtimes",
    name: str,
    kept: Sequence[Any],
    limits: "Limits",
    job: "Callable[[str, float | None], Job]",
    seconds: float | None,
    settings: list[str],
    as_json: bool,
) -> None:
    """Search for the best model, evaluate it on the test split; exit code 1 if none passes."""
    import sys

    from modelfix_core.subject import Subject

    from modelfix import auto, cells, tables

    subject = Subject.load(place.subject(name))
    limits = auto.limits_for(kept, limits, subject)
    names, left_out = auto.order(place, subject, kept, hurry=seconds is not None)

    def report(line: str) -> None:
        print(f"modelfix: {line}", file=sys.stderr, flush=True)

    found = auto.search(place, runtimes, subject, names, limits, job, seconds, report)
    best = found.best
    chosen = []
    if best is not None and best.folder is not None and best.record is not None:
        chosen = [cells.Cell(best.folder, best.record, best.reused)]
        _evaluate(runtimes, chosen, subject.folder, settings)
    if as_json:
        content = {
            "trials": [trial.as_dict() for trial in found.trials],
            "left_out": left_out,
            "best": None if not chosen else _cell_json(chosen[0]),
        }
        _print_json(content)
    else:
        tables.search(found, left_out, name)
        if chosen:
            tables.comparison(chosen)
    if best is None:
        raise typer.Exit(NONE_PASSED)


def evaluate(
    records: Annotated[list[Path], typer.Argument(help="Record folders (runs/SUBJECT/ENTRANT/N).")],
    device: Device = "cpu",
    attacked: Attacked = 1000,
    attack: Attack = True,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Evaluate records on the test split; metrics that are complete are reused."""
    from modelfix_core.record import Record

    from modelfix import cells, tables
    from modelfix.runtimes import Runtimes

    place, runtimes = cells.Home(Path(home).absolute()), Runtimes()
    results = [cells.Cell(path.absolute(), Record.load(path), True) for path in records]
    settings = _settings(device, attacked, attack)
    for subject in sorted({cell.record.subject for cell in results}):
        of_subject = [cell for cell in results if cell.record.subject == subject]
        _evaluate(runtimes, of_subject, place.subject(subject), settings)
    if as_json:
        _print_json([_cell_json(cell) for cell in results])
    else:
        tables.comparison(results)


def _settings(device: str, attacked: int, attack: bool) -> list[str]:
    """Return the arguments of the evaluation."""
    return ["--device", device, "--attacked", str(attacked), *([] if attack else ["--no-attack"])]


def _evaluate(
    runtimes: "Runtimes", results: list["Cell"], subject: Path, settings: list[str]
) -> None:
    """Evaluate the cells that have a fixed model, and put the new records in their place."""
    from dataclasses import replace

    from modelfix import cells

    fixed = [i for i, cell in enumerate(results) if (cell.folder / "fixed.onnx").exists()]
    if not fixed:
        return
    records = cells.evaluate(runtimes, [results[i].folder for i in fixed], subject, settings)
    for i, record in zip(fixed, records, strict=True):
        results[i] = replace(results[i], record=record)


def _seconds(text: str) -> float:
    from modelfix.recommending import parse_duration  # which imports what statistics need

    return parse_duration(text, "--time-limit")


def _keep(text: str) -> list[Any]:
    """Read what is to be kept, with commas."""
    from modelfix_core.errors import ModelfixError

    from modelfix.gate import Keep

    names = [part.strip() for part in text.split(",") if part.strip()]
    for name in names:
        if name not in list(Keep):
            raise ModelfixError(f"--keep {name!r}: choose from {', '.join(Keep)}.")
    return [Keep(name) for name in dict.fromkeys(names)]


def _options(pairs: list[str]) -> dict[str, Any]:
    """Read ``key=value`` pairs; values are JSON where they parse as such, text otherwise."""
    from modelfix_core.errors import ModelfixError

    options: dict[str, Any] = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign or not key:
            raise ModelfixError(f"--set {pair!r}: expected KEY=VALUE, such as --set alpha=5.")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    return options


def _cell_json(cell: "Cell") -> dict[str, Any]:
    return {
        "folder": str(cell.folder),
        "reused": cell.reused,
        **json.loads(cell.record.model_dump_json()),
    }


def _print_json(content: Any) -> None:
    print(json.dumps(content, indent=2))
