"""``modelfix compare``: the release gate on the command line."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelfix import own

if TYPE_CHECKING:
    from modelfix_core.model import Model

    from modelfix.gate import Inputs

CLOSED = 1
REPORTS, LIMITS = "Reports", "Limits"


def _limit(help_text: str, *names: str) -> typer.models.OptionInfo:
    return typer.Option(*names, metavar="SHARE", help=help_text, rich_help_panel=LIMITS)


def compare(
    old: Annotated[str, typer.Argument(help="The model in use: ONNX, Keras or a PyTorch factory.")],
    new: Annotated[str, typer.Argument(help="The model that may replace it.")],
    data: own.Data = None,
    subject: Annotated[
        str | None,
        typer.Option("--subject", "-s", help="Instead of --data: a prepared subject's test split."),
    ] = None,
    max_nfr: Annotated[
        str | None, _limit("Largest negative flip rate allowed, such as 0.5%.")
    ] = None,
    max_accuracy_loss: Annotated[
        str, _limit("Largest fall of accuracy allowed, such as 0.1%.")
    ] = "0%",
    max_slice_loss: Annotated[
        str | None, _limit("Largest fall of accuracy allowed on any one class or group.")
    ] = None,
    max_aaod_rise: Annotated[
        str | None, _limit("Largest rise allowed of the odds difference between groups.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            rich_help_panel=REPORTS,
            help="Folder for the comparison, the list of flips and contact sheets of them.",
        ),
    ] = None,
    junit: Annotated[
        Path | None,
        typer.Option(rich_help_panel=REPORTS, help="JUnit file, a test case per limit."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", rich_help_panel=REPORTS, help="Print JSON, not a table.")
    ] = False,
    old_weights: Annotated[
        Path | None, typer.Option(rich_help_panel=own.PANEL, help="State dict of OLD (PyTorch).")
    ] = None,
    new_weights: Annotated[
        Path | None, typer.Option(rich_help_panel=own.PANEL, help="State dict of NEW (PyTorch).")
    ] = None,
    labels: own.Labels = None,
    classes: own.Classes = None,
    group_column: own.GroupColumn = None,
    scale: own.Scale = None,
    mean: own.Mean = None,
    std: own.Std = None,
    layout: own.LayoutOption = None,
    home: Annotated[
        Path, typer.Option("--home", envvar="MODELFIX_HOME", help="Where subjects are kept.")
    ] = Path("results"),
) -> None:
    """Compare two models; exit code 1 if the new one must not be released.

    Example: modelfix compare old.onnx new.onnx --data images/ --max-nfr 0.5% --junit gate.xml
    """
    from modelfix_core.errors import ModelfixError
    from modelfix_core.subject import Subject

    from modelfix import gate, gate_report, tables

    limits = gate.parse_limits(max_nfr, max_accuracy_loss, max_slice_loss, max_aaod_rise)
    if (data is None) == (subject is None):
        raise ModelfixError("give the images to compare on with either --data or --subject.")
    if data is not None:
        names = None if classes is None else [name.strip() for name in classes.split(",")]
        inputs = gate.Inputs.read(data, labels=labels, classes=names, group_column=group_column)
    else:
        inputs = gate.Inputs.of(Subject.load(Path(home) / "subjects" / str(subject)))
    pairs = {"scale": scale, "mean": mean, "std": std, "layout": layout and layout.value}
    conventions = {key: str(value) for key, value in pairs.items() if value is not None}
    in_use, candidate = (
        _open(source, weights, inputs, conventions)
        for source, weights in ((old, old_weights), (new, new_weights))
    )
    answers = gate.Answers.ask(in_use, candidate, inputs)
    verdict = gate.judge(answers, limits)
    written = [] if output is None else gate_report.write_folder(output, verdict, answers)
    if junit is not None:
        gate_report.junit(junit, verdict, answers, f"{Path(old).name} -> {Path(new).name}")
        written.append(junit)
    if as_json:
        print(json.dumps(verdict.as_dict(), indent=2))
    else:
        broken = [inputs.named(position) for position in verdict.newly_broken]
        tables.verdict(verdict, Path(old).name, Path(new).name, broken, written)
    if not verdict.passed:
        raise typer.Exit(CLOSED)


def _open(
    source: str, weights: Path | None, inputs: "Inputs", conventions: Mapping[str, str]
) -> "Model":
    """Return a model of any framework; one that follows the profile is taken as it is."""
    import numpy as np
    from modelfix_core import profile
    from modelfix_core.foreign import COMPARED, kind_of
    from modelfix_core.model import Model, read_file

    from modelfix import cells
    from modelfix.runtimes import Runtimes

    if kind_of(source) == "onnx" and profile.MARK in profile.metadata(read_file(Path(source))):
        return Model.load(source)
    x, y = inputs.split.x, inputs.split.y
    chosen = np.unique(np.linspace(0, len(y) - 1, min(len(y), COMPARED)).astype(int))
    options = [f"--{key}={value}" for key, value in conventions.items()]
    options += [] if weights is None else [f"--weights={weights}"]
    with tempfile.TemporaryDirectory() as folder:
        images, target = Path(folder) / "images.npz", Path(folder) / "model.onnx"
        np.savez(images, x=x[chosen], y=y[chosen])
        cells.convert(Runtimes(), source, images, target, options)
        model = Model.load(target)
    model.name = source
    return model
