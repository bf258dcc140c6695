"use strict";

/** Tables as the Python package prints them, and how any table becomes part of the page. */
const Tables = (() => {
  // -- numbers ------------------------------------------------------------------------------------

  /** A number with fixed digits; exact halves go to the even digit, as in Python. */
  function fixed(value, digits) {
    const text = value.toFixed(digits);
    const doubled = Math.abs(value) * 2 ** (digits + 1);
    if (!Number.isInteger(doubled) || doubled % 2 === 0) return text; // no exact half
    const last = Number(text.at(-1));
    if (last % 2 === 0) return text;
    const step = 10 ** -digits;
    return (value - Math.sign(value) * step / 2).toFixed(digits);
  }

  const signless = (text) => (Number(text) === 0 ? text.replace(/^-/, "") : text);
  const number = (value) => (Number.isNaN(value) ? "-" : signless(fixed(value, 2)));
  const rank = (value) => (Number.isNaN(value) ? "-" : fixed(value, 0));

  function interval(low, high) {
    return Number.isNaN(low) || Number.isNaN(high) ? "-" : `${number(low)} to ${number(high)}`;
  }

  function p(value) {
    if (Number.isNaN(value)) return "?";
    if (value >= 0.001) return fixed(value, 3);
    return value.toExponential(1).replace(/e([+-])(\d)$/, "e$10$2");
  }

  /** 13h46m from an hour on, 09m05s below, 0.4s below ten seconds. */
  function duration(seconds) {
    const two = (value) => String(value).padStart(2, "0");
    if (seconds < 10) return `${fixed(seconds, 1)}s`;
    const whole = Number(fixed(seconds, 0));
    if (whole < 3600) return `${two(Math.floor(whole / 60))}m${two(whole % 60)}s`;
    const minutes = Number(fixed(seconds / 60, 0));
    return `${two(Math.floor(minutes / 60))}h${two(minutes % 60)}m`;
  }

  /** A mean score as it is read: NFR and changes of ASR are lower for the better, time is time. */
  function effect({ score, deviation }, metric) {
    if (Number.isNaN(score)) return "-";
    const alone = Number.isNaN(deviation);
    if (metric.scoring === "time") {
      const middle = duration(10 ** -score);
      const bounds = [10 ** -(score + deviation), 10 ** -(score - deviation)];
      return alone ? middle : `${middle} (${duration(bounds[0])} to ${duration(bounds[1])})`;
    }
    const text = signless(fixed(metric.sign * score, 2));
    return alone ? text : `${text} ± ${fixed(deviation, 2)}`;
  }

  // -- tables of a selection ----------------------------------------------------------------------

  const nameOf = (data, e) => data.entrants[e].name;
  const UNITS = {
    points: "percentage points",
    relative: "relative gain in percent",
    log10: "powers of ten of seconds",
    seconds: "seconds",
  };

  function leaderboard(data, selection, comparisons, first) {
    const main = data.main.map((id) => comparisons[id]);
    const by = comparisons[first];
    const ranked = by.order.map((row) => row.entrant);
    const rest = selection.entrants.filter((e) => !ranked.includes(e));
    const attempts = (e) => {
      const tried = data.attempts.filter(([one, s]) => one === e && selection.subjects.includes(s));
      return [tried.filter(([, , , outcome]) => outcome === "FIXED").length, tried.length];
    };
    const rows = [...ranked, ...rest].map((e) => [
      nameOf(data, e),
      rank(by.order.find((row) => row.entrant === e)?.rank ?? NaN),
      data.entrants[e].category,
      attempts(e).join("/"),
      ...main.map((comparison) => {
        const row = comparison.order.find((one) => one.entrant === e);
        return row ? `${scored(row, comparison)} ${row.letters}`.trim() : "-";
      }),
    ]);
    const heads = main.map(({ metric, scale }) => {
      const unit = scale === "relative" && metric.scoring === "change" ? "gain, %" : data.units[metric.scoring];
      return `${metric.title} (${scale === "seconds" ? "mean" : unit})`;
    });
    const columns = ["approach", "rank", "category", "fixed", ...heads];
    return { title: "Leaderboard: means and letters", columns, rows, notes: [] };
  }

  /** A mean score as it is read; as in the study, gains stay gains and seconds are not logarithms. */
  function scored({ score }, { metric, scale }) {
    if (scale === "seconds") return duration(-score);
    if (scale === "relative" && metric.scoring === "change") return number(score);
    return effect({ score, deviation: NaN }, metric);
  }

  function ranking(data, comparison) {
    return {
      title: `${comparison.metric.title} in ${UNITS[comparison.scale]}, higher is better`,
      columns: [
        "rank", "approach", "letters", "score", "95 % interval", "subjects",
        "rank on shared subjects", "fixed",
      ],
      rows: comparison.order.map((row) => [
        rank(row.rank), nameOf(data, row.entrant), row.letters || "-", number(row.score),
        interval(row.low, row.high), String(row.subjects), rank(row.completeRank),
        `${row.fixed}/${row.attempted}`,
      ]),
      notes: comparison.notes,
    };
  }

  function pairs(data, comparison) {
    return {
      title: `Pairs: ${comparison.metric.title} in ${UNITS[comparison.scale]}`,
      columns: [
        "approach", "difference", "95 % interval", "p", "adjusted p", "significant",
        "won / lost / tied", "interval on new subjects", "Hedges g",
      ],
      rows: comparison.pairs.map((pair) => [
        `${nameOf(data, pair.a)} - ${nameOf(data, pair.b)}`, number(pair.delta),
        interval(pair.low, pair.high), p(pair.p), p(pair.adjusted),
        pair.significant ? "yes" : Number.isNaN(pair.p) ? "?" : "no",
        `${pair.won} / ${pair.lost} / ${pair.tied}`, interval(pair.newLow, pair.newHigh),
        number(pair.g),
      ]),
      notes: [],
    };
  }

  function matrix(data, comparison) {
    const names = comparison.order.map((row) => nameOf(data, row.entrant));
    return {
      title: `Adjusted p values: ${comparison.metric.title}`,
      columns: ["approach", ...names],
      rows: names.map((name, i) => [
        name, ...names.map((_, j) => (i === j ? "" : p(comparison.matrix[i][j]))),
      ]),
      notes: [],
    };
  }

  /** Mean and standard deviation (ddof 1) of every cell, entrant by subject. */
  function values(data, metric, selection) {
    const { subjects } = selection;
    const rows = selection.entrants.map((e) => [
      nameOf(data, e),
      ...subjects.map((s) => valueText(data, metric, e, s)),
    ]);
    return {
      title: `${metric.title} by subject${metric.percent ? " (%)" : ""}`,
      columns: ["approach", ...subjects.map((s) => data.subjects[s])],
      rows,
      notes: [],
    };
  }

  function valueText(data, metric, e, s) {
    const here = (data.values[metric.id] ?? []).filter((row) => row[0] === e && row[1] === s);
    const known = here.filter((row) => row[3] !== null).map((row) => row[3]);
    if (!known.length) {
      const tried = data.attempts.filter((row) => row[0] === e && row[1] === s);
      const ends = new Set(tried.map((row) => row[3]).filter((outcome) => outcome !== "FIXED"));
      return ends.size ? [...ends].join(", ") : "-";
    }
    const mean = known.reduce((total, one) => total + one, 0) / known.length;
    const text = fixed(metric.shown * mean, metric.decimals);
    const equal = known.every((one) => one === known[0]);
    const copies = equal && here.every((row) => row[5] === 1) && !metric.noisy;
    if (known.length === 1 || copies) return text;
    const squares = known.reduce((total, one) => total + (one - mean) ** 2, 0);
    const deviation = equal ? 0 : Math.sqrt(squares / (known.length - 1));
    return `${text} ± ${fixed(metric.shown * deviation, metric.decimals)}`;
  }

  /** The points of a figure: for each entrant with a value, mean and deviation of its metrics. */
  function effectPoints(data, name, selection) {
    const wanted = data.effects[name];
    const metrics = wanted.metrics.flatMap((id) => data.metrics.filter((metric) => metric.id === id));
    const found = metrics.map((metric) => Statistics.effects(data, metric, selection));
    const points = selection.entrants.map((entrant, i) => ({
      entrant,
      effects: found.map((part) => part[i]),
      subjects: Math.max(0, ...found.map((part) => part[i].subjects)),
    }));
    if (wanted.front && metrics.length > 1) {
      const front = Statistics.paretoFront(
        points.map((point) => point.effects.map((one) => one.score)),
      );
      points.forEach((point, i) => (point.front = front[i]));
    }
    return { metrics, points: points.filter((point) => point.subjects > 0) };
  }

  function effects(data, name, { metrics, points }) {
    const front = data.effects[name].front && metrics.length > 1;
    return {
      title: data.effects[name].title,
      columns: [
        "approach", "category",
        ...metrics.map((metric) => `${metric.title} (${data.units[metric.scoring]})`),
        "subjects", ...(front ? ["not dominated"] : []),
      ],
      rows: points.map((point) => [
        nameOf(data, point.entrant), data.entrants[point.entrant].category,
        ...point.effects.map((one, k) => effect(one, metrics[k])),
        String(point.subjects), ...(front ? [point.front ? "yes" : ""] : []),
      ]),
      notes: [],
    };
  }

  // -- into the page ------------------------------------------------------------------------------

  /** An element with attributes and children; texts are texts, never markup. */
  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  function render(table) {
    const head = element("tr", {}, ...table.columns.map((text) => element("th", { scope: "col" }, text)));
    const rows = table.rows.map((row) =>
      element("tr", {}, ...row.map((text, k) => (k ? element("td", {}, text) : element("th", { scope: "row" }, text)))),
    );
    const whole = element(
      "table", {},
      element("caption", {}, table.title), element("thead", {}, head), element("tbody", {}, ...rows),
    );
    if (table.rows.length > 1) makeSortable(whole);
    const notes = table.notes.map((note) => element("p", { class: "note" }, note));
    return [element("div", { class: "scroll", tabindex: "0" }, whole), ...notes];
  }

  /** Sort by a column on a click of its head; numbers as numbers. */
  function makeSortable(table) {
    const body = table.tBodies[0];
    [...table.tHead.rows[0].cells].forEach((cell, k) => {
      const button = element("button", { type: "button", title: "sort by this column" });
      button.append(...cell.childNodes);
      cell.append(button);
      button.addEventListener("click", () => {
        const down = cell.getAttribute("aria-sort") === "ascending";
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        cell.setAttribute("aria-sort", down ? "descending" : "ascending");
        const key = (row) => sortKey(row.cells[k]?.textContent ?? "");
        const sorted = [...body.rows].sort((a, b) => compareKeys(key(a), key(b)) * (down ? -1 : 1));
        body.append(...sorted);
      });
    });
  }

  function sortKey(text) {
    const time = /^(?:(\d+)h)?(?:(\d+)m)?(?:([\d.]+)s)?(?: |$)/.exec(text);
    if (time && time[0].trim()) return 3600 * (time[1] ?? 0) + 60 * (time[2] ?? 0) + Number(time[3] ?? 0);
    const found = /^-?\d+(\.\d+)?(e[+-]\d+)?/.exec(text);
    return found ? Number(found[0]) : text;
  }

  function compareKeys(a, b) {
    if (typeof a === typeof b) return a < b ? -1 : a > b ? 1 : 0;
    return typeof a === "number" ? -1 : 1;
  }

  return {
    fixed, duration, element, render, leaderboard, ranking, pairs, matrix, values, effectPoints,
    effects, effect, number, nameOf, UNITS, makeSortable,
  };
})();
