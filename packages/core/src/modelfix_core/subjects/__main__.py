"""Prepare a subject: ``python -m modelfix_core.subjects NAME --root FOLDER``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from modelfix_core.errors import ModelfixError
from modelfix_core.foreign import Conventions, numbers
from modelfix_core.subjects.catalogue import CATALOGUE
from modelfix_core.subjects.own import EPSILON, prepare_own
from modelfix_core.subjects.prepare import Prepared, prepare

USER_ERROR = 2
INTERRUPTED = 130
OWN = "own"
PROGRAM = "python -m modelfix_core.subjects"


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare the subject named on the command line; return the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    run = _own if arguments[:1] == [OWN] else _named
    try:
        prepared = run(arguments)
    except ModelfixError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here.", file=sys.stderr)
        return INTERRUPTED
    for note in prepared.subject.card.provenance.get("notes", []):
        print(f"note: {note}.", file=sys.stderr)
    print(_sentence(prepared))
    return 0


def _sentence(prepared: Prepared) -> str:
    card = prepared.subject.card
    state = "complete already" if prepared.reused else f"prepared in {card.seconds['total']:.1f} s"
    return (
        f"{card.name}: {state}, validation accuracy {card.validation_accuracy:.2%}, "
        f"{prepared.subject.folder}"
    )


def _named(arguments: Sequence[str]) -> Prepared:
    listing = "\n".join(f"  {name:24}{s.summary}" for name, s in CATALOGUE.items())
    own = f"{OWN:24}Your own model and data; see `{PROGRAM} {OWN} --help`."
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Prepare a named subject, or reuse it if it is complete.",
        epilog=f"subjects:\n{listing}\n  {own}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", help="one of the subjects below")
    _add_common(parser)
    parser.add_argument("--data", type=Path, help="folder of image files; default MODELFIX_DATA")
    parser.add_argument("--device", default="cpu", help="cpu or cuda; default cpu")
    options = parser.parse_args(arguments)
    return prepare(
        options.name, options.root, data=options.data, device=options.device, seed=options.seed
    )


def _own(arguments: Sequence[str]) -> Prepared:
    parser = _Parser(
        prog=f"{PROGRAM} {OWN}", description="Prepare a subject from your own model and data."
    )
    parser.add_argument("--name", required=True, help="of the subject")
    parser.add_argument(
        "--model", required=True, help="ONNX or Keras file, or module:factory of PyTorch"
    )
    parser.add_argument("--weights", type=Path, help="state dict of the PyTorch module")
    parser.add_argument(
        "--data", type=Path, required=True, help="class folders, NPZ, NPY, or Parquet"
    )
    parser.add_argument("--labels", type=Path, help="CSV or NPY file of labels")
    parser.add_argument("--classes", type=_names, help="names in the order of the model's outputs")
    parser.add_argument("--group-column", help="the sensitive attribute")
    _add_common(parser)
    parser.add_argument("--scale", type=float, help="value of a white pixel: 1 or 255")
    parser.add_argument("--mean", type=numbers, help="per channel, in the units of --scale")
    parser.add_argument("--std", type=numbers, help="per channel, in the units of --scale")
    parser.add_argument("--layout", choices=["nchw", "nhwc"], help="order of the model's axes")
    parser.add_argument(
        "--epsilon", type=float, default=EPSILON, help="radius of the attack in pixel space"
    )
    parser.add_argument("--history", type=Path, help="folder of ONNX models of the training epochs")
    parser.add_argument(
        "--risk",
        type=_risk,
        action="append",
        metavar="CLASS=WEIGHT",
        help="weight of a mistake; may be repeated",
    )
    options = parser.parse_args(arguments[1:])
    return prepare_own(
        options.name,
        options.model,
        options.data,
        options.root,
        options.seed,
        weights=options.weights,
        labels=options.labels,
        classes=options.classes,
        group_column=options.group_column,
        conventions=Conventions(options.scale, options.mean, options.std, options.layout),
        attack_epsilon=options.epsilon,
        risks=dict(options.risk) if options.risk else None,
        history=options.history,
    )


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, as all other errors are said."""

    def error(self, message: str) -> NoReturn:
        raise ModelfixError(f"{message}.")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", type=Path, required=True, help="folder that holds the subjects")
    parser.add_argument("--seed", type=int, default=0, help="of splits and training; default 0")


def _risk(text: str) -> tuple[str, float]:
    name, _, weight = text.rpartition("=")
    try:
        return name, float(weight)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form CLASS=WEIGHT") from None


if __name__ == "__main__":
    sys.exit(main())
