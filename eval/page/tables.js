// Tables: sorted by their heads, filtered by method and skill, cells with the rows that they were made from behind them.

const METHOD = /^(method|variant|over)$/i;
const MEDIUM = /^medium$/i;

/** The number that a cell begins with (in an interval its lower end); null where there is none. */
function numberOf(text) {
  const found = /^[<[\s]*([−-]?(?:\d[\d,]*)?\.?\d+(?:e[+-]?\d+)?)/i.exec(text);
  if (!found) return null;
  const value = Number(found[1].replace("−", "-").replaceAll(",", ""));
  return text.startsWith("<") ? value - 1e-9 : value;
}

const isMissing = (text) => text === "" || text === "–" || text === "nan";

/** Order of two cells of a column, from low to high; missing ones last in either direction. */
function compareCells(a, b, numeric, direction) {
  if (isMissing(a) || isMissing(b)) return isMissing(a) - isMissing(b);
  return direction * (numeric ? numberOf(a) - numberOf(b) : a.localeCompare(b, "en", {numeric: true}));
}

/** A table of a document, in a region of its own that scrolls sideways, and a function that filters it. */
function tableOf(source, block, title) {
  const numeric = block.heads.map((_, j) => isNumeric(block, j));
  const bold = new Set(block.bold.map(([i, j]) => `${i},${j}`));
  const body = make("tbody");
  const rows = block.rows.map((texts, i) => {
    const cells = texts.map((text, j) => cellOf(source, block, texts, text, j, bold.has(`${i},${j}`), numeric[j]));
    return {texts, node: make("tr", {}, ...cells)};
  });
  body.append(...rows.map((row) => row.node));
  const heads = block.heads.map((text, j) => {
    const head = make("th", {scope: "col", "aria-sort": "none", class: numeric[j] ? "number" : null});
    head.append(button(text, () => sortBy(head, j)));
    return head;
  });
  function sortBy(head, j) {
    const direction = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of heads) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
    const sorted = [...rows].sort((a, b) => compareCells(a.texts[j], b.texts[j], numeric[j], direction));
    body.append(...sorted.map((row) => row.node));
    say(`Sorted by ${block.heads[j]}, ${direction > 0 ? "low to high" : "high to low"}`);
  }
  const table = make("table", {}, make("caption", {class: "unseen"}, title), make("thead", {}, make("tr", {}, ...heads)), body);
  const region = make("div", {class: "scroll", role: "region", tabindex: "0", "aria-label": `${title}, scrolls sideways`}, table);
  roving(table);
  return {node: region, filter: () => filterTable(block, heads, rows, region)};
}

/** Whether every value of a column begins with a number. */
function isNumeric(block, j) {
  const values = block.rows.map((row) => row[j]).filter((text) => !isMissing(text));
  return values.length > 0 && values.every((text) => numberOf(text) !== null);
}

/** One cell; a button that opens its rows where they are known. */
function cellOf(source, block, texts, text, j, bold, numeric) {
  if (j === 0) return make("th", {scope: "row"}, ...breaking(text));
  const [, value, spread] = /^([^[]+)( \[.*\])$/.exec(text) || [null, text, ""];
  const shown = [make(bold ? "strong" : "span", {}, value), ...(spread ? [make("span", {class: "spread"}, spread)] : [])];
  const open = behind(source, block, texts, j);
  const inside = open ? [button("", open, {class: "cell"})] : shown;
  if (open) inside[0].append(...shown);
  return make("td", {class: numeric ? "number" : null}, ...inside);
}

/** One stop of the tab key for all cells of a table; the arrow keys go on from there. */
function roving(table) {
  const grid = () => [...table.tBodies[0].rows].filter((row) => !row.hidden)
    .map((row) => [...row.querySelectorAll("button.cell")].filter((cell) => !cell.closest("td").hidden));
  const moves = {ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0]};
  const enter = (cell) => {
    for (const other of table.querySelectorAll("button.cell")) other.tabIndex = -1;
    if (cell) cell.tabIndex = 0;
  };
  table.tBodies[0].addEventListener("focusin", (event) => enter(event.target.closest("button.cell")));
  table.tBodies[0].addEventListener("keydown", (event) => {
    if (!(event.key in moves)) return;
    const cells = grid(), i = cells.findIndex((row) => row.includes(event.target));
    const target = i < 0 ? null : cells[i + moves[event.key][0]]?.[cells[i].indexOf(event.target) + moves[event.key][1]];
    event.preventDefault();
    if (target) target.focus();
  });
  table.enterFirst = () => enter(grid().flat()[0]);
  table.enterFirst();
}

/** Hide the rows of hidden methods and other media, and the columns of other skills; says how many rows are left. */
function filterTable(block, heads, rows, region) {
  const method = block.heads.findIndex((head) => METHOD.test(head)), medium = block.heads.findIndex((head) => MEDIUM.test(head));
  const known = new Set(block.skills.filter(Boolean));
  for (const [j, head] of heads.entries()) {
    const off = Boolean(chosen.skill && block.skills[j] && known.has(chosen.skill) && block.skills[j] !== chosen.skill);
    head.hidden = off;
    for (const row of rows) row.node.cells[j].hidden = off;
  }
  let left = 0;
  for (const {texts, node} of rows) {
    const other = medium >= 0 && chosen.medium && texts[medium] !== chosen.medium;
    node.hidden = Boolean(other || (method >= 0 && chosen.hidden.has(family(texts[method]))));
    left += !node.hidden;
  }
  region.firstElementChild.enterFirst();
  return left;
}
