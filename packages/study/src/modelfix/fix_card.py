"""The fix card: one page beside a fixed model that says what was done to it and what it cost."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from modelfix_core.approach import Outcome
from modelfix_core.errors import ModelfixError
from modelfix_core.files import write_text
from modelfix_core.record import Record
from modelfix_metrics.decisions import predicted
from modelfix_metrics.post_processing import ENTRY
from modelfix_metrics.predictions import FILE as PREDICTIONS
from modelfix_metrics.predictions import Predictions

from modelfix.catalogue import Catalogue
from modelfix.explanation import Explanation

FILE = "fix-card.md"
LISTED = 100  # newly wrong inputs named one by one
NOTHING = "-"
METRICS = (
    ("accuracy", "accuracy"),
    ("repair_rate", "RR, repair rate"),
    ("nfr", "NFR, negative flip rate"),
    ("asr", "ASR, attack success rate"),
    ("aaod", "AAOD, average absolute odds difference"),
)


def write(folder: Path) -> Path:
    """Write ``fix-card.md`` into a record folder, atomically, and return its path.

    Raises
    ------
    ModelfixError
        If the record has no fixed model, or it, its predictions or its subject are damaged.
    """
    path = Path(folder) / FILE
    write_text(path, text(folder))
    return path


def text(folder: Path) -> str:
    """Return the fix card of a record folder as Markdown."""
    record = Record.load(folder)
    if record.outcome not in (Outcome.FIXED, Outcome.CORRUPTED):
        reason = f" ({record.reason})" if record.reason else ""
        raise ModelfixError(
            f"{folder}: its outcome is {record.outcome}{reason}, so there is no fixed model to "
            "describe."
        )
    found = Explanation(folder)
    stored = _predictions(found)
    parts = [
        _fixed(found),
        _how(found),
        _before_after(record),
        _broken(found, stored),
        _limits(record),
        _provenance(found, stored),
    ]
    return "\n\n".join(parts) + "\n"


def _predictions(found: Explanation) -> Predictions | None:
    """Return the stored predictions, if the record was evaluated; refuse another model's."""
    evaluation = found.record.evaluation
    if evaluation is None:
        return None
    stored = Predictions.load(found.folder / PREDICTIONS)
    if stored.fixed != evaluation["hashes"]["fixed"]:
        raise ModelfixError(
            f"{found.folder / PREDICTIONS}: holds predictions of another fixed model than the "
            "record's; evaluate the record again."
        )
    return stored


# -- sections --------------------------------------------------------------------------------------


def _fixed(found: Explanation) -> str:
    record, card = found.record, found.subject.card
    validation = record.validation_accuracy
    lines = [
        f"# Fix card: {record.entrant.approach} on {record.subject}, repetition "
        f"{record.repetition}",
        "",
        "## What was fixed",
        "",
        f"{card.summary} The model is {card.architecture} for {len(card.classes)} classes of "
        f"{card.dataset}, input {' x '.join(map(str, card.input_shape))}.",
    ]
    if validation:
        lines.append(
            f"On the validation split its accuracy was {_percent(validation['before'])} and is "
            f"{_percent(validation['after'])}."
        )
    changes = found.changes
    if changes:
        lines += ["", *_table(
            ("changed layer", "kind", "values", "changed", "relative change"),
            (
                (c.layer, c.kind, f"{c.weights:,}", f"{c.changed:,}", f"{c.relative:.2%}")
                for c in changes
            ),
        )]  # fmt: skip
    if found.new_nodes:
        lines += ["", f"The graph has {found.new_nodes} more nodes than the original's."]
    return "\n".join(lines)


def _how(found: Explanation) -> str:
    record = found.record
    entrant, about = record.entrant, record.provenance.get(ENTRY)
    info = Catalogue().infos.get(entrant.approach.partition("+")[0])
    title = entrant.approach if info is None else info.title
    rows = [("approach", f"{title} ({entrant.abbreviation}), {entrant.category}-level")]
    if info is not None:
        rows.append(("paper", info.paper))
    rows.append(("preset", entrant.preset))
    rows += [
        (f"option `{name}`", f"`{value}`")
        for name, value in entrant.config.items()
        if name != ENTRY
    ]
    if about is not None:
        rule = ", ".join(f"{name} {value}" for name, value in about.get("rule", {}).items())
        rows.append(("post-processing", f"{about['method']} of `{about['of']}`; {rule or 'none'}"))
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in record.seconds.items())
    rows += [("candidates", f"{record.candidates}"), ("time", seconds or NOTHING)]
    return "\n".join(["## How", "", *_table(("", ""), rows)])


def _before_after(record: Record) -> str:
    head = ["## Before and after", ""]
    evaluation = record.evaluation
    if evaluation is None:
        return "\n".join([*head, "Not evaluated on the test split; `modelfix evaluate` does it."])
    rows = []
    for metric, title in METRICS:
        after = evaluation["metrics"].get(metric)
        if after is None:
            continue
        before = evaluation["original"].get(metric)
        comparison = evaluation["comparisons"].get(metric) or {}
        p_value = comparison.get("p_value")
        rows.append(
            (
                f"{title} ({'higher' if after['direction'] == 'high' else 'lower'} is better)",
                NOTHING if before is None else value_text(before),
                value_text(after),
                NOTHING if p_value is None else f"{p_value:.2g}",
            )
        )
    note = "Counts and, in brackets, Wilson intervals at 95 %; p of the exact McNemar test."
    return "\n".join([*head, *_table(("metric", "before", "after", "p"), rows), "", note])


def _broken(found: Explanation, stored: Predictions | None) -> str:
    head = ["## What broke", ""]
    if stored is None:
        return "\n".join([*head, "Not known before the evaluation."])
    classes = found.subject.card.classes
    right, right_after = stored.right_before, stored.right_after
    broken = np.flatnonzero(right & ~right_after)
    repaired = np.flatnonzero(~right & right_after)
    now = predicted(stored.after)
    head += [
        f"{_inputs(len(broken))} of {len(stored)} in the test split were right and are wrong; "
        f"{_inputs(len(repaired))} were wrong and are right."
    ]
    if not len(broken):
        return "\n".join(head)
    hit, mended = (Counter(stored.y[rows].tolist()) for rows in (broken, repaired))
    sizes = Counter(stored.y.tolist())
    by_class = [
        (classes[y], str(count), str(mended[y]), str(sizes[y])) for y, count in hit.most_common()
    ]
    listed = [
        (str(stored.ids[row]), classes[stored.y[row]], class_name(classes, int(now[row])))
        for row in broken[:LISTED]
    ]
    more = len(broken) - len(listed)
    return "\n".join([
        *head,
        "",
        *_table(("class, most hit first", "newly wrong", "newly right", "test inputs"), by_class),
        "",
        "Newly wrong inputs, by sample id:",
        "",
        *_table(("input", "class", "now taken for"), listed),
        *(["", f"And {more} more, in `{PREDICTIONS}`."] if more else []),
    ])  # fmt: skip


def _limits(record: Record) -> str:
    lines = [f"- outcome: {record.outcome}" + (f" ({record.reason})" if record.reason else "")]
    evaluation = record.evaluation or {}
    if evaluation:
        lines.append(f"- outcome by the test split: {evaluation['outcome_on_test']}")
    for metric, title in METRICS:
        value = evaluation.get("metrics", {}).get(metric)
        if value is None:
            continue
        if value["value"] is None:
            lines.append(f"- {title}: {value['status']} ({value['reason']})")
        lines += [f"- {title}: {warning}" for warning in value["warnings"]]
    about = record.provenance.get(ENTRY, {})
    lines += [f"- post-processing: {warning}" for warning in about.get("warnings", ())]
    if "at_floor" in about:
        share = about["at_floor"]["both"]
        lines.append(
            f"- post-processing: {_percent(share)} of the test inputs have both uncertainties at "
            "their floor, where the weights are 1/4 and 3/4 whatever the input"
        )
    lines.append(
        "- measured on the test split of this data set alone; other data may behave otherwise"
    )
    return "\n".join(["## Limits", "", *lines])


def _provenance(found: Explanation, stored: Predictions | None) -> str:
    record, card = found.record, found.subject.card
    about = record.provenance
    evaluation = record.evaluation or {}
    seed = evaluation.get("settings", {}).get("order_seed")
    rows = [
        ("data", card.dataset),
        ("licence of the data", card.provenance.get("licence") or "not stated"),
        ("origin of the data", card.provenance.get("origin") or "not stated"),
        ("seeds", f"subject {card.seed}, fix {record.seed}"
         + (f", order of the attack {seed}" if seed is not None else "")),
        *((f"SHA-256, {name}", f"`{value}`") for name, value in record.hashes.items()),
        ("SHA-256, cell", f"`{record.cell}`"),
        ("SHA-256, test inputs", NOTHING if stored is None else f"`{stored.inputs}`"),
        ("versions, fix", versions_text(about.get("versions", {}))),
        ("versions, evaluation", versions_text(evaluation.get("versions", {}))),
        ("machine", ", ".join(
            str(about[key]) for key in ("platform", "device", "started") if key in about
        )),
    ]  # fmt: skip
    return "\n".join(["## Licence and provenance", "", *_table(("", ""), rows)])


def versions_text(versions: Mapping[str, str]) -> str:
    """Return libraries with their versions on one line."""
    return ", ".join(f"{name} {version}" for name, version in versions.items()) or NOTHING


# -- texts -----------------------------------------------------------------------------------------


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [tuple(head), ("---",) * len(head), *rows]
    return [
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in lines
    ]


def value_text(value: Mapping[str, Any]) -> str:
    """Return a stored metric value with counts and interval, or why there is none."""
    if value["value"] is None:
        return f"{value['status']} ({value['reason']})"
    shown = _percent(value["value"])
    counts = f"{value['numerator']:g} / {value['denominator']}"
    if value["interval"] is None:
        return f"{shown}, {counts}"
    low, high = value["interval"]
    return f"{shown}, {counts} [{_percent(low)}, {_percent(high)}]"


def _percent(share: float) -> str:
    return f"{share:.2%}"


def _inputs(count: int) -> str:
    return f"{count} input{'s' * (count != 1)}"


def class_name(classes: Sequence[str], label: int) -> str:
    """Return the name of a predicted class; -1 stands for outputs that are NaN."""
    return classes[label] if label >= 0 else "NaN"
