"""The report: its structure, its numbers, what it escapes, and what it says of bad input."""

import base64
import hashlib
import json
from dataclasses import dataclass, field
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from modelfix_stats import StatsError, check, compare, matrix_table, pairs_table, ranking_table
from modelfix_stats.report import CellPage, Content, Picture, Point, Sheet, build
from modelfix_stats.report.building import embedded
from modelfix_stats.report.summaries import EFFECTS, comparable, effect_table, effects
from modelfix_stats.tables import Cell, Table

VOID = {"meta", "input", "img", "br", "hr", "link"}
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&\u2028"


@dataclass
class Node:
    tag: str
    attributes: dict
    children: list = field(default_factory=list)

    def all(self, tag):
        for child in self.children:
            if isinstance(child, Node):
                if child.tag == tag:
                    yield child
                yield from child.all(tag)

    @property
    def text(self):
        return "".join(c if isinstance(c, str) else c.text for c in self.children)


class Reader(HTMLParser):
    """Parse a document as a browser does, into nodes."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open = [Node("document", {})]
        self.feed(text)
        assert len(self.open) == 1, "elements are left open"

    def handle_starttag(self, tag, attributes):
        node = Node(tag, dict(attributes))
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop().tag == tag

    def handle_data(self, data):
        self.open[-1].children.append(data)


def read(content):
    return Reader(build(content)).open[0]


def by_id(document, name):
    (found,) = [n for tag in ("div", "details", "script", "table", "section") for n in
                document.all(tag) if n.attributes.get("id") == name]  # fmt: skip
    return found


def texts(node):
    (table,) = node.all("table")
    rows = [
        [c.text.strip() for c in row.children if isinstance(c, Node) and c.tag in ("td", "th")]
        for row in table.all("tr")
    ]
    return rows[0], rows[1:]


def embedded_data(document, name="data"):
    return json.loads(by_id(document, name).text)


@pytest.fixture
def frame(random_results):
    rows = random_results(entrants=4, subjects=2)
    accuracy = rows.assign(metric="accuracy", original=0.3)
    nfr = rows.assign(metric="nfr", value=rows["value"] / 10)
    seconds = rows.assign(metric="seconds", value=100 * rows["value"])
    return pd.concat([accuracy, rows, nfr, seconds], ignore_index=True)


def page(**changes):
    known = {"subject": "s0", "entrant": "e0", "repetition": 0}
    return CellPage(**{**known, **changes})


# -- structure and numbers -------------------------------------------------------------------------


def test_every_figure_has_its_table(frame):
    document = read(Content(frame))
    figures = [f for f in document.all("figure") if "data-table" in f.attributes]
    assert len(figures) == len(EFFECTS) + 1
    for figure in figures:
        head, rows = texts(by_id(document, figure.attributes["data-table"]))
        assert len(head) > 2
        assert len(rows) == 3 + 1


def test_tables_hold_the_numbers_of_the_statistics(frame):
    document = read(Content(frame))
    comparison = compare(frame, "repair_rate")
    expected = {
        "ranking": ranking_table(comparison),
        "pairs": pairs_table(comparison),
        "matrix": matrix_table(comparison),
        **{name: effect_table(check(frame), effect) for name, effect in EFFECTS.items()},
    }
    for name, table in expected.items():
        head, rows = texts(by_id(document, name))
        assert head == list(table.heads)
        assert rows == table.texts()
    _, rows = texts(by_id(document, "leaderboard-table"))
    letters = comparison.letters
    order = list(comparison.order["entrant"])
    assert [row[0] for row in rows] == order
    for row in rows:
        score = comparison.order.set_index("entrant").loc[row[0], "score"]
        assert row[5] == f"{score:.2f} {letters.text(row[0])}"


def test_embedded_values_are_those_of_the_frame(frame):
    data = embedded_data(read(Content(frame)))
    rows = [
        (data["subjects"][s], data["entrants"][e]["name"], r, metric, value)
        for metric, values in data["values"].items()
        for e, s, r, value, _, _ in values
    ]
    key = ["subject", "entrant", "repetition", "metric", "value"]
    assert sorted(rows) == sorted(frame[key].itertuples(index=False, name=None))


def test_every_metric_has_an_original_of_its_own(frame):
    fair = frame[frame["metric"] == "nfr"].assign(metric="aaod", original=0.02)
    document = read(Content(pd.concat([frame, fair], ignore_index=True)))
    assert not missing(document)
    assert {row[4] for row in embedded_data(document)["values"]["aaod"]} == {0.02}


def test_deviation_is_that_of_the_repetitions(frame):
    one = frame[frame["subject"] == "s0"]
    expected = one[one["metric"] == "repair_rate"].groupby("entrant")["value"].std()
    np.testing.assert_allclose(effects(one, "repair_rate")["deviation"], 100 * expected)
    both = effects(frame, "repair_rate")["deviation"]
    other = frame[(frame["subject"] == "s1") & (frame["metric"] == "repair_rate")]
    together = np.hypot(expected, other.groupby("entrant")["value"].std()) / 2
    np.testing.assert_allclose(both, 100 * together)


def test_outcomes_link_to_the_pages_that_exist(frame):
    document = read(Content(frame, pages=[page(entrant="e1", repetition=2)]))
    (link,) = by_id(document, "outcomes").all("a")
    assert link.attributes["href"] == "#cell/s0/e1/2"
    assert list(embedded_data(document, "pages")) == ['["s0","e1",2]']


def test_pages_hold_what_is_given(frame):
    table = Table("Facts", (), ("what", "value"), ((Cell("seed"), Cell("3")),))
    sheet = Sheet("Newly right: 1", [Picture("s0/7", ["cat", "was dog"])], better=True)
    curve = [Point(0, 0.5, 1.0), Point(1, None, float("nan"))]
    given = page(tables=[table], sheets=[sheet], curve=curve, original_accuracy=0.4, notes=["n"])
    document = read(Content(frame, pages=[given], images={"s0/7": "data:image/png;base64,AA=="}))
    (shown,) = embedded_data(document, "pages").values()
    assert shown["tables"][0]["rows"] == [["seed", "3"]]
    assert shown["sheets"][0]["pictures"][0] == {"image": "s0/7", "lines": ["cat", "was dog"]}
    assert shown["curve"] == [[0.0, 0.5, 1.0], [1.0, None, None]]
    assert embedded_data(document, "images") == {"s0/7": "data:image/png;base64,AA=="}


def test_the_findings_stand_with_their_verdicts(frame):
    section = by_id(read(Content(frame)), "findings")
    assert len(list(section.all("article"))) == 8
    assert "not enough records" in section.text


def test_the_same_content_gives_the_same_file(frame):
    assert build(Content(frame)) == build(Content(frame))


# -- safety ----------------------------------------------------------------------------------------


def test_hostile_names_stay_texts(frame):
    plain = read(Content(frame, pages=[page()]))
    names = {"e0": HOSTILE, "s0": "s" + HOSTILE}
    hostile = frame.replace({"entrant": names, "subject": names}).assign(
        category=HOSTILE, outcome="FIXED", reason=HOSTILE
    )
    content = Content(
        hostile,
        title=HOSTILE,
        problems=[HOSTILE],
        pages=[page(subject="s" + HOSTILE, entrant=HOSTILE, notes=[HOSTILE])],
        images={HOSTILE: HOSTILE},
        provenance=[Table(HOSTILE, (), (HOSTILE,), ((Cell(HOSTILE),),), (HOSTILE,))],
    )
    document = read(content)
    for tag in ("script", "img", "style"):
        assert len(list(document.all(tag))) == len(list(plain.all(tag)))
    events = [a for tag in ("a", "td", "tr", "span", "th") for node in document.all(tag)
              for a in node.attributes if a.startswith("on")]  # fmt: skip
    assert not events
    assert HOSTILE in [one["name"] for one in embedded_data(document)["entrants"]]
    assert next(document.all("h1")).text == HOSTILE


def test_only_the_documents_own_scripts_may_run_and_nothing_is_fetched(frame):
    document = read(Content(frame))
    (policy,) = [
        m.attributes["content"] for m in document.all("meta") if "http-equiv" in m.attributes
    ]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    scripts = [s for s in document.all("script") if "type" not in s.attributes]
    digests = [hashlib.sha256(s.text.encode()).digest() for s in scripts]
    allowed = {f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests}
    assert set(rules["script-src"].split()) == allowed
    assert not any("src" in s.attributes for s in scripts)
    assert not list(document.all("link"))
    assert all(a.attributes["href"].startswith("#") for a in document.all("a"))


@pytest.mark.parametrize("text", ["</script>", "<!--", "&amp;", "\u2028", "ü", '"'])
def test_embedded_json_reads_back(text):
    assert json.loads(embedded({text: [text]})) == {text: [text]}
    assert "<" not in embedded(text)


def test_no_number_is_silently_lost():
    with pytest.raises(ValueError, match="not JSON compliant"):
        embedded([float("nan")])


# -- bad input -------------------------------------------------------------------------------------


def missing(document):
    return [item.text for item in by_id(document, "overview").all("li")]


def test_values_of_different_definitions_are_left_out_in_words(frame):
    mixed = frame.assign(definition=frame["metric"] + "/1")
    odd = (mixed["metric"] == "nfr") & (mixed["subject"] == "s0") & (mixed["entrant"] == "e1")
    mixed.loc[odd, "definition"] = "nfr/2"
    document = read(Content(mixed))
    (sentence,) = missing(document)
    assert sentence.startswith("NFR on s0 is left out: ")
    assert "only values measured in the same way can be compared" in sentence
    values = embedded_data(document)["values"]
    assert {s for _, s, _, value, _, _ in values["nfr"] if value is not None} == {1}
    assert {s for _, s, _, value, _, _ in values["accuracy"] if value is not None} == {0, 1}
    assert len(embedded_data(document)["attempts"]) == 24


def test_what_cannot_be_compared_is_said(frame):
    bad = frame.copy()
    bad.loc[(bad["metric"] == "seconds") & (bad["subject"] == "s1"), "value"] = 0.0
    bad.loc[(bad["metric"] == "accuracy") & (bad["entrant"] == "e2"), "original"] = np.nan
    bad = pd.concat([bad, bad[bad["entrant"] == "e3"].iloc[:1]])
    sentences = missing(read(Content(bad)))
    assert any("time on s1 is left out: seconds must be positive" in s for s in sentences)
    assert any("whose value the column 'original' lacks" in s for s in sentences)
    assert any("e3 on s0, repetition 0: occurs more than once" in s for s in sentences)


def test_a_single_repetition_has_no_deviation(frame):
    one = frame[frame["repetition"] == 0]
    document = read(Content(one))
    assert "8 of 8 cells have a single repetition" in by_id(document, "overview").text
    _, rows = texts(by_id(document, "regression"))
    assert not any("±" in text or "nan" in text.lower() for row in rows for text in row)
    _, rows = texts(by_id(document, "pairs"))
    assert {row[5] for row in rows} == {"?"}


def test_zero_variance_is_a_deviation_of_zero(frame):
    still = frame.assign(value=0.2)
    document = read(Content(still))
    _, rows = texts(by_id(document, "regression"))
    assert {row[3] for row in rows} == {"20.00 ± 0.00"}
    copies = read(Content(still.assign(deterministic=True)))
    _, rows = texts(by_id(copies, "regression"))
    assert {row[3] for row in rows} == {"20.00"}


def test_an_entrant_without_finished_cell_stays_in_sight(frame):
    lost = frame.copy()
    here = lost["entrant"] == "e1"
    lost.loc[here, ["outcome", "reason"]] = ["FAILURE", "the time limit was exceeded"]
    lost.loc[~here, "outcome"] = "FIXED"
    document = read(Content(lost))
    assert "the time limit was exceeded" in str(by_id(document, "outcomes"))
    _, rows = texts(by_id(document, "leaderboard-table"))
    assert rows[-1][:4] == ["e1", "-", "", "0/6"]
    assert set(rows[-1][4:]) == {"-"}
    assert "Without any value: e1." in by_id(document, "ranking").text
    _, rows = texts(by_id(document, "values"))
    assert ["e1", "FAILURE", "FAILURE"] in rows


def test_no_finished_cell_at_all(frame):
    document = read(Content(frame.assign(outcome="UNADAPTABLE", reason="no layer")))
    assert not list(document.all("figure"))
    assert len(list(by_id(document, "outcomes").all("tr"))) == 5
    assert embedded_data(document)["first"] is None


@pytest.mark.parametrize(
    ("columns", "message"),
    [(["subject", "entrant"], "lacks the column repetition, metric, value"), (None, "no known")],
)
def test_a_frame_without_results_is_refused(frame, columns, message):
    rows = frame[columns] if columns else frame.assign(metric="beauty")
    with pytest.raises(StatsError, match=message):
        comparable(rows)
