"use strict";

/** The figures, drawn by Plotly from the same points as their tables. */
const Figures = (() => {
  const SYMBOLS = { model: "circle", layer: "diamond", neuron: "square" };
  const CONFIG = {
    displaylogo: false, responsive: true, modeBarButtonsToRemove: ["select2d", "lasso2d"],
    displayModeBar: matchMedia("(hover: hover)").matches ? "hover" : false,
  };
  const ROOM = { x: 0.09, y: 0.05 }; // of a name, as shares of the axes

  const theme = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const colourOf = (category) => theme(`--${Object.hasOwn(SYMBOLS, category) ? category : "other"}`);
  const symbolOf = (category) => SYMBOLS[category] ?? "cross";

  /** A name as Plotly takes it: it reads tags in texts, so there must be none. */
  const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

  function axis(title, options = {}) {
    return {
      title: { text: title, standoff: 8 }, automargin: true, zerolinecolor: theme("--line-strong"),
      gridcolor: theme("--line"), linecolor: theme("--line-strong"), ...options,
    };
  }

  function draw(place, traces, layout) {
    const ink = theme("--ink");
    return Plotly.react(place, traces, {
      margin: { t: 24, r: 16, b: 48, l: 56 },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, sans-serif", size: 13, color: ink },
      hoverlabel: { bgcolor: theme("--paper"), font: { color: ink } },
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
      hovermode: "closest",
      ...layout,
    }, CONFIG);
  }

  const labelOf = (data, e) => plain(data.entrants[e].label);
  const hoverOf = (data, e, text) => `<b>${plain(data.entrants[e].name)}</b><br>${text}`;

  /** The categories of some entrants, in the order of the report. */
  function categoriesOf(data, entrants) {
    const here = new Set(entrants.map((e) => data.entrants[e].category));
    return [...new Set(data.entrants.map((one) => one.category))].filter((one) => here.has(one));
  }

  function title(metric, data) {
    const wanted = metric.scoring === "time" ? "" : `, ${metric.higher ? "higher" : "lower"} is better`;
    return `${metric.title} (${data.units[metric.scoring]}${wanted})`;
  }

  /** The value that is drawn for a score: as it is read, time in seconds. */
  function drawn(metric, score) {
    return metric.scoring === "time" ? 10 ** -score : metric.sign * score;
  }

  function bars(metric, points, k) {
    const end = (point, sign) => {
      const { score, deviation } = point.effects[k];
      const length = Math.abs(drawn(metric, score + sign * deviation) - drawn(metric, score));
      return length > 0 ? length : NaN; // no bar rather than one of no length
    };
    const up = metric.scoring === "time" ? -1 : metric.sign;
    return {
      type: "data", symmetric: false, thickness: 1.2, width: 4,
      array: points.map((point) => end(point, up)), arrayminus: points.map((point) => end(point, -up)),
    };
  }

  /** The points whose names are written beside them: those of crowded ones appear on hovering. */
  function labelled(points, metrics) {
    const places = metrics.map((metric, k) => {
      const at = points.map((point) =>
        metric.scoring === "time" ? -point.effects[k].score : drawn(metric, point.effects[k].score));
      const [low, high] = [Math.min(...at), Math.max(...at)];
      return at.map((one) => (one - low) / (high - low || 1));
    });
    const near = (i, j) =>
      Math.abs(places[0][i] - places[0][j]) < ROOM.x && Math.abs(places[1][i] - places[1][j]) < ROOM.y;
    const chosen = [];
    points.forEach((_, i) => {
      if (!chosen.some((j) => near(i, j))) chosen.push(i);
    });
    return new Set(chosen.map((i) => points[i]));
  }

  /** Two metrics against each other, a point per entrant with its deviations. */
  function scatter(place, data, { metrics, points }, most) {
    const [x, y] = metrics;
    const complete = points.filter((point) => point.effects.every((one) => !Number.isNaN(one.score)));
    const named = labelled(complete, metrics);
    const across = complete.map((point) => drawn(x, point.effects[0].score));
    const middle = (Math.min(...across) + Math.max(...across)) / 2;
    const farRight = (point) => drawn(x, point.effects[0].score) > middle; // names stay inside
    const traces = categoriesOf(data, complete.map((point) => point.entrant)).map((category) => {
      const here = complete.filter((point) => data.entrants[point.entrant].category === category);
      const colour = colourOf(category);
      const hover = (point) =>
        metrics.map((metric, k) => `${metric.title}: ${Tables.effect(point.effects[k], metric)}`).join("<br>") +
        `<br>${point.subjects} of ${most} subjects`;
      return {
        type: "scatter", mode: "markers+text", cliponaxis: false, name: plain(category || "no category"),
        x: here.map((point) => drawn(x, point.effects[0].score)),
        y: here.map((point) => drawn(y, point.effects[1].score)),
        error_x: { ...bars(x, here, 0), color: colour }, error_y: { ...bars(y, here, 1), color: colour },
        text: here.map((point) => (named.has(point) ? labelOf(data, point.entrant) : "")),
        textposition: here.map((point) => (farRight(point) ? "top left" : "top right")), textfont: { size: 11, color: theme("--ink") },
        hovertext: here.map((point) => hoverOf(data, point.entrant, hover(point))), hoverinfo: "text",
        marker: {
          size: 10, color: colour, line: { width: 1.5, color: colour },
          symbol: here.map((point) => symbolOf(category) + (point.subjects < most ? "-open" : "")),
        },
      };
    });
    const side = (metric) =>
      axis(title(metric, data), metric.scoring === "time" ? { type: "log", ticksuffix: " s", dtick: 1 } : {});
    return draw(place, traces, { xaxis: side(x), yaxis: side(y) });
  }

  /** Every entrant's score with its 95 % interval, best at the top. */
  function intervals(place, data, comparison) {
    const order = comparison.order;
    const known = (one, row) => (one === row.score ? NaN : Math.abs(one - row.score));
    const traces = categoriesOf(data, order.map((row) => row.entrant)).map((category) => {
      const here = order.filter((row) => data.entrants[row.entrant].category === category);
      return {
        type: "scatter", mode: "markers", name: plain(category || "no category"),
        x: here.map((row) => row.score), y: here.map((row) => labelOf(data, row.entrant)),
        error_x: {
          type: "data", symmetric: false, color: colourOf(category), thickness: 1.4, width: 5,
          array: here.map((row) => known(row.high, row)), arrayminus: here.map((row) => known(row.low, row)),
        },
        marker: { size: 9, color: colourOf(category), symbol: symbolOf(category) },
        hovertext: here.map((row) =>
          hoverOf(data, row.entrant, `${Tables.number(row.score)}<br>rank ${row.rank}, letters ${row.letters || "-"}`)),
        hoverinfo: "text",
      };
    });
    const unit = Tables.UNITS[comparison.scale];
    return draw(place, traces, {
      height: 110 + 24 * order.length,
      xaxis: axis(`${comparison.metric.title}: score in ${unit}, higher is better`),
      yaxis: axis("", {
        categoryorder: "array", categoryarray: order.map((row) => labelOf(data, row.entrant)).reverse(),
      }),
    });
  }

  /** Parallel coordinates: each metric from the worst to the best of the selection. */
  function profile(place, data, { metrics, points }) {
    const scaled = metrics.map((_, k) => {
      const scores = points.map((point) => point.effects[k].score).filter((one) => !Number.isNaN(one));
      const [worst, best] = [Math.min(...scores), Math.max(...scores)];
      return (one) => (Number.isNaN(one) ? null : best === worst ? 1 : (one - worst) / (best - worst));
    });
    const dashes = ["solid", "dash", "dot"];
    const traces = points.map((point, i) => {
      const colour = theme(`--series-${i % 8}`);
      return {
        type: "scatter", mode: "lines+markers", name: labelOf(data, point.entrant),
        x: metrics.map((metric) => metric.title),
        y: metrics.map((_, k) => scaled[k](point.effects[k].score)),
        line: { color: colour, width: 2, dash: dashes[Math.floor(i / 8) % 3] },
        marker: { color: colour, size: 7, symbol: symbolOf(data.entrants[point.entrant].category) },
        hovertext: metrics.map((metric, k) =>
          hoverOf(data, point.entrant, `${metric.title}: ${Tables.effect(point.effects[k], metric)}`)),
        hoverinfo: "text",
      };
    });
    return draw(place, traces, {
      xaxis: axis("", { fixedrange: true }),
      yaxis: axis("", { tickvals: [0, 0.5, 1], ticktext: ["worst", "", "best"], range: [-0.06, 1.06], fixedrange: true }),
      legend: { orientation: "h", y: -0.12, yanchor: "top", x: 0 },
      margin: { t: 12, r: 16, b: 40, l: 56 },
    });
  }

  /** The candidates of a cell: validation accuracy by step. */
  function curve(place, page) {
    const points = page.curve.filter((point) => point[1] !== null);
    const traces = [{
      type: "scatter", mode: points.length > 1 ? "lines+markers" : "markers", name: "candidate",
      x: points.map((point) => point[0]), y: points.map((point) => 100 * point[1]),
      line: { color: theme("--series-0"), width: 2 }, marker: { color: theme("--series-0"), size: 7 },
      hovertext: points.map(([step, accuracy, seconds]) =>
        `step ${step}<br>${Tables.fixed(100 * accuracy, 2)} %` +
        (seconds === null ? "" : `<br>after ${Tables.duration(seconds)}`)),
      hoverinfo: "text",
    }];
    if (page.original !== null) {
      const steps = points.map((point) => point[0]);
      traces.push({
        type: "scatter", mode: "lines", name: "original model", hoverinfo: "name",
        x: [Math.min(...steps) - 0.5, Math.max(...steps) + 0.5], y: [100 * page.original, 100 * page.original],
        line: { color: theme("--line-strong"), dash: "dash", width: 1.5 },
      });
    }
    return draw(place, traces, { xaxis: axis("step"), yaxis: axis("validation accuracy (%)") });
  }

  return { scatter, intervals, profile, curve, plain };
})();
