"use strict";
// What all parts of the page share: its data, its filters, and elements made of plain text.

const DATA = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";

/** Filters: a medium and a skill ("" is all), and the methods that are hidden, variants with their method. */
const chosen = {medium: "", skill: "", hidden: new Set()};

/** Functions that put the filters into effect, one a document or gallery. */
const filtered = [];

/** An element with attributes (true: without a value; false, null: none) and children, of which strings are plain text. */
function make(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same for an element of a drawing. */
function draw(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false && value !== null) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

/** A button that does something. */
function button(text, action, attributes = {}) {
  const node = make("button", {type: "button", ...attributes}, text);
  node.addEventListener("click", action);
  return node;
}

/** A link to a published file, by its path below the results. */
function linkTo(path, text = path) {
  return make("a", {href: DATA.root + path.split("/").map(encodeURIComponent).join("/")}, text);
}

/** Links in one line after a word, or nothing. */
function links(word, paths) {
  if (!paths.length) return [];
  const short = (path) => path.slice(path.lastIndexOf("/") + 1);
  const all = paths.flatMap((path, i) => [i ? ", " : " ", linkTo(path, short(path))]);
  return [make("p", {class: "links"}, `${word}:`, ...all)];
}

/** What a method is a variant of; a method without variant is its own. */
const family = (method) => method.split("@")[0];

/** Tell readers that cannot see it what has changed. */
function say(text) {
  document.getElementById("said").textContent = text;
}

/** A name that may go on in the next line after "_" and "@". */
function breaking(name) {
  return name.split(/(?<=[_@])/).flatMap((part, i) => i ? [document.createElement("wbr"), part] : [part]);
}

/** Text as part of an element's id. */
const idOf = (text) => text.replace(/[^A-Za-z0-9]+/g, "-");

/** A part of the page that opens and closes, with a heading in its summary. */
function folding(id, title, open) {
  return make("details", {id, open}, make("summary", {}, make("h3", {}, title)));
}
