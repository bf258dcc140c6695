"""Write the table of `docs/layer-level.md` from records: `python docs/make_layer_table.py RESULTS`.

Every evaluated record of a layer-level approach that was given one number of faults becomes a row:
``nox -s fix-layer-reassure -- --subject mnist-lenet5 --no-attack --set "faults=[30]"``.
"""

import sys
from pathlib import Path

from modelfix_core.record import Record, load_evidence

PAGE = Path(__file__).with_name("layer-level.md")
BEGIN, END = "<!-- begin of table -->", "<!-- end of table -->"
TITLES = {"minimal-3m": "3M-DNN", "reassure": "REASSURE"}
HEAD = """\
| subject | approach | faults given | of these right | outcome | accuracy | RR | NFR | seconds |
|---|---|---:|---:|---|---:|---:|---:|---:|"""


def rows(results: Path) -> list[tuple]:
    """Return subject, approach, number of faults and the text of each row, in order."""
    found = []
    for path in sorted(results.glob("runs/*/*/1/record.json")):
        record = Record.load(path.parent)
        faults = record.entrant.config.get("faults", [])
        if record.entrant.approach in TITLES and len(faults) == 1 and record.evaluation:
            found.append((record.subject, record.entrant.approach, faults[0], path.parent, record))
    return sorted(found, key=lambda row: (row[0] != "mnist-lenet5", *row[:3]))


def text(folder: Path, record: Record) -> str:
    """Return one row of the table."""
    proofs = next(e for e in load_evidence(folder) if e.name == "proofs").columns
    right = sum(
        holds and scope == "point"
        for holds, scope in zip(proofs["holds"], proofs["scope"], strict=True)
    )
    before = record.evaluation["original"]["accuracy"]["value"]
    values = {name: m["value"] for name, m in record.evaluation["metrics"].items()}
    cells = [
        record.subject,
        TITLES[record.entrant.approach],
        record.entrant.config["faults"][0],
        right,
        record.outcome,
        f"{before:.2%} -> {values['accuracy']:.2%}",
        f"{values['repair_rate']:.2%}",
        f"{values['nfr']:.2%}",
        f"{record.seconds['fixing']:.1f}",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def main(results: Path) -> None:
    """Put the table in its place."""
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    table = "\n".join([HEAD, *(text(folder, record) for *_, folder, record in rows(results))])
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
