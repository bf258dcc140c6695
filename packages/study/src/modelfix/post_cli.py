"""``modelfix post-process`` and ``modelfix card``: what follows a fix."""

import json
from pathlib import Path
from typing import Annotated

import typer

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def post_process(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Evaluated records (runs/SUBJECT/ENTRANT/N) of one entrant."),
    ],
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            "-m",
            help="sv, hv, up, ud, us (default: these), us-paper, us-labelled, us-weight.",
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="UP, UD: passes.")] = 10,
    noise: Annotated[float, typer.Option(help="UP: standard deviation of the noise.")] = 0.01,
    space: Annotated[
        str, typer.Option(help="UP: add the noise to the pixel or the model input.")
    ] = "pixel",
    own_noise: Annotated[
        bool, typer.Option("--own-noise", help="UP: noise of its own for each model.")
    ] = False,
    dropout: Annotated[float, typer.Option(help="UD: share of the features dropped.")] = 0.2,
    layer: Annotated[
        str | None, typer.Option(help="UD: the dense layer after the dropout; default the last.")
    ] = None,
    seed: Annotated[int, typer.Option(help="UP, UD: of the draws.")] = 0,
    eot: Annotated[
        bool, typer.Option("--eot", help="UP, UD: the attack draws anew in every step.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    attacked: Annotated[int, typer.Option(min=1, help="Inputs that the attack tries.")] = 1000,
    attack: Annotated[bool, typer.Option(help="Measure adversarial robustness (ASR).")] = True,
    picture: Annotated[bool, typer.Option(help="Draw the picture.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Combine the original and the fixed model to soften side effects, and evaluate that.

    One record per method, beside the run: runs/SUBJECT/ENTRANT+METHOD/N. Parameters are fitted to
    the validation split. The picture is runs/SUBJECT/ENTRANT/side-effects.png.

    Example: modelfix post-process results/runs/mnist-lenet5/hudd/1 --method sv
    """
    from modelfix_core.record import Record
    from modelfix_metrics.combining import DEFAULT_METHODS

    from modelfix import cells, fix_card, side_effects, tables
    from modelfix.explanation import subject_folder
    from modelfix.runtimes import Runtimes

    methods = list(dict.fromkeys(name.lower() for name in method or DEFAULT_METHODS))
    runs = [run.absolute() for run in runs]
    columns = {side_effects.NONE: [Record.load(run) for run in runs]}
    side_effects.same_entrant(runs, columns[side_effects.NONE])
    settings = [
        f"--samples={samples}", f"--noise={noise}", f"--space={space}", f"--dropout={dropout}",
        *(["--own-noise"] if own_noise else []), *([f"--layer={layer}"] if layer else []),
        f"--seed={seed}", *(["--eot"] if eot else []), f"--device={device}",
        f"--attacked={attacked}", *([] if attack else ["--no-attack"]),
    ]  # fmt: skip
    subject = subject_folder(runs[0], columns[side_effects.NONE][0])
    made = cells.post_process(Runtimes(), runs, subject, methods, settings)
    for place, name in enumerate(methods):
        folders = [of_run[place] for of_run in made]
        columns[name.upper()] = [Record.load(folder) for folder in folders]
        for folder, record in zip(folders, columns[name.upper()], strict=True):
            if record.evaluation is not None:
                fix_card.write(folder)
    drawn = runs[0].parent / side_effects.PICTURE
    if picture:
        side_effects.draw(columns, drawn)
    if as_json:
        content = {
            name: [json.loads(record.model_dump_json()) for record in records]
            for name, records in columns.items()
        }
        print(json.dumps(content, indent=2))
        return
    written = [folder / "record.json" for of_run in made for folder in of_run]
    tables.side_effects(columns, [*written, *([drawn] if picture else [])])


def card(
    run: Annotated[Path, typer.Argument(help="Record folder (runs/SUBJECT/ENTRANT/N).")],
) -> None:
    """Write the fix card of a record again: what was fixed, how, what got better, what broke."""
    from modelfix import fix_card

    print(f"{fix_card.write(run)}")
