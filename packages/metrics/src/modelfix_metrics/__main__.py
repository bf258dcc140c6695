"""``python -m modelfix_metrics``: evaluate record folders."""

import argparse
import sys
from pathlib import Path

from modelfix_core.errors import ModelfixError
from modelfix_core.progress import ProgressReporter

from modelfix_metrics.attacks import ATTACKED, PRESETS, AttackOptions
from modelfix_metrics.cell import CACHE_FOLDER, CellEvaluation, evaluate_record
from modelfix_metrics.predictions import FILE, Predictions

USER_ERROR = 2
INTERRUPTED = 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m modelfix_metrics",
        description="Evaluate the fixed models of records on the test split of their subject.",
    )
    parser.add_argument(
        "--record",
        type=Path,
        required=True,
        action="append",
        help="record folder of a cell of the subject; repeatable",
    )
    parser.add_argument(
        "--subject", type=Path, required=True, help="folder of the prepared subject"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda; where the attack runs")
    parser.add_argument(
        "--attacked", type=int, default=ATTACKED, help=f"inputs to attack (default {ATTACKED})"
    )
    parser.add_argument("--no-attack", action="store_true", help="compute no attack success rate")
    parser.add_argument(
        "--attack", choices=PRESETS, default="pgd", help="which attack (default pgd)"
    )
    parser.add_argument(
        "--study", action="store_true", help="also asr_study, for tables beside published values"
    )
    parser.add_argument(
        "--repetitions",
        type=Path,
        nargs="+",
        default=(),
        metavar="RECORD",
        help="evaluated records of the other repetitions, also right on attacked inputs",
    )
    parser.add_argument(
        "--cache", type=Path, help="folder for the attacked original (default beside the subject)"
    )
    return parser


def _options(arguments: argparse.Namespace) -> AttackOptions:
    metrics = ("asr", "asr_margin", *(("asr_study",) if arguments.study else ()))
    return AttackOptions(
        metrics=() if arguments.no_attack else metrics,
        preset=arguments.attack,
        repetitions=tuple(Predictions.load(folder / FILE) for folder in arguments.repetitions),
        cache=arguments.cache or arguments.subject.resolve().parent / CACHE_FOLDER,
    )


def _describe(cell: CellEvaluation) -> list[str]:
    if cell.evaluation is None:
        return [f"{cell.outcome}: there is no fixed model to evaluate."]
    lines = ["evaluated already with these settings:"] if cell.reused else []
    comparisons = cell.evaluation["comparisons"]
    for name, value in cell.evaluation["metrics"].items():
        if value["value"] is None:
            lines.append(f"{name:20} {value['status']}: {value['reason']}")
            continue
        counts = f"{value['numerator']:g} / {value['denominator']}"
        line = f"{name:20} {value['value']:8.4f}  {counts:>16}"
        comparison = comparisons.get(name)
        if comparison is not None and comparison["before"] is not None:
            gain = comparison["gain"]
            shown = "undefined" if gain is None else f"{gain:+.2f} %"
            line += f"  before {comparison['before']:.4f}, gain {shown}"
        lines.append(line)
        lines += [f"  warning: {warning}" for warning in value["warnings"]]
    lines.append(f"on test: {cell.evaluation['outcome_on_test']}")
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Evaluate the records named on the command line; return the exit code."""
    parsed = _parser().parse_args(arguments)
    try:
        for record in parsed.record:
            with ProgressReporter(f"attack, repetition {record.name}") as reporter:
                cell = evaluate_record(
                    record,
                    parsed.subject,
                    attacked=parsed.attacked,
                    device=parsed.device,
                    attack=_options(parsed),
                    reporter=reporter,
                )
            print("\n".join(_describe(cell)))
    except ModelfixError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("interrupted; the same command starts the evaluation again.", file=sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
