// The page: filters, colours, contents, documents and galleries.

const FIRST_OPEN = 1;

/** A heading and what lies below it, as a section. */
function sectionOf(id, title, nodes) {
  return make("section", {id, "aria-labelledby": `${id}-title`}, make("h2", {id: `${id}-title`}, title), ...nodes);
}

/** A published document: its texts and tables, data and figures. */
function documentOf(source, open) {
  const node = folding(`document-${idOf(source.id)}`, source.title, open);
  if (source.of) node.dataset.pairs = "";
  const parts = [];
  let title = source.title;
  for (const block of source.blocks) {
    if (block.kind === "heading") title = `${source.title}, ${block.text}`;
    parts.push({medium: block.medium, ...partOf(source, block, title)});
  }
  node.append(...parts.map((part) => part.node));
  node.append(...links("Figures", source.figures), ...links("Files", source.files));
  filtered.push(() => filterDocument(node, parts));
  return node;
}

/** Hide parts of other media, tables without rows with what stands over them, and a document of which nothing is left. */
function filterDocument(node, parts) {
  for (const part of parts) {
    const other = chosen.medium && part.medium && part.medium !== chosen.medium;
    part.node.hidden = Boolean(part.filter && part.filter() === 0 || other);
  }
  const hidden = (some) => some.length > 0 && some.every((part) => part.node.hidden);
  const tables = (some) => some.filter((part) => part.filter);
  for (const [i, part] of parts.entries()) {
    if (!part.heading) continue;
    const next = parts.findIndex((later, j) => j > i && later.heading);
    const below = parts.slice(i + 1, next < 0 ? parts.length : next);
    if (hidden(tables(below))) part.node.hidden = true;
  }
  node.hidden = hidden(tables(parts)) || hidden(parts);
}

/** One block of a document. */
function partOf(source, block, title) {
  if (block.kind === "heading") return {node: make("h4", {}, block.text), heading: true};
  if (block.kind === "text") return {node: make("p", {}, block.text)};
  if (block.kind === "list") return {node: make("ul", {}, ...block.texts.map((text) => make("li", {}, text)))};
  return tableOf(source, block, title);
}

/** Put the filters into effect everywhere; says how much they leave. */
function applyFilters() {
  for (const filter of filtered) filter();
  for (const section of document.querySelectorAll("main > section")) {
    const parts = [...section.querySelectorAll("details")];
    section.hidden = parts.length > 0 && parts.every((part) => part.hidden);
  }
  for (const entry of document.querySelectorAll("#contents [data-of]")) {
    entry.hidden = document.getElementById(entry.dataset.of).hidden;
  }
  const left = document.querySelectorAll("main details:not([hidden])").length;
  return `${left} ${left === 1 ? "table or gallery" : "tables and galleries"} shown`;
}

/** A labelled choice of one. */
function choice(label, names, key) {
  const options = names.map((name) => make("option", {value: name}, name.replaceAll("_", " ")));
  const select = make("select", {id: `filter-${key}`}, make("option", {value: ""}, "all"), ...options);
  select.addEventListener("change", () => {
    chosen[key] = select.value;
    say(applyFilters());
  });
  return make("label", {}, `${label} `, select);
}

/** Names of methods, without variants, in the order in which galleries and tables have them. */
function allFamilies() {
  const ofTable = (block) => {
    const j = (block.heads || []).findIndex((head) => METHOD.test(head));
    return j < 0 ? [] : block.rows.map((row) => row[j]).filter((name) => /^\w[\w.@-]*$/.test(name));
  };
  const names = [...DATA.galleries.flatMap((gallery) => gallery.methods),
    ...DATA.documents.flatMap((source) => source.blocks.flatMap(ofTable))];
  return [...new Set(names.map(family))];
}

/** The filters: medium, skill, methods. */
function fillFilters(form) {
  const skills = [...DATA.galleries.flatMap((gallery) => gallery.prompts.map((prompt) => prompt.skill)),
    ...DATA.documents.flatMap((source) => source.blocks.flatMap((block) => block.skills || []))];
  const media = [...DATA.galleries.map((gallery) => gallery.medium), ...DATA.documents.flatMap((s) => s.blocks.map((b) => b.medium))];
  const families = allFamilies(), summary = make("summary");
  const boxes = families.map((name) => make("input", {type: "checkbox", id: `method-${idOf(name)}`}));
  const apply = () => {
    chosen.hidden = new Set(families.filter((_, i) => !boxes[i].checked));
    summary.textContent = `Methods (${families.length - chosen.hidden.size} of ${families.length})`;
    return applyFilters();
  };
  const setAll = (value) => () => {
    for (const box of boxes) box.checked = value;
    say(apply());
  };
  for (const box of boxes) {
    box.checked = true;
    box.addEventListener("change", () => say(apply()));
  }
  const labels = families.map((name, i) => make("label", {}, boxes[i], ` ${name}`));
  const methods = make("details", {id: "methods"}, summary,
    make("fieldset", {}, make("legend", {}, "Methods, each with its variants"), button("All", setAll(true)),
      button("None", setAll(false)), make("div", {class: "boxes"}, ...labels)));
  form.append(choice("Medium", [...new Set(media.filter(Boolean))].sort(), "medium"),
    choice("Skill", [...new Set(skills.filter(Boolean))], "skill"), methods);
  form.addEventListener("submit", (event) => event.preventDefault());
  return apply;
}

/** Light or dark: the reader's own setting until the button says otherwise. */
function startTheme(toggle) {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme || (dark.matches ? "dark" : "light")) === "dark";
  const show = () => toggle.setAttribute("aria-pressed", String(isDark()));
  toggle.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    show();
  });
  dark.addEventListener("change", show);
  show();
}

/** Links to every section and all that folds in it, pairs in the line of their table; what a link leads to is opened. */
function fillContents(nav, sections) {
  const link = (node, head) => make("a", {href: `#${node.id}`}, node.querySelector(head).textContent);
  const entries = (section) => {
    const list = make("ul");
    for (const node of section.querySelectorAll("details")) {
      if (node.dataset.pairs === undefined) {
        list.append(make("li", {"data-of": node.id}, link(node, "h3")));
      } else {
        const pairs = make("a", {href: `#${node.id}`, "aria-label": node.querySelector("h3").textContent}, "pairs");
        list.lastChild.append(make("span", {"data-of": node.id}, ", ", pairs));
      }
    }
    return list;
  };
  nav.append(make("h2", {}, "Contents"), make("ul", {}, ...sections.map((section) => make("li", {"data-of": section.id},
    link(section, "h2"), entries(section)))));
  const openTarget = () => {
    const target = document.getElementById(location.hash.slice(1));
    if (target?.tagName !== "DETAILS") return;
    target.open = true;
    target.querySelector("summary").focus({preventScroll: true});
    target.scrollIntoView();
  };
  nav.addEventListener("click", (event) => event.target.closest("a") && setTimeout(openTarget));
  addEventListener("hashchange", openTarget);
  openTarget();
}

function start() {
  const tables = DATA.documents.map((source, i) => documentOf(source, i < FIRST_OPEN));
  const plain = tables.filter((_, i) => DATA.documents[i].rows), written = tables.filter((_, i) => !DATA.documents[i].rows);
  const sections = [sectionOf("tables", "Tables", written)];
  if (DATA.galleries.length) sections.push(sectionOf("galleries", "Samples and credit", DATA.galleries.map(galleryOf)));
  if (plain.length) sections.push(sectionOf("measurements", "Measurements", plain));
  if (DATA.files.length) {
    const items = DATA.files.map((path) => make("li", {}, linkTo(path)));
    sections.push(sectionOf("files", "Other published rows", [make("ul", {class: "files"}, ...items)]));
  }
  document.getElementById("main").append(...sections);
  const apply = fillFilters(document.getElementById("filters"));
  fillContents(document.getElementById("contents"), sections);
  startTheme(document.getElementById("theme"));
  apply();
}

start();
