"""The page: a template filled with tables, and the data from which the browser computes."""

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from importlib.resources import files
from typing import Any
from urllib.parse import quote

import pandas as pd
from jinja2 import Environment, PackageLoader, Template
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from modelfix_stats.comparison import compare
from modelfix_stats.findings import Finding, findings
from modelfix_stats.metrics import Metric
from modelfix_stats.report import summaries
from modelfix_stats.report.content import CellPage, Content
from modelfix_stats.study import ABBREVIATIONS, published
from modelfix_stats.tables import CATEGORIES, Table, matrix_table, pairs_table, ranking_table

SCRIPTS = ("statistics.js", "tables.js", "figures.js", "cells.js", "page.js")
# Signs that could end a script element or start another are written as escapes.
ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def build(content: Content) -> str:
    """Return the report as one HTML document that needs no other file and no network.

    Parameters
    ----------
    content : Content

    Returns
    -------
    str
        What a reader selects is computed anew in the browser from the embedded values of the
        repetitions; the tables for everything are in the document itself. Every text is escaped,
        and a content security policy allows the document's own scripts alone.

    Raises
    ------
    StatsError
        If the data frame has no results.
    """
    frame, sentences = summaries.comparable(content.frame)
    frame = _sorted(frame)
    scripts = [get_plotlyjs(), *(_asset(name) for name in SCRIPTS)]
    blocks = {
        "data": _data(frame),
        "pages": {_address(page): _page(page) for page in content.pages},
        "images": dict(content.images),
    }
    return _template().render(
        content=content,
        counts=_counts(frame),
        problems=[*content.problems, *sentences],
        remarks=summaries.single_repetitions(frame),
        matrix=_matrix(frame, {_address(page) for page in content.pages}),
        tables=_tables(frame),
        findings=_findings(frame),
        policy=_policy(scripts),
        style=Markup(_asset("style.css")),
        scripts=[Markup(script) for script in scripts],
        blocks={name: Markup(embedded(value)) for name, value in blocks.items()},
    )


def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("modelfix_stats.report", "assets"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["part"] = lambda text: quote(text, safe="")
    return environment.get_template("report.html.j2")


def embedded(value: Any) -> str:
    """Return JSON that can stand inside a script element, whatever texts it holds."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return "".join(ESCAPES.get(sign, sign) for sign in text) if _unsafe(text) else text


def _unsafe(text: str) -> bool:
    return any(sign in text for sign in ESCAPES)


def _asset(name: str) -> str:
    return (files("modelfix_stats.report") / "assets" / name).read_text(encoding="utf-8")


def _policy(scripts: Sequence[str]) -> str:
    """Return the content security policy: these scripts, no other, and no network."""
    digests = (hashlib.sha256(script.encode()).digest() for script in scripts)
    allowed = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


# -- what the browser computes from ----------------------------------------------------------------


def _sorted(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with the entrants in the study's order: model, layer, neuron."""
    place = {category: i for i, category in enumerate(CATEGORIES)}
    order = frame["category"].map(lambda category: place.get(category, len(place)))
    return frame.iloc[order.argsort(kind="stable")].reset_index(drop=True)


def _data(frame: pd.DataFrame) -> dict[str, Any]:
    """Return entrants, subjects, metrics, attempts and the values of the repetitions."""
    about = frame.drop_duplicates("entrant")
    entrants, subjects = list(about["entrant"]), list(frame["subject"].drop_duplicates())
    rows = frame.assign(
        e=pd.Index(entrants).get_indexer(frame["entrant"]),
        s=pd.Index(subjects).get_indexer(frame["subject"]),
    )
    cells = rows.drop_duplicates(["e", "s", "repetition"])
    columns = ["e", "s", "repetition", "value", "original", "deterministic"]
    values = {
        metric.id: [
            [int(e), int(s), int(r), _number(value), _number(original), int(copied)]
            for e, s, r, value, original, copied in rows.loc[
                rows["metric"] == metric.id, columns
            ].itertuples(index=False)
        ]
        for metric in summaries.metrics_of(frame)
    }
    return {
        "entrants": [
            {"name": row.entrant, "label": _label(row.entrant), "category": str(row.category)}
            for row in about.itertuples()
        ],
        "subjects": subjects,
        "metrics": [_metric(metric) for metric in summaries.metrics_of(frame)],
        "main": list(_main(frame)),
        "first": _first(frame),
        "effects": {name: asdict(effect) for name, effect in summaries.EFFECTS.items()},
        "units": summaries.UNITS,
        "attempts": [
            [int(row.e), int(row.s), int(row.repetition), str(row.outcome)]
            for row in cells.itertuples()
        ],
        "values": values,
    }


def _metric(metric: Metric) -> dict[str, Any]:
    derived = {"sign": metric.sign, "shown": metric.shown, "attacked": metric.attacked}
    return {**asdict(metric), **derived}


def _number(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


def _label(entrant: str) -> str:
    return ABBREVIATIONS.get(entrant, entrant)


def _main(frame: pd.DataFrame) -> list[str]:
    have = {metric.id for metric in summaries.metrics_of(frame)}
    return [id for id in summaries.MAIN if id in have]


def _first(frame: pd.DataFrame) -> str | None:
    """Return the metric that is shown first: repair rate, or what there is."""
    have = [metric.id for metric in summaries.metrics_of(frame)]
    return summaries.FIRST if summaries.FIRST in have else (have[0] if have else None)


def _address(page: CellPage) -> str:
    """Return the key of a page, as the page's scripts make it."""
    key = [page.subject, page.entrant, page.repetition]
    return json.dumps(key, ensure_ascii=False, separators=(",", ":"))


def _page(page: CellPage) -> dict[str, Any]:
    curve = [[_number(p.step), _number(p.accuracy), _number(p.seconds)] for p in page.curve]
    return {
        "tables": [_plain(table) for table in page.tables],
        "sheets": [asdict(sheet) for sheet in page.sheets],
        "curve": curve,
        "original": _number(page.original_accuracy),
        "notes": list(page.notes),
    }


def _plain(table: Table) -> dict[str, Any]:
    """Return a table as the page's scripts take it."""
    rows = [[cell.text for cell in row] for row in table.rows]
    return {"title": table.title, "columns": table.columns, "rows": rows, "notes": table.notes}


# -- what stands in the document itself ------------------------------------------------------------


def _counts(frame: pd.DataFrame) -> dict[str, int]:
    cells = frame.drop_duplicates(["entrant", "subject", "repetition"])
    return {
        "records": len(cells),
        "entrants": cells["entrant"].nunique(),
        "subjects": cells["subject"].nunique(),
    }


def _matrix(frame: pd.DataFrame, known: set[str]) -> dict[str, Any]:
    """Return the outcomes, entrant by subject, and which cells have a page."""
    subjects = list(frame["subject"].drop_duplicates())
    cells = frame.drop_duplicates(["entrant", "subject", "repetition"])
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in cells.sort_values("repetition", kind="stable").itertuples():
        page = CellPage(row.subject, row.entrant, int(row.repetition))
        found.setdefault((row.entrant, row.subject), []).append(
            {
                "repetition": int(row.repetition),
                "outcome": str(row.outcome),
                "reason": row.reason if isinstance(row.reason, str) else "",
                "linked": _address(page) in known,
            }
        )
    rows = [
        {
            "entrant": name,
            "category": summaries.category(frame, name),
            "cells": [found.get((name, subject), []) for subject in subjects],
        }
        for name in cells["entrant"].drop_duplicates()
    ]
    return {"subjects": subjects, "rows": rows}


def _tables(frame: pd.DataFrame) -> Mapping[str, Table]:
    """Return the tables of the sections and figures, for everything the report holds."""
    main = {id: compare(frame, id) for id in _main(frame)}
    tables = {
        name: summaries.effect_table(frame, effect) for name, effect in summaries.EFFECTS.items()
    }
    first = _first(frame)
    if first is not None:
        comparison = main.get(first) or compare(frame, first)
        tables["leaderboard"] = summaries.leaderboard(frame, main, first)
        ranking = ranking_table(comparison)
        tables["ranking"] = replace(ranking, notes=(*ranking.notes, *comparison.notes))
        tables["pairs"] = pairs_table(comparison)
        tables["matrix"] = matrix_table(comparison)
        tables["values"] = summaries.values_table(frame, first)
    return tables


def _findings(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the study's findings: the verdicts of these data and of the study's own tables."""
    return [
        {
            "number": ours.number,
            "title": ours.title,
            "claims": [
                {
                    "statement": claim.statement,
                    "verdict": str(claim.verdict),
                    "sentence": claim.sentence,
                    "printed": str(printed.verdict),
                }
                for claim, printed in zip(ours.claims, theirs.claims, strict=True)
            ],
        }
        for ours, theirs in zip(findings(frame), _printed_findings(), strict=True)
    ]


@cache
def _printed_findings() -> tuple[Finding, ...]:
    return findings(published())
