"""``modelfix recommend``: which approach to use, and on which evidence."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from modelfix_core.subject import Subject


def recommend(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders of records; default the runs of --home."),
    ] = None,
    priority: Annotated[
        list[str] | None,
        typer.Option(
            "--priority",
            "-p",
            help="accuracy, repair, robustness, fairness, compatibility, time; repeatable or with "
            "commas, of equal weight; default repair.",
        ),
    ] = None,
    max_nfr: Annotated[
        str | None, typer.Option(help="Largest negative flip rate allowed, such as 0.5%.")
    ] = None,
    time: Annotated[
        str | None, typer.Option("--time", help="Longest time of fixing, such as 10m or 1h30m.")
    ] = None,
    needs: Annotated[
        list[str] | None,
        typer.Option(
            "--needs",
            help="What you have: train, repair, history, risks; repeatable or with commas; "
            "default all.",
        ),
    ] = None,
    subject: Annotated[
        str | None,
        typer.Option("--subject", "-s", help="What is to be fixed; its records count first."),
    ] = None,
    category: Annotated[
        list[str] | None,
        typer.Option("--category", "-c", help="Only model, layer or neuron; repeatable."),
    ] = None,
    home: Annotated[
        Path, typer.Option("--home", envvar="MODELFIX_HOME", help="Where runs are kept.")
    ] = Path("results"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Rank approaches by what was measured here, else by what the study published.

    Example: modelfix recommend --priority fairness --max-nfr 0.5% --time 10m --needs repair,train
    """
    import json
    from dataclasses import asdict

    import modelfix_stats as ms
    from modelfix_core.approach import Category, Need
    from modelfix_core.errors import ModelfixError

    from modelfix import gate, reporting
    from modelfix.recommending import IMPLIED, advise, parse_duration

    for place in runs or ():
        if not place.exists():
            raise ModelfixError(f"{place}: does not exist; give a folder of records (RUNS).")
    priorities = _split(priority, list(ms.METRIC_OF), "--priority") or ["repair"]
    has = _split(needs, [str(need) for need in Need], "--needs")
    prepared = _prepared(home, subject)
    result = advise(
        runs or [home / "runs"],
        subject=prepared,
        subjects=[subject] if subject else [],
        priorities=priorities,
        max_nfr=None if max_nfr is None else gate.parse_share(max_nfr, "--max-nfr"),
        max_seconds=None if time is None else parse_duration(time, "--time"),
        given=[Need(name) for name in has] if has else None,
        categories=_split(category, [str(name) for name in Category], "--category"),
    )
    if as_json:
        print(json.dumps({"approaches": result.approaches, **asdict(result)}, indent=2))
        return
    tables = [ms.recommendation_table(result, priorities)] if result.choices else []
    tables += [ms.left_out_table(result)] if result.left_out else []
    reporting.show(tables)
    if not result.choices:
        print("Nothing can be recommended: every approach is left out, for the reasons above.")
    if subject and prepared is None:
        print(f"{subject} is not prepared here: whether approaches can be applied was not asked.")
    if has:
        print(f"Taken as given: {', '.join(sorted({*has, *map(str, IMPLIED)}))}.")


def _split(values: list[str] | None, known: list[str], option: str) -> list[str]:
    """Return names given repeatedly or with commas; an unknown one is a sentence."""
    from modelfix_core.errors import ModelfixError

    names = [name.strip() for value in values or () for name in value.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise ModelfixError(f"{option} {name!r}: choose from {', '.join(known)}.")
    return list(dict.fromkeys(names))


def _prepared(home: Path, name: str | None) -> "Subject | None":
    """Return the subject if it is prepared; preparing it is not worth a recommendation."""
    from modelfix_core.subject import CARD_FILE, Subject

    from modelfix.cells import Home

    if name is None:
        return None
    folder = Home(home.absolute()).subject(name)
    return Subject.load(folder) if (folder / CARD_FILE).exists() else None
