"use strict";

/** The page: what the reader selects, and everything computed anew from it. */
const Page = (() => {
  const { element, render } = Tables;
  const data = JSON.parse(document.getElementById("data").textContent);
  const everything = {
    subjects: data.subjects.map((_, s) => s),
    entrants: data.entrants.map((_, e) => e),
  };
  const state = { subjects: new Set(everything.subjects), entrants: new Set(everything.entrants) };
  const byId = (id) => document.getElementById(id);
  const metricOf = (id) => data.metrics.find((metric) => metric.id === id);

  function selection() {
    return Statistics.attempted(data, {
      subjects: everything.subjects.filter((s) => state.subjects.has(s)),
      entrants: everything.entrants.filter((e) => state.entrants.has(e)),
    });
  }

  // -- filters ------------------------------------------------------------------------------------

  function checkbox(set, member, text) {
    const box = element("input", { type: "checkbox", value: String(member) });
    box.checked = true;
    box.addEventListener("change", () => {
      if (box.checked) set.add(member);
      else set.delete(member);
      update();
    });
    return element("label", {}, box, text);
  }

  /** All or none of a group of boxes at once. */
  function switches(title, boxes, members) {
    const set = (checked) => {
      for (const box of boxes.querySelectorAll("input")) {
        if (!members || members.includes(Number(box.value))) {
          if (box.checked !== checked) box.click();
        }
      }
    };
    const button = (word, checked) => {
      const made = element("button", { type: "button" }, word);
      made.addEventListener("click", () => quietly(() => set(checked)));
      return made;
    };
    return element("span", { class: "switches" }, title, button("all", true), button("none", false));
  }

  let quiet = false;

  /** Do several changes and compute once. */
  function quietly(change) {
    quiet = true;
    change();
    quiet = false;
    update();
  }

  function makeFilters() {
    const subjects = element("div", { class: "boxes" }, ...everything.subjects.map((s) =>
      checkbox(state.subjects, s, data.subjects[s])));
    const entrants = element("div", { class: "boxes" }, ...everything.entrants.map((e) =>
      checkbox(state.entrants, e, data.entrants[e].name)));
    const categories = [...new Set(data.entrants.map((one) => one.category))];
    const byCategory = categories.map((category) =>
      switches(category || "no category", entrants,
        everything.entrants.filter((e) => data.entrants[e].category === category)));
    byId("filters").append(
      element("fieldset", { id: "filter-subjects" }, element("legend", {}, switches("Subjects", subjects)), subjects),
      element("fieldset", { id: "filter-entrants" },
        element("legend", {}, switches("Entrants", entrants)),
        element("p", { class: "categories" }, ...byCategory), entrants),
    );
    const choice = byId("metric");
    choice.replaceChildren(...data.metrics.map((metric) =>
      element("option", { value: metric.id }, metric.id === "seconds" ? "time" : `${metric.title} (${metric.id})`)));
    if (data.first) choice.value = data.first;
    choice.addEventListener("change", update);
    byId("mode").addEventListener("change", update);
    byId("controls").hidden = false;
  }

  // -- what follows from the selection ------------------------------------------------------------

  function show(id, table) {
    byId(id).replaceChildren(...render(table));
  }

  function update() {
    if (quiet) return;
    const chosen = selection();
    const empty = !chosen.subjects.length || !chosen.entrants.length || !data.first;
    byId("selected").textContent =
      `${state.entrants.size} of ${data.entrants.length} entrants, ` +
      `${state.subjects.size} of ${data.subjects.length} subjects`;
    byId("empty").hidden = !empty;
    document.body.classList.toggle("nothing", empty);
    hideUnselected(chosen);
    if (empty) return;
    const first = byId("metric").value;
    const mode = byId("mode").value;
    const wanted = new Set([...data.main, first]);
    const comparisons = {};
    for (const id of wanted) comparisons[id] = Statistics.compare(data, metricOf(id), chosen, mode);
    show("leaderboard-table", Tables.leaderboard(data, chosen, comparisons, first));
    show("ranking", Tables.ranking(data, comparisons[first]));
    show("pairs", Tables.pairs(data, comparisons[first]));
    show("matrix", Tables.matrix(data, comparisons[first]));
    show("values", Tables.values(data, metricOf(first), chosen));
    Figures.intervals(byId("figure-intervals"), data, comparisons[first]);
    for (const name of Object.keys(data.effects)) updateEffect(name, chosen);
  }

  function updateEffect(name, chosen) {
    const found = Tables.effectPoints(data, name, chosen);
    show(name, Tables.effects(data, name, found));
    const place = byId(`figure-${name}`);
    const drawable = name === "profile" ? found.metrics.length > 0 : found.metrics.length > 1;
    place.closest("figure").classList.toggle("undrawable", !drawable);
    if (!drawable) return;
    if (name === "profile") Figures.profile(place, data, found);
    else Figures.scatter(place, data, found, chosen.subjects.length);
  }

  /** Rows and columns of the outcomes that are not selected disappear. */
  function hideUnselected(chosen) {
    for (const row of byId("outcomes").querySelectorAll("tr")) {
      const entrant = row.dataset.entrant;
      row.hidden = entrant !== undefined && !chosen.entrants.some((e) => data.entrants[e].name === entrant);
      for (const cell of row.querySelectorAll("[data-subject]")) {
        cell.hidden = !chosen.subjects.some((s) => data.subjects[s] === cell.dataset.subject);
      }
    }
  }

  // -- pages --------------------------------------------------------------------------------------

  function route() {
    const cell = Cells.named(location.hash);
    byId("report").hidden = cell !== null;
    byId("cell").hidden = cell === null;
    if (cell) {
      Cells.open(byId("cell"), data, cell);
      window.scrollTo(0, 0);
      return;
    }
    for (const place of document.querySelectorAll("#report .canvas.js-plotly-plot")) Plotly.Plots.resize(place);
    if (location.hash.length > 1) byId(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView();
  }

  function start() {
    document.documentElement.classList.add("live");
    makeFilters();
    for (const table of document.querySelectorAll("table.static")) Tables.makeSortable(table);
    update();
    route();
    window.addEventListener("hashchange", route);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      update();
      route();
    });
  }

  start();
  return { data, selection, update, compare: Statistics.compare, metricOf };
})();
