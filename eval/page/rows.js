// What is behind a cell: all that is said of it, and links to the rows that it was made from.

const STAGE = /^stage$/i;
const OF = /^of$/i;

/** What opens the rows of a cell, where they are known: runs of its table, or of the one it belongs to, or cells of a study. */
function behind(source, block, texts, j) {
  const table = source.of ? DATA.documents.find((other) => other.sets && other.folder === source.of) : source;
  if (table.runs[block.medium]?.[texts[0]]) {
    return OF.test(block.heads[j]) ? null : () => openRows(source, table, block, texts, j);
  }
  const stage = STAGE.test(block.heads[0]) ? texts[0] : block.heads[j].split(", ")[0];
  const study = source.files.filter((path) => path.startsWith(`${source.folder}/${stage}-`) && path.endsWith(".csv.gz"));
  return study.length && isNumeric(block, j) ? () => openStudy(block, texts, j, study) : null;
}

/** Open a cell of a table of runs, or of the pairs of one. */
function openRows(source, table, block, texts, j) {
  const method = texts[0], head = block.heads[j], metric = block.metrics[j];
  const full = metric && source.cells[block.section]?.[metric]?.[method], isDifference = block.heads.includes("Difference");
  const of = block.heads.findIndex((name) => OF.test(name)), other = of < 0 ? block.against : texts[of];
  const said = full?.said ? [make("p", {}, full.said)] : [];
  if (isDifference) said.push(facts(block.heads.map((name, i) => [name, texts[i]]).filter((_, i) => i && i !== of)));
  else if (full?.difference) said.push(facts(full.difference.map((text, i) => [DATA.difference_heads[i], text])));
  if (full) said.push(make("h3", {}, "In table.csv"), facts(DATA.in_full.map((name, i) => [name, full.csv[i]])));
  const compared = isDifference || full?.difference ? other : null;
  const files = source.of ? source.files : [`${source.folder}/table.csv`];
  const from = [...files, `${table.folder}/sources.json`].flatMap((path, i) => [i ? ", " : "", linkTo(path)]);
  const title = isDifference ? `${block.label}: ${method} less ${other}` : `${method}: ${head}`;
  const value = isDifference && head !== "Difference" ? `${head}: ${texts[j]}` : texts[j];
  const runs = runsOf(table, block.medium, metric, method, compared, isDifference);
  showFull(title, value, said, [...runs, make("p", {}, "Table: ", ...from)]);
}

/** The runs of a method, and those of the one that it is compared with, of the seeds that both have. */
function runsOf(table, medium, metric, method, compared, isDifference) {
  const file = table.sets[medium].includes(metric) ? "sets.csv" : "scores.csv.gz", seed = ([run]) => run.split("/seed")[1];
  const listed = (words, runs) => [make("p", {}, words), make("ul", {class: "runs"}, ...runs.map(([run, digest]) => make("li", {},
    linkTo(`${run}/${file}`), " (", linkTo(`${run}/manifest.json`, "manifest"), `, hash ${digest})`)))];
  const own = table.runs[medium][method];
  if (!compared) return listed(`${method}:`, own);
  const common = (runs, others) => runs.filter((run) => others.some((other) => seed(other) === seed(run)));
  const others = common(table.runs[medium][compared], own);
  const out = [
    ...(isDifference ? listed(`${method}, seeds that both have:`, common(own, others)) : listed(`${method}:`, own)),
    ...listed(`${isDifference ? "" : "For the difference also "}${compared}, subtracted seed by seed:`, others),
  ];
  if (family(method) === "base") return out;
  return [...out, make("p", {}, "p is adjusted over the trained methods of the column, and so rests on their runs as well.")];
}

/** Open a number of a study. */
function openStudy(block, texts, j, files) {
  const name = STAGE.test(block.heads[0]) ? texts.slice(0, 2).join(", ") : texts[0];
  const items = files.map((path) => make("li", {}, linkTo(path)));
  showFull(`${name}: ${block.heads[j]}`, texts[j], [], [make("ul", {class: "runs"}, ...items)]);
}

/** Names with their values. */
function facts(pairs) {
  return make("dl", {},
    ...pairs.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value === "nan" ? "–" : value))));
}

/** Show a cell: what it is, its text, what is said of it, and what it was made from. */
function showFull(title, value, said, rows) {
  const dialog = document.getElementById("full");
  dialog.replaceChildren(button("Close", () => dialog.close(), {class: "close"}), make("h2", {id: "full-title"}, title),
    make("p", {class: "value"}, value), ...said, make("h3", {}, "Made from these rows"), ...rows);
  dialog.showModal();
  dialog.scrollTop = 0;
}
