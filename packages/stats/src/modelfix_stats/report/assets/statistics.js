"use strict";

/**
 * Statistics of a selection, computed from the repetitions' values as modelfix_stats.compare does.
 *
 * Nothing is filtered: another selection is another call, because ranks, corrected p values and
 * letters depend on who takes part. Names follow the Python package; a missing number is NaN.
 */
const Statistics = (() => {
  const ALPHA = 0.05;
  const Z = 1.959963984540054; // of a 95 % interval
  const MOST_LETTERS = 500;
  const READABLE_COLUMNS = 6;
  const READABLE_LETTERS = 4;

  // -- distributions ------------------------------------------------------------------------------

  const LANCZOS = [
    0.99999999999980993, 676.5203681218851, -1259.1392167224028, 771.32342877765313,
    -176.61502916214059, 12.507343278686905, -0.13857109526572012, 9.9843695780195716e-6,
    1.5056327351493116e-7,
  ];

  /** Logarithm of the gamma function of x > 0 (Lanczos, g = 7). */
  function logGamma(x) {
    if (x < 0.5) return Math.log(Math.PI / Math.sin(Math.PI * x)) - logGamma(1 - x);
    const t = x + 6.5;
    let sum = LANCZOS[0];
    for (let i = 1; i < LANCZOS.length; i++) sum += LANCZOS[i] / (x - 1 + i);
    return 0.5 * Math.log(2 * Math.PI) + (x - 0.5) * Math.log(t) - t + Math.log(sum);
  }

  /** Regularised incomplete beta function I_x(a, b), by Lentz' continued fraction. */
  function incompleteBeta(x, a, b) {
    if (x <= 0) return 0;
    if (x >= 1) return 1;
    if (x > (a + 1) / (a + b + 2)) return 1 - incompleteBeta(1 - x, b, a);
    const front = Math.exp(
      logGamma(a + b) - logGamma(a) - logGamma(b) + a * Math.log(x) + b * Math.log1p(-x),
    );
    const tiny = 1e-300;
    let c = 1;
    let d = 1 / (Math.abs(1 - ((a + b) * x) / (a + 1)) < tiny ? tiny : 1 - ((a + b) * x) / (a + 1));
    let value = d;
    for (let m = 1; m < 10000; m++) {
      for (const step of [
        (m * (b - m) * x) / ((a + 2 * m - 1) * (a + 2 * m)),
        (-(a + m) * (a + b + m) * x) / ((a + 2 * m) * (a + 2 * m + 1)),
      ]) {
        d = 1 / (Math.abs(1 + step * d) < tiny ? tiny : 1 + step * d);
        c = Math.abs(1 + step / c) < tiny ? tiny : 1 + step / c;
        value *= c * d;
      }
      if (Math.abs(c * d - 1) < 1e-16) break;
    }
    return (front * value) / a;
  }

  /** Two-sided p value of Student's t. */
  function twoSided(t, df) {
    if (!(df > 0) || Number.isNaN(t)) return NaN;
    return incompleteBeta(df / (df + t * t), df / 2, 0.5);
  }

  const quantiles = new Map();

  /** The t whose two-sided p value is 0.05: the factor of a 95 % interval. */
  function intervalFactor(df) {
    if (!(df > 0)) return NaN;
    if (!quantiles.has(df)) quantiles.set(df, solveFactor(df));
    return quantiles.get(df);
  }

  function solveFactor(df) {
    const log = logGamma((df + 1) / 2) - logGamma(df / 2) - 0.5 * Math.log(df * Math.PI);
    const density = (t) => Math.exp(log - ((df + 1) / 2) * Math.log1p((t * t) / df));
    let low = 0;
    let high = 4;
    while (twoSided(high, df) > ALPHA) high *= 2;
    let t = high / 2;
    for (let i = 0; i < 200 && high - low > 1e-15 * high; i++) {
      const excess = twoSided(t, df) - ALPHA;
      if (excess > 0) low = t;
      else high = t;
      const next = t + excess / (2 * density(t)); // Newton, or a bisection where it leaves
      const moved = next > low && next < high ? next : (low + high) / 2;
      if (Math.abs(moved - t) <= 1e-15 * t) return moved;
      t = moved;
    }
    return t;
  }

  /** The 95 % Wilson interval of a count. */
  function wilson(count, total) {
    const share = count / total;
    const scale = 1 + (Z * Z) / total;
    const centre = (share + (Z * Z) / (2 * total)) / scale;
    const half = (Z * Math.sqrt((share * (1 - share)) / total + (Z * Z) / (4 * total * total))) / scale;
    return [centre - half, centre + half];
  }

  // -- scores -------------------------------------------------------------------------------------

  const sum = (values) => values.reduce((total, value) => total + value, 0);
  const range = (count) => Array.from({ length: count }, (_, i) => i);
  const round12 = (value) => Math.round(value * 1e12) / 1e12;

  function scaleOf(metric, mode) {
    if (metric.scoring === "time") return mode === "study" ? "seconds" : "log10";
    return mode === "study" ? "relative" : "points";
  }

  /** A value turned so that higher is better; NaN where there is none. */
  function score(value, original, metric, scale) {
    if (value === null) return NaN;
    if (metric.scoring === "time") return scale === "seconds" ? -value : -Math.log10(value);
    if (metric.scoring === "value") return 100 * metric.sign * value;
    const change = metric.sign * (value - original);
    if (scale === "points") return 100 * change;
    if (original === 0 && change === 0) return 0;
    return original > 0 ? (100 * change) / original : NaN;
  }

  /**
   * The scores of one metric on a selection: mean, variance (ddof 1), number and whether they are
   * copies of one deterministic result, entrant x subject.
   */
  function makeCells(data, metric, selection, mode = "standard") {
    const scale = scaleOf(metric, mode);
    const row = new Map(selection.entrants.map((e, i) => [e, i]));
    const column = new Map(selection.subjects.map((s, i) => [s, i]));
    const grid = () => selection.entrants.map(() => selection.subjects.map(() => []));
    const scores = grid();
    const deterministic = grid();
    for (const [e, s, , value, original, copied] of data.values[metric.id] ?? []) {
      if (!row.has(e) || !column.has(s)) continue;
      const one = score(value, original, metric, scale);
      deterministic[row.get(e)][column.get(s)] = copied;
      if (!Number.isNaN(one)) scores[row.get(e)][column.get(s)].push(one);
    }
    const each = (make) => scores.map((line, i) => line.map((cell, j) => make(cell, i, j)));
    const equal = (cell) => cell.length > 0 && cell.every((one) => one === cell[0]);
    const mean = each((cell) => (cell.length ? sum(cell) / cell.length : NaN));
    return {
      metric, scale, mean,
      entrants: selection.entrants,
      subjects: selection.subjects,
      n: each((cell) => cell.length),
      variance: each((cell, i, j) => {
        if (cell.length < 2) return NaN;
        if (equal(cell)) return 0;
        return sum(cell.map((one) => (one - mean[i][j]) ** 2)) / (cell.length - 1);
      }),
      copies: each((cell, i, j) => equal(cell) && deterministic[i][j] === 1 && !metric.noisy),
    };
  }

  function take(cells, rows) {
    const pick = (array) => rows.map((i) => array[i]);
    return {
      ...cells,
      entrants: pick(cells.entrants), mean: pick(cells.mean), variance: pick(cells.variance),
      n: pick(cells.n), copies: pick(cells.copies),
    };
  }

  /** The cells with a last entrant whose score is 0 everywhere: the original model. */
  function withZero(cells) {
    const line = (value) => cells.subjects.map(() => value);
    return {
      ...cells,
      mean: [...cells.mean, line(0)], variance: [...cells.variance, line(0)],
      n: [...cells.n, line(1)], copies: [...cells.copies, line(true)],
    };
  }

  const present = (cells, i) =>
    range(cells.subjects.length).filter((s) => !Number.isNaN(cells.mean[i][s]));
  const error = (cells, i, s) => (cells.copies[i][s] ? 0 : cells.variance[i][s] / cells.n[i][s]);

  function common(cells, i, j) {
    return present(cells, i).filter((s) => !Number.isNaN(cells.mean[j][s]));
  }

  // -- tests of a pair ----------------------------------------------------------------------------

  function tTest(delta, standardError, df, reason) {
    if (reason) {
      return { delta, low: NaN, high: NaN, t: NaN, df: NaN, p: NaN, reason };
    }
    const half = intervalFactor(df) * standardError;
    const t = delta / standardError;
    return { delta, low: delta - half, high: delta + half, t, df, p: twoSided(t, df), reason: null };
  }

  /** Which entrant is better on these subjects: Welch's test, stratified by subject. */
  function stratifiedWelch(cells, i, j) {
    const subjects = common(cells, i, j);
    if (!subjects.length) return tTest(NaN, NaN, NaN, "no_common_subject");
    const share = 1 / subjects.length;
    const delta = sum(subjects.map((s) => share * (cells.mean[i][s] - cells.mean[j][s])));
    const terms = [i, j].flatMap((e) =>
      subjects.map((s) => [share * share * error(cells, e, s), cells.n[e][s] - 1]),
    );
    const variance = sum(terms.map(([term]) => term));
    if (Number.isNaN(variance)) return tTest(delta, NaN, NaN, "single_repetition");
    if (variance === 0) return tTest(delta, NaN, NaN, "no_replication");
    const parts = terms.filter(([term]) => term > 0).map(([term, dof]) => (term * term) / dof);
    return tTest(delta, Math.sqrt(variance), (variance * variance) / sum(parts), null);
  }

  /** Whether one entrant would be better on another subject: t test of the differences. */
  function overSubjects(cells, i, j) {
    const subjects = common(cells, i, j);
    const count = subjects.length;
    if (!count) return tTest(NaN, NaN, NaN, "no_common_subject");
    const differences = subjects.map((s) => cells.mean[i][s] - cells.mean[j][s]);
    const delta = sum(differences) / count;
    if (count < 3) return tTest(delta, NaN, NaN, "too_few_subjects");
    const squares = sum(differences.map((one) => (one - delta) ** 2));
    const standardError = Math.sqrt(squares / (count - 1) / count);
    const reason = standardError <= 1e-12 ? "no_variation" : null;
    return tTest(delta, standardError, count - 1, reason);
  }

  /** The study's test: Student's t on all scores of the common subjects. */
  function pooledStudent(cells, i, j) {
    const subjects = common(cells, i, j);
    if (!subjects.length) return tTest(NaN, NaN, NaN, "no_common_subject");
    const pool = (e) => {
      const n = sum(subjects.map((s) => cells.n[e][s]));
      const mean = sum(subjects.map((s) => cells.n[e][s] * cells.mean[e][s])) / n;
      const within = (s) => (cells.n[e][s] > 1 ? (cells.n[e][s] - 1) * cells.variance[e][s] : 0);
      const squares = sum(
        subjects.map((s) => cells.n[e][s] * (cells.mean[e][s] - mean) ** 2 + within(s)),
      );
      return { n, mean, squares };
    };
    const [a, b] = [pool(i), pool(j)];
    const df = a.n + b.n - 2;
    const delta = a.mean - b.mean;
    if (df < 1) return tTest(delta, NaN, NaN, "single_repetition");
    const standardError = Math.sqrt(((a.squares + b.squares) / df) * (1 / a.n + 1 / b.n));
    if (standardError === 0) {
      const constant = { low: delta, high: delta, t: NaN, df, p: delta === 0 ? 1 : 0 };
      return { delta, ...constant, reason: null };
    }
    return tTest(delta, standardError, df, null);
  }

  /** On how many common subjects a pair was won, lost and tied (Welch's interval of each). */
  function perSubject(cells, i, j) {
    const counts = { won: 0, lost: 0, tied: 0 };
    for (const s of common(cells, i, j)) {
      const difference = cells.mean[i][s] - cells.mean[j][s];
      const errors = [i, j].map((e) => [error(cells, e, s), cells.n[e][s] - 1]);
      const total = errors[0][0] + errors[1][0];
      const parts = errors.filter(([one]) => one > 0).map(([one, dof]) => (one * one) / dof);
      const half =
        total === 0 ? 0 : intervalFactor((total * total) / sum(parts)) * Math.sqrt(total);
      if (difference - half > 0) counts.won += 1;
      else if (difference + half < 0) counts.lost += 1;
      else counts.tied += 1;
    }
    return counts;
  }

  /** Hedges' g, averaged over the common subjects where it exists. */
  function hedgesG(cells, i, j) {
    const found = common(cells, i, j).map((s) => {
      const [n, m] = [cells.n[i][s], cells.n[j][s]];
      const df = n + m - 2;
      const squares = (n - 1) * cells.variance[i][s] + (m - 1) * cells.variance[j][s];
      const pooled = Math.sqrt(squares / df);
      const g = ((cells.mean[i][s] - cells.mean[j][s]) / pooled) * (1 - 3 / (4 * df - 1));
      return pooled > 0 && Number.isFinite(g) ? g : NaN;
    });
    const known = found.filter((g) => !Number.isNaN(g));
    return known.length ? sum(known) / known.length : NaN;
  }

  // -- families and letters -----------------------------------------------------------------------

  /** Benjamini-Hochberg over a whole family; NaN do not count. */
  function benjaminiHochberg(p) {
    const known = range(p.length).filter((i) => !Number.isNaN(p[i]));
    known.sort((i, j) => p[i] - p[j]);
    const adjusted = p.map(() => NaN);
    let smallest = 1;
    for (let rank = known.length; rank >= 1; rank--) {
      const i = known[rank - 1];
      smallest = Math.min(smallest, p[i] / (rank / known.length));
      adjusted[i] = smallest;
    }
    return adjusted;
  }

  const bit = (i) => 1n << BigInt(i);
  const has = (column, i) => (column & bit(i)) !== 0n;
  const within = (part, whole) => part !== whole && (part & whole) === part;
  const members = (column, count) => range(count).filter((i) => has(column, i));

  function byMembers(a, b) {
    for (let k = 0; k < Math.min(a.length, b.length); k++) {
      if (a[k] !== b[k]) return a[k] - b[k];
    }
    return a.length - b.length;
  }

  /**
   * The compact letter display (insert and absorb, Piepho 2004): two entrants share a letter iff
   * they do not differ. Returns the positions of each letter's entrants; null beyond 500 letters.
   */
  function compactLetters(count, different) {
    let columns = new Set(count ? [bit(count) - 1n] : []);
    for (const i of range(count)) {
      for (const j of range(count).slice(i + 1)) {
        if (different[i][j]) columns = insert(columns, i, j);
        if (columns.size > MOST_LETTERS) return null;
      }
    }
    const sorted = [...columns].map((c) => members(c, count)).sort(byMembers);
    const display = sweep(sorted);
    if (!isValid(display, count, different)) throw new Error("the letter display is not valid");
    return display;
  }

  function insert(columns, i, j) {
    const kept = new Set();
    const split = new Set();
    for (const column of columns) {
      if (has(column, i) && has(column, j)) {
        split.add(column & ~bit(i));
        split.add(column & ~bit(j));
      } else {
        kept.add(column);
      }
    }
    const others = [...kept, ...split];
    const fresh = [...split].filter((part) => part && !others.some((other) => within(part, other)));
    return new Set([...kept, ...fresh]);
  }

  function sweep(columns) {
    let remaining = columns;
    for (const column of [...columns].reverse()) {
      const others = remaining.filter((other) => other !== column);
      const lies = (...names) => others.some((other) => names.every((name) => other.includes(name)));
      const spare =
        column.every((i) => lies(i)) &&
        column.every((i, k) => column.slice(k + 1).every((j) => lies(i, j)));
      if (spare) remaining = others;
    }
    return remaining;
  }

  function isValid(columns, count, different) {
    const share = (i, j) => columns.some((column) => column.includes(i) && column.includes(j));
    return range(count).every((i) =>
      range(count).every((j) => share(i, j) === (i === j || !different[i][j])),
    );
  }

  /** The study's group letters, which are not a compact letter display. */
  function groupLetters(count, different, alone) {
    const columns = [];
    const lettered = new Set();
    for (const first of range(count)) {
      if (lettered.has(first)) continue;
      const column = [first];
      for (const other of range(count).slice(first + 1)) {
        const joins = !alone[first] && !alone[other];
        if (joins && !column.some((one) => different[other][one])) column.push(other);
      }
      columns.push(column);
      column.forEach((one) => lettered.add(one));
    }
    return columns;
  }

  function letter(index) {
    let name = "";
    for (let rest = index + 1; rest; rest = Math.floor((rest - 1) / 26)) {
      name = String.fromCharCode(97 + ((rest - 1) % 26)) + name;
    }
    return name;
  }

  /** An entrant's letters as printed: with spaces once a letter has two characters. */
  function letterText(columns, position) {
    const letters = columns.map((c, i) => (c.includes(position) ? letter(i) : "")).filter(Boolean);
    return letters.join(letters.every((word) => word.length === 1) ? "" : " ");
  }

  // -- rankings -----------------------------------------------------------------------------------

  function meanScore(cells, i, subjects) {
    return subjects.length ? sum(subjects.map((s) => (1 / subjects.length) * cells.mean[i][s])) : NaN;
  }

  function median(values) {
    const sorted = [...values].sort((a, b) => a - b);
    const middle = sorted.length >> 1;
    return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
  }

  /** The rank of each score, 1 for the highest; equal ones share the better rank. */
  function ranks(scores) {
    const rounded = scores.map(round12);
    return rounded.map((one) =>
      Number.isNaN(one) ? NaN : 1 + rounded.filter((other) => other > one).length,
    );
  }

  function orderedCells(data, metric, selection, mode) {
    const cells = makeCells(data, metric, selection, mode);
    const known = range(cells.entrants.length).filter((i) => present(cells, i).length);
    const keys = known.map((i) => ({
      i,
      mean: -round12(meanScore(cells, i, present(cells, i))),
      median: mode === "study" ? 0 : -round12(median(present(cells, i).map((s) => cells.mean[i][s]))),
      name: data.entrants[cells.entrants[i]].name,
    }));
    const byName = (a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : 0);
    keys.sort((a, b) => a.mean - b.mean || a.median - b.median || byName(a, b));
    const dropped = cells.entrants.filter((_, i) => !known.includes(i));
    return [take(cells, keys.map(({ i }) => i)), dropped];
  }

  /** The selection without the entrants and subjects that none of the other was run with. */
  function attempted(data, { entrants, subjects }) {
    const run = data.attempts.filter(([e, s]) => entrants.includes(e) && subjects.includes(s));
    return {
      subjects: subjects.filter((s) => run.some((row) => row[1] === s)),
      entrants: entrants.filter((e) => run.some((row) => row[0] === e)),
    };
  }

  /** How many cells of each selected entrant were attempted, and how many are FIXED. */
  function attempts(data, selection, entrant) {
    const tried = data.attempts.filter(
      ([e, s]) => e === entrant && selection.subjects.includes(s),
    );
    return [tried.filter(([, , , outcome]) => outcome === "FIXED").length, tried.length];
  }

  /** Compare the selected entrants on one metric, over the selected subjects alone. */
  function compare(data, metric, selection, mode = "standard") {
    const [cells, dropped] = orderedCells(data, metric, selection, mode);
    const count = cells.entrants.length;
    const test = mode === "study" ? pooledStudent : stratifiedWelch;
    const pairs = range(count).flatMap((i) =>
      range(count).slice(i + 1).map((j) => {
        const future = overSubjects(cells, i, j);
        return {
          a: cells.entrants[i], b: cells.entrants[j], i, j,
          common: common(cells, i, j).length,
          ...test(cells, i, j),
          ...perSubject(cells, i, j),
          newLow: future.low, newHigh: future.high,
          g: hedgesG(cells, i, j),
        };
      }),
    );
    const p = pairs.map((pair) => pair.p);
    const adjusted = mode === "study" ? p : benjaminiHochberg(p);
    const matrix = cells.entrants.map(() => cells.entrants.map(() => NaN));
    pairs.forEach((pair, k) => {
      pair.adjusted = adjusted[k];
      pair.significant = adjusted[k] < ALPHA;
      matrix[pair.i][pair.j] = matrix[pair.j][pair.i] = adjusted[k];
    });
    const letters = lettersOf(cells, matrix, mode);
    const order = orderOf(data, cells, selection, letters);
    const notes = notesOf(data, cells, pairs, dropped, letters, mode);
    return { metric, mode, scale: cells.scale, cells, pairs, matrix, letters, order, notes };
  }

  function lettersOf(cells, matrix, mode) {
    const count = cells.entrants.length;
    if (mode !== "study") {
      return compactLetters(count, matrix.map((line) => line.map((p) => p < ALPHA)));
    }
    const apart = matrix.map((line, i) => line.map((p, j) => p < ALPHA || (i !== j && Number.isNaN(p))));
    return groupLetters(count, apart, range(count).map((i) => present(cells, i).length < 2));
  }

  function orderOf(data, cells, selection, letters) {
    const all = range(cells.subjects.length);
    const complete = all.filter((s) => cells.mean.every((line) => !Number.isNaN(line[s])));
    const zero = withZero(cells);
    const scores = cells.entrants.map((_, i) => meanScore(cells, i, present(cells, i)));
    const shared = cells.entrants.map((_, i) => meanScore(cells, i, complete));
    const [rank, sharedRank] = [ranks(scores), ranks(shared)];
    return cells.entrants.map((entrant, i) => {
      const { low, high } = stratifiedWelch(zero, i, cells.entrants.length);
      const [fixed, attempted] = attempts(data, selection, entrant);
      return {
        entrant, score: scores[i], low, high,
        subjects: present(cells, i).length,
        letters: letters ? letterText(letters, i) : "",
        rank: rank[i], completeScore: shared[i], completeRank: sharedRank[i],
        fixed, attempted, success: wilson(fixed, attempted),
      };
    });
  }

  // -- what a reader must know --------------------------------------------------------------------

  function notesOf(data, cells, pairs, dropped, letters, mode) {
    const notes = [];
    if (dropped.length) {
      notes.push(`Without any value: ${dropped.map((e) => data.entrants[e].name).join(", ")}.`);
    }
    const total = cells.subjects.length;
    const complete = range(total).filter((s) => cells.mean.every((line) => !Number.isNaN(line[s])));
    if (complete.length < total) {
      notes.push(
        "Missing cells: entrants are ranked on their own subjects; the second ranking is over " +
          `the ${complete.length} of ${total} subjects that all of them have.`,
      );
    }
    const counts = new Map();
    for (const { reason } of pairs) if (reason) counts.set(reason, (counts.get(reason) ?? 0) + 1);
    for (const [reason, count] of [...counts].sort((a, b) => b[1] - a[1])) {
      notes.push(`${count} of ${pairs.length} pairs untestable: ${reason}.`);
    }
    if (cells.metric.attacked) {
      notes.push(
        "Each entrant is attacked on inputs that it and the original model get right, so the " +
          "original's value differs between entrants.",
      );
    }
    if (mode === "study") {
      notes.push("p values are not corrected: the study's letters are reproduced best so.");
      notes.push(
        "Group letters as in the study: not a compact letter display; entrants without a common " +
          "letter need not differ significantly.",
      );
      return notes;
    }
    const untestable = pairs.filter((pair) => Number.isNaN(pair.p)).length;
    return [...notes, ...letterNotes(letters, cells.entrants.length, untestable)];
  }

  function letterNotes(letters, count, untestable) {
    const notes = [];
    const most = letters && Math.max(0, ...range(count).map((i) => letters.filter((c) => c.includes(i)).length));
    if (!letters) {
      notes.push(`More than ${MOST_LETTERS} letters are needed: read the matrix instead.`);
    } else if (letters.length > READABLE_COLUMNS || most > READABLE_LETTERS) {
      notes.push("Many letters are needed: the matrix of adjusted p values is easier to read.");
    }
    if (untestable) {
      const which = untestable === 1 ? "pair is" : "pairs are";
      notes.push(`${untestable} ${which} untestable and may share a letter: nothing was shown.`);
    }
    return notes;
  }

  // -- one value per entrant ----------------------------------------------------------------------

  /**
   * Mean score of each entrant over its selected subjects, and the standard deviation of that mean
   * from one repetition to the next: with one subject the repetitions' own.
   */
  function effects(data, metric, selection) {
    const cells = makeCells(data, metric, selection);
    return cells.entrants.map((entrant, i) => {
      const subjects = present(cells, i);
      const copies = subjects.every((s) => cells.copies[i][s]);
      const variance = sum(subjects.map((s) => (cells.copies[i][s] ? 0 : cells.variance[i][s])));
      return {
        entrant,
        subjects: subjects.length,
        score: meanScore(cells, i, subjects),
        deviation: copies ? NaN : Math.sqrt(variance) / subjects.length,
      };
    });
  }

  /** Which points no other dominates; rows with a missing score are never on the front. */
  function paretoFront(points) {
    const known = (point) => point.every((one) => !Number.isNaN(one));
    const dominates = (a, b) => a.every((one, k) => one >= b[k]) && a.some((one, k) => one > b[k]);
    return points.map((point) => known(point) && !points.some((other) => dominates(other, point)));
  }

  return {
    ALPHA, twoSided, intervalFactor, wilson, makeCells, benjaminiHochberg, compactLetters,
    groupLetters, letterText, attempted, compare, effects, paretoFront, present,
  };
})();
