"""``modelfix study``: what is made of many records."""

from pathlib import Path
from typing import Annotated

import typer

from modelfix import grid_cli

study = typer.Typer(no_args_is_help=True, help="Studies: grids of cells, and tables of them.")
grid_cli.register(study)


@study.command()
def report(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders of records; default the runs of --home."),
    ] = None,
    subject: Annotated[
        list[str] | None, typer.Option("--subject", "-s", help="Only this subject; repeatable.")
    ] = None,
    approach: Annotated[
        list[str] | None,
        typer.Option("--approach", "-a", help="Only this approach or entrant; repeatable."),
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="icse26: beside the published study's values.")
    ] = None,
    table: Annotated[
        list[str] | None,
        typer.Option(
            help="effectiveness, properties, groups, times (default: these), findings; repeatable."
        ),
    ] = None,
    format_: Annotated[
        str, typer.Option("--format", "-f", help="terminal, markdown, latex or csv.")
    ] = "terminal",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write; Markdown between its marker lines."),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(help="Write everything as one HTML file that opens offline, not the tables."),
    ] = None,
    home: Annotated[
        Path, typer.Option("--home", envvar="MODELFIX_HOME", help="Where runs are kept.")
    ] = Path("results"),
) -> None:
    """Print the study's tables for any selection of records, or write the HTML report.

    Example: modelfix study report -s mnist-lenet5 --against icse26
    """
    import sys

    from modelfix_core.errors import ModelfixError

    from modelfix import records, reporting

    if html is not None and (against or table or output is not None or format_ != "terminal"):
        raise ModelfixError(
            "--html writes the whole report; leave out --against, --table, --format and --output."
        )
    if against not in (None, "icse26"):
        raise ModelfixError(f"--against {against!r}: only icse26 is known, the published study.")
    layouts = _choices(reporting.Layout, table, "--table")
    layouts = layouts or ([reporting.Layout.BESIDE] if against else list(reporting.TABLES))
    (written,) = _choices(reporting.Format, [format_], "--format")
    if output is not None and written is reporting.Format.TERMINAL:
        written = reporting.Format.MARKDOWN
    found, broken = records.find(runs or [home / "runs"])
    for sentence in broken:
        print(f"warning: {sentence}", file=sys.stderr)
    found = records.without_planted(found, subject or ()) or found
    chosen = records.choose(found, subject or (), approach or ())
    if html is not None:
        from modelfix import html_report

        html_report.write(chosen, broken, html)
        print(f"{html}")
        return
    tables = reporting.make(records.frame(chosen), layouts, beside=against is not None)
    if written is reporting.Format.TERMINAL:
        reporting.show(tables)
        return
    text = reporting.render(tables, written)
    if output is None:
        print(text)
    else:
        reporting.write(text, output)
        print(f"{output}")


def _choices(kind: type, names: list[str] | None, option: str) -> list:
    """Return members of an enumeration by value; a wrong one is a sentence."""
    from modelfix_core.errors import ModelfixError

    known = [member.value for member in kind]  # type: ignore[attr-defined]
    for name in names or ():
        if name not in known:
            raise ModelfixError(f"{option} {name!r}: choose from {', '.join(known)}.")
    return [kind(name) for name in names or ()]
