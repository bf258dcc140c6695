"""The report in headless Chromium: its statistics against Python's, and a click through it."""

import itertools
import math
import re
import shutil

import modelfix_stats as ms
import numpy as np
import pandas as pd
import pytest
from modelfix import html_report, records
from modelfix_stats.report import Content, build
from modelfix_stats.report.summaries import effects
from modelfix_stats.tables import matrix_table, pairs_table, ranking_table

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None,
        reason="no chromium on PATH; install it (Debian and Ubuntu: `apt-get install chromium`)",
    ),
]
HOSTILE = "</script><script>document.title='broken'</script><img src=x onerror=alert(1)>&lt;b>"
DESKTOP = {"viewport": {"width": 1280, "height": 900}}
PHONE = {
    "viewport": {"width": 390, "height": 844},
    "device_scale_factor": 2,
    "is_mobile": True,
    "has_touch": True,
}
PATIENCE = 300_000  # milliseconds, for loaded machines
METRICS = {"accuracy": 0.8, "repair_rate": None, "asr": 0.7, "nfr": None, "seconds": None}


# -- results to report on --------------------------------------------------------------------------


def results(seed=0, entrants=7, subjects=3, repetitions=3):
    """Return results with missing cells, copies, single repetitions, ties and equal values."""
    rng = np.random.default_rng(seed)
    rows = []
    for e, s, r in itertools.product(range(entrants), range(subjects), range(repetitions)):
        if (e + 2 * s) % 11 == 5 or (e == 5 and r):  # never run; run once
            continue
        failed = (e, s) == (2, 1) or e == 6
        for m, (metric, original) in enumerate(METRICS.items()):
            level = 0.1 + (e + s + m) % 4 / 10
            value = level + (0 if e == 3 else rng.normal(0, 0.02))
            value = 5 if e == 4 and metric == "seconds" else value
            rows.append(
                {
                    "subject": f"s{s}",
                    "entrant": f"e{e}",
                    "category": ("model", "layer", "neuron")[e % 3],
                    "repetition": r,
                    "metric": metric,
                    "value": None if failed else abs(round(value, 4)),
                    "original": None if failed else original,
                    "deterministic": e in (3, 4),
                    "outcome": "FAILURE" if failed else "FIXED",
                    "reason": "the time limit was exceeded" if failed else None,
                }
            )
    return pd.DataFrame(rows)


# -- the browser -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser, tmp_path):
    """Open a report offline; errors in the console and requests fail the test at its end."""
    contexts, complaints = [], []

    def visit(text, hash="", **options):
        path = tmp_path / "report.html"
        path.write_text(text)
        context = browser.new_context(offline=True, **{**DESKTOP, **options})
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: _note_request(complaints, request.url, path.as_uri()))
        page.goto(path.as_uri() + hash)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not complaints


def _note_request(complaints, url, own):
    if not url.startswith(("data:", "blob:")) and url.partition("#")[0] != own:
        complaints.append(f"request: {url}")


@pytest.fixture(scope="module")
def report():
    return build(Content(results()))


def texts(page, name):
    """Return head and rows of the table in an element, folded up or not."""
    rows = page.evaluate(
        "id => [...document.querySelector(`#${id} table`).rows]"
        ".map(row => [...row.cells].map(cell => cell.textContent.trim()))",
        name,
    )
    return rows[0], rows[1:]


def recompute(page, metric, entrants=None, subjects=None, mode="standard"):
    return page.evaluate(
        """([metric, entrants, subjects, mode]) => {
            const { data } = Page;
            const positions = (all, names) => all.map((_, i) => i)
                .filter((i) => !names || names.includes(all[i].name ?? all[i]));
            const selection = Statistics.attempted(data, {
                entrants: positions(data.entrants, entrants),
                subjects: positions(data.subjects, subjects),
            });
            const found = Statistics.compare(data, Page.metricOf(metric), selection, mode);
            const name = (e) => data.entrants[e].name;
            return {
                order: found.order.map((row) => ({ ...row, entrant: name(row.entrant) })),
                pairs: found.pairs.map((pair) => ({ ...pair, a: name(pair.a), b: name(pair.b) })),
                notes: found.notes,
            };
        }""",
        [metric, entrants, subjects, mode],
    )


# -- statistics ------------------------------------------------------------------------------------

SELECTIONS = [
    (None, None),
    (["e0", "e1", "e2", "e4"], None),
    (None, ["s1"]),
    (["e0", "e3", "e4", "e5", "e6"], ["s0", "s2"]),
    (["e1"], None),
]
PAIRS = {"delta": "delta", "low": "low", "high": "high", "t": "t", "df": "df", "p": "p",
         "p_adjusted": "adjusted", "g": "g", "new_low": "newLow", "new_high": "newHigh",
         "won": "won", "lost": "lost", "tied": "tied", "common": "common"}  # fmt: skip
ORDER = {"score": "score", "low": "low", "high": "high", "rank": "rank", "subjects": "subjects",
         "complete_score": "completeScore", "complete_rank": "completeRank", "fixed": "fixed",
         "attempted": "attempted"}  # fmt: skip


def same_numbers(python, browser, columns):
    for ours, theirs in columns.items():
        expected = python[ours].to_numpy(float)
        found = np.array([math.nan if row[theirs] is None else row[theirs] for row in browser])
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9, err_msg=ours)


def words(note):
    return sorted(re.findall(r"\w+", note))  # the order of the entrants named is free


@pytest.mark.parametrize("mode", ["standard", "study"])
def test_statistics_are_those_of_python_for_every_selection(visit, mode):
    for seed in range(3):
        frame = results(seed, subjects=2 + seed)
        page = visit(build(Content(frame)))
        for (entrants, subjects), metric in itertools.product(SELECTIONS, METRICS):
            known = set(frame["subject"])
            subjects = subjects and [s for s in subjects if s in known]
            python = ms.compare(frame, metric, entrants=entrants, subjects=subjects, mode=mode)
            found = recompute(page, metric, entrants, subjects, mode)
            assert [row["entrant"] for row in found["order"]] == list(python.order["entrant"])
            assert [row["letters"] for row in found["order"]] == list(python.order["letters"])
            same_numbers(python.order, found["order"], ORDER)
            assert [(p["a"], p["b"]) for p in found["pairs"]] == list(
                zip(python.pairs["a"], python.pairs["b"], strict=True)
            )
            assert [p["reason"] for p in found["pairs"]] == [
                None if pd.isna(reason) else reason for reason in python.pairs["reason"]
            ]
            same_numbers(python.pairs, found["pairs"], PAIRS)
            assert sorted(map(words, found["notes"])) == sorted(map(words, python.notes))


def test_distributions_agree_far_into_the_tails(visit, report):
    from scipy import stats

    page = visit(report)
    t, df = np.geomspace(1e-3, 1e3, 40), np.geomspace(1, 5e3, 25)
    grid = [[float(a), float(b)] for a in t for b in df]
    found = page.evaluate("grid => grid.map(([t, df]) => Statistics.twoSided(t, df))", grid)
    expected = [2 * stats.t.sf(a, b) for a, b in grid]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-300)
    factors = page.evaluate("df => df.map(Statistics.intervalFactor)", [float(one) for one in df])
    np.testing.assert_allclose(factors, stats.t.ppf(0.975, df), rtol=1e-9)


def test_letters_are_those_of_python_for_random_graphs(visit, report):
    page = visit(report)
    rng = np.random.default_rng(0)
    for count in rng.integers(1, 13, 60):
        upper = np.triu(rng.random((count, count)) < rng.random(), 1)
        different = upper | upper.T
        found = page.evaluate(
            "([n, d]) => Statistics.compactLetters(n, d)", [int(count), different.tolist()]
        )
        names = [str(i) for i in range(count)]
        assert found == [list(column) for column in ms.compact_letters(names, different).columns]


def test_deviations_and_front_are_those_of_python(visit):
    frame = results(1)
    page = visit(build(Content(frame)))
    for metric in METRICS:
        found = page.evaluate(
            "id => Statistics.effects(Page.data, Page.metricOf(id), Page.selection())"
            ".map((row) => ({ ...row, entrant: Page.data.entrants[row.entrant].name }))",
            metric,
        )
        expected = effects(ms.check(frame), metric).loc[[row["entrant"] for row in found]]
        columns = {"score": "score", "deviation": "deviation", "subjects": "subjects"}
        same_numbers(expected, found, columns)
    points = np.random.default_rng(2).integers(0, 4, (30, 2)).astype(float)
    front = page.evaluate("points => Statistics.paretoFront(points)", points.tolist())
    assert front == list(ms.pareto_front(pd.DataFrame(points)))


def test_the_page_prints_what_python_printed(visit, report):
    """The tables that the document holds are those the scripts make of the same values."""
    live = visit(report)
    still = visit(report, java_script_enabled=False)
    names = ["leaderboard-table", "ranking", "pairs", "matrix", "values", "regression",
             "robustness", "profile", "time"]  # fmt: skip
    for name in names:
        rows = still.locator(f"#{name} table tr").all()
        printed = [row.locator("th, td").all_text_contents() for row in rows]
        assert len(printed) > 3
        assert [printed[0], printed[1:]] == list(texts(live, name))


# -- a click through it ----------------------------------------------------------------------------


def test_a_selection_is_computed_anew(visit, report):
    frame = results()
    page = visit(report)
    before = texts(page, "ranking")[1]
    page.locator("#controls summary").click()
    page.get_by_label("s1", exact=True).uncheck()
    page.get_by_label("e0", exact=True).uncheck()
    assert "6 of 7 entrants, 2 of 3 subjects" in page.locator("#selected").inner_text()
    chosen = [f"e{i}" for i in range(1, 7)]
    python = ms.compare(frame, "repair_rate", entrants=chosen, subjects=["s0", "s2"])
    for name, make in (
        ("ranking", ranking_table),
        ("pairs", pairs_table),
        ("matrix", matrix_table),
    ):
        assert texts(page, name)[1] == make(python).texts()
    assert texts(page, "ranking")[1] != before
    assert not page.locator('#outcomes tr[data-entrant="e0"]').is_visible()
    assert not page.locator('#outcomes th[data-subject="s1"]').is_visible()
    page.locator("#mode").select_option("study")
    python = ms.compare(frame, "repair_rate", entrants=chosen, subjects=["s0", "s2"], mode="study")
    assert texts(page, "ranking")[1] == ranking_table(python).texts()
    page.locator("#mode").select_option("standard")
    page.locator("#metric").select_option("nfr")
    python = ms.compare(frame, "nfr", entrants=chosen, subjects=["s0", "s2"])
    assert texts(page, "ranking")[1] == ranking_table(python).texts()


def test_categories_none_and_all(visit, report):
    page = visit(report)
    page.locator("#controls summary").click()
    neuron = page.locator(".categories .switches", has_text="neuron")
    neuron.get_by_text("none").click()
    assert {row[2] for row in texts(page, "leaderboard-table")[1]} == {"model", "layer"}
    page.locator("#filter-entrants legend").get_by_text("none").click()
    assert page.locator("#empty").is_visible()
    assert not page.locator("#leaderboard").is_visible()
    page.locator("#filter-entrants legend").get_by_text("all").click()
    assert not page.locator("#empty").is_visible()
    assert len(texts(page, "leaderboard-table")[1]) == 7


def test_figures_are_drawn_from_their_tables(visit, report):
    page = visit(report)
    for figure in page.locator("figure[data-table]").all():
        assert figure.locator(".main-svg").count() > 0
        table = page.locator(f"#{figure.get_attribute('data-table')}")
        assert not table.locator("table").first.is_visible()
        table.locator("summary").click()
        assert table.locator("tbody tr").count() > 1
    drawn = page.evaluate(
        "() => document.getElementById('figure-regression').data.flatMap((t) => [...t.hovertext])"
    )
    assert len(drawn) == len(texts(page, "regression")[1])
    bars = page.evaluate(
        "() => document.getElementById('figure-regression').data.flatMap((t) => "
        "[...t.error_y.array])"
    )
    assert sum(one is not None and one > 0 for one in bars) >= 3


def test_columns_sort(visit, report):
    page = visit(report)
    head = page.locator("#leaderboard-table th button", has_text="fixed")
    head.click()
    fixed = [row[3] for row in texts(page, "leaderboard-table")[1]]
    assert fixed[0] == "0/9"
    head.click()
    assert [row[3] for row in texts(page, "leaderboard-table")[1]][-1] == "0/9"


def test_pages_of_cells_open_by_their_hash(visit, make_record, tmp_path):
    make_record(1)
    make_record(2)
    make_record(1, entrant="other", unadaptable=True)
    text = html_report.html(*records.find([tmp_path / "home" / "runs"]))
    page = visit(text)
    page.locator("#outcomes a").first.click()
    assert page.locator("#cell h2").inner_text() == "arachne on tiny-lenet5, repetition 1"
    assert not page.locator("#report").is_visible()
    assert page.locator("#cell .tile img").count() > 0
    widths = page.evaluate(
        "async () => Promise.all([...document.querySelectorAll('#cell img')].map(async (i) => "
        "{ i.loading = 'eager'; await i.decode(); return i.naturalWidth; }))"
    )
    assert all(width > 0 for width in widths)
    assert page.locator("#cell .main-svg").count() > 0
    page.get_by_role("link", name="repetition 2").click()
    assert "repetition 2" in page.locator("#cell h2").inner_text()
    page.go_back()
    assert "repetition 1" in page.locator("#cell h2").inner_text()
    page.get_by_role("link", name="Back to the report").click()
    assert page.locator("#leaderboard").is_visible()
    page = visit(text, "#cell/tiny-lenet5/other/1")
    assert "it has no square layer" in page.locator("#cell").inner_text()
    page = visit(text, "#cell/none/nobody/9")
    assert "holds no page of this cell" in page.locator("#cell").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_down_only_and_texts_stand_out(visit, report, scheme):
    page = visit(report, **PHONE, color_scheme=scheme)
    for summary in page.locator("summary").all():
        summary.click()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    contrast = page.evaluate(CONTRAST)
    assert contrast == []


CONTRAST = """() => {
    const channels = (text) => text.match(/[\\d.]+/g).map(Number);
    const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
        .map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const back = (node) => {
        for (let at = node; at; at = at.parentElement) {
            const found = channels(getComputedStyle(at).backgroundColor);
            if (found.length === 3 || found[3] > 0) return found;
        }
        return [255, 255, 255];
    };
    const weak = [];
    const read = "p, a, td, th, span, summary, h1, h2, dd, label";
    for (const node of document.querySelectorAll(read)) {
        if (!node.offsetParent || !node.textContent.trim()) continue;
        const [a, b] = [channels(getComputedStyle(node).color), back(node)].map(light);
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (ratio < 4.5) weak.push(`${node.tagName} ${node.className} ${ratio.toFixed(2)}`);
    }
    return [...new Set(weak)];
}"""


def test_the_figures_follow_the_colour_scheme(visit, report):
    page = visit(report)
    ink = "() => document.getElementById('figure-time').layout.font.color"
    before = page.evaluate(ink)
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"before => ({ink})() !== before", arg=before)


@pytest.mark.parametrize("kept", ["no cell finished", "one repetition", "one entrant"])
def test_little_data_is_no_error(visit, kept):
    frame = results()
    if kept == "no cell finished":
        frame = frame.assign(outcome="FAILURE", reason="the time limit was exceeded", value=None)
    elif kept == "one repetition":
        frame = frame[frame["repetition"] == 0]
    else:
        frame = frame[frame["entrant"] == "e0"]
    page = visit(build(Content(frame)))
    assert page.locator("#outcomes").is_visible()
    assert page.locator("#empty").is_visible() == (kept == "no cell finished")
    assert "NaN" not in page.locator("body").inner_text()


def test_hostile_names_stay_texts(visit):
    frame = results()
    names = {"e0": HOSTILE, "s0": HOSTILE}
    hostile = frame.replace({"entrant": names, "subject": names}).assign(category=HOSTILE)
    content = Content(hostile, title=HOSTILE, problems=[HOSTILE])
    page = visit(build(content))
    assert page.title() == HOSTILE
    assert page.locator("img").count() == 0
    assert HOSTILE in [row[0] for row in texts(page, "leaderboard-table")[1]]
    assert page.locator("#figure-intervals").get_by_text(HOSTILE).count() > 0
    page.locator("#controls summary").click()
    page.get_by_label(HOSTILE).first.uncheck()
    assert page.locator("h1").inner_text() == HOSTILE
