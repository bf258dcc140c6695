"use strict";

/** The pages of cells: one entrant on one subject in one repetition, made when they are opened. */
const Cells = (() => {
  const { element, render } = Tables;
  let pages = null;
  let images = null;

  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const key = (subject, entrant, repetition) => JSON.stringify([subject, entrant, repetition]);

  function hash(subject, entrant, repetition) {
    return `#cell/${[subject, entrant, repetition].map(encodeURIComponent).join("/")}`;
  }

  /** The subject, entrant and repetition that a hash names; null if it names no cell. */
  function named(text) {
    const parts = text.replace(/^#cell\//, "").split("/");
    if (!text.startsWith("#cell/") || parts.length !== 3) return null;
    try {
      const [subject, entrant, repetition] = parts.map(decodeURIComponent);
      return [subject, entrant, Number(repetition)];
    } catch {
      return null;
    }
  }

  /** Fill `place` with the page of a cell. */
  function open(place, data, [subject, entrant, repetition]) {
    pages ??= read("pages");
    images ??= read("images");
    const page = pages[key(subject, entrant, repetition)];
    const back = element("a", { href: "#overview", class: "back" }, "Back to the report");
    const heading = element("h2", { tabindex: "-1" }, `${entrant} on ${subject}, repetition ${repetition}`);
    if (!page) {
      place.replaceChildren(back, heading, element("p", {}, "This report holds no page of this cell."));
      return;
    }
    place.replaceChildren(
      back, heading, outcome(data, subject, entrant, repetition),
      ...others(data, subject, entrant, repetition),
      ...page.notes.map((note) => element("p", { class: "note" }, note)),
      ...page.sheets.flatMap(sheet),
      ...curve(page),
      ...page.tables.flatMap(render),
    );
    const figure = place.querySelector(".canvas");
    if (figure) Figures.curve(figure, page);
    heading.focus({ preventScroll: true });
  }

  function attemptsOf(data, subject, entrant) {
    const s = data.subjects.indexOf(subject);
    const e = data.entrants.findIndex((one) => one.name === entrant);
    return data.attempts.filter((row) => row[0] === e && row[1] === s);
  }

  function outcome(data, subject, entrant, repetition) {
    const found = attemptsOf(data, subject, entrant).find((row) => row[2] === repetition);
    const word = found ? found[3] : "unknown";
    return element("p", {}, "Outcome: ", element("span", { class: `outcome ${word}` }, word));
  }

  function others(data, subject, entrant, repetition) {
    const links = attemptsOf(data, subject, entrant)
      .filter((row) => row[2] !== repetition)
      .map((row) => element("a", { href: hash(subject, entrant, row[2]) }, `repetition ${row[2]}`));
    return links.length ? [element("p", { class: "links" }, "Also: ", ...links)] : [];
  }

  function sheet({ title, pictures, better }) {
    const tiles = pictures.map(({ image, lines }) => {
      const picture = element("img", { alt: lines.join(", "), loading: "lazy" });
      if (images[image]?.startsWith("data:image/")) picture.src = images[image];
      return element(
        "figure", { class: "tile" },
        picture, element("figcaption", {}, ...lines.map((line) => element("span", {}, line))),
      );
    });
    return [
      element("h3", { class: better ? "better" : "worse" }, title),
      element("div", { class: "tiles" }, ...tiles),
    ];
  }

  function curve(page) {
    if (!page.curve.some((point) => point[1] !== null)) return [];
    const rows = page.curve.map(([step, accuracy, seconds]) => [
      step === null ? "-" : String(step),
      accuracy === null ? "-" : Tables.fixed(100 * accuracy, 2),
      seconds === null ? "-" : Tables.duration(seconds),
    ]);
    const columns = ["step", "validation accuracy (%)", "after"];
    const table = { title: "Candidates", columns, rows, notes: [] };
    return [
      element("h3", {}, "Candidates"),
      element(
        "figure", { class: "plot", "data-table": "table-curve" },
        element("div", { class: "canvas", role: "img", "aria-label": "validation accuracy of the candidates" }),
      ),
      element(
        "details", { class: "table", id: "table-curve" },
        element("summary", {}, "Table of this figure"), ...render(table),
      ),
    ];
  }

  return { open, named, hash };
})();
