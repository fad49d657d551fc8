// Galleries: samples of the same prompt and noise side by side across methods, the credit of the prompt's probe beneath.

/** The samples of a medium and tier; they are put on the page when it is opened. */
function galleryOf(gallery) {
  const node = folding(gallery.id, `${gallery.medium === "video" ? "Videos" : "Images"}, ${gallery.tier} tier`, false);
  const empty = make("p", {class: "empty", hidden: true}, "No prompt of that skill and method here.");
  let parts = null;
  const fill = () => {
    if (parts) return;
    parts = gallery.prompts.map((prompt) => promptOf(gallery, prompt));
    node.append(...aboutGallery(gallery), empty, ...parts.map((part) => part.node));
    filter();
  };
  const filter = () => {
    node.hidden = Boolean(chosen.medium && chosen.medium !== gallery.medium);
    if (!parts) return 0;
    let left = 0;
    for (const part of parts) left += node.hidden ? 0 : part.filter();
    empty.hidden = left > 0;
    return left;
  };
  node.addEventListener("toggle", () => node.open && fill());
  filtered.push(filter);
  return node;
}

/** What is shown, what is not, and how to read the curves. */
function aboutGallery(gallery) {
  const what = gallery.medium === "video" ? "clip" : "picture";
  const said = [`Shown: of each method's first seed, one ${what} a prompt, all methods from the same noise; ${gallery.prompts.length} `
    + `prompts, ${gallery.methods.length} methods. ✓ and ✗ are the answers of the held-out judge.`];
  if (gallery.left_out.length) {
    said.push(`Published below ${gallery.medium}/${gallery.tier}/ but not shown, to keep the page small: `
      + `${gallery.left_out.join(", ")}.`);
  }
  const curves = gallery.objectives.length > 0;
  if (curves) {
    said.push("Curves: the signed credit that the method gave each step of one fixed stochastic rollout of the prompt (the probe, "
      + `not the rollout of the ${what} above it); a prompt's curves share one scale.`);
  }
  if (gallery.without_curve.length) {
    const whose = curves ? gallery.without_curve.join(", ") : "these runs";
    said.push(`No probe was recorded for ${whose}, hence no curve.`);
  }
  return [...said.map((text) => make("p", {}, text)), ...(curves ? [legendOf(gallery.objectives)] : [])];
}

/** The samples of one prompt, and a function that filters them and says how many are left. */
function promptOf(gallery, prompt) {
  const largest = largestCredit(prompt.samples);
  const cells = gallery.methods.map((method, i) => ({method, node: sampleOf(gallery, prompt, method, prompt.samples[i], largest)}));
  const skill = prompt.skill ? [make("span", {class: "skill"}, prompt.skill.replaceAll("_", " "))] : [];
  const node = make("section", {class: "prompt"}, make("h4", {}, prompt.text, " ", ...skill));
  const clips = cells.flatMap(({node}) => [...node.querySelectorAll("video")]);
  if (clips.length > 1) node.append(button("Play or pause all", () => together(cells), {class: "together"}));
  node.append(make("div", {class: "strip"}, ...cells.map((cell) => cell.node)));
  const filter = () => {
    let left = 0;
    for (const cell of cells) {
      cell.node.hidden = chosen.hidden.has(family(cell.method)) || !cell.node.querySelector("img, video");
      left += !cell.node.hidden;
    }
    node.hidden = left === 0 || Boolean(chosen.skill && prompt.skill !== chosen.skill);
    if (node.hidden) for (const clip of clips) clip.pause();
    return node.hidden ? 0 : left;
  };
  return {node, filter};
}

/** One method's sample with its name, the judge's answer and the curve. */
function sampleOf(gallery, prompt, method, sample, largest) {
  if (!sample) return make("figure");
  const what = gallery.medium === "video" ? "clip" : "picture";
  const judged = sample.right === null ? "" : sample.right ? ", judged right" : ", judged wrong";
  const text = `${what} of ${method} for “${prompt.text}”${judged}`;
  const shown = sample.src.startsWith("data:video/")
    ? make("video", {src: sample.src, controls: true, loop: true, playsinline: true, preload: "auto", "aria-label": text})
    : make("img", {src: sample.src, alt: text, decoding: "async"});
  shown.muted = true;
  const mark = sample.right === null ? [] : [make("span", {class: sample.right ? "right" : "wrong", "aria-hidden": "true"},
    sample.right ? " ✓" : " ✗")];
  const figure = make("figure", {}, make("figcaption", {}, ...breaking(method), ...mark), shown);
  if (sample.curve) figure.append(curveOf(sample.curve, gallery.objectives, largest, `${method}, “${prompt.text}”`));
  return figure;
}

/** Play the clips that are shown from their start, or stop them if one plays. */
function together(cells) {
  const clips = cells.filter(({node}) => !node.hidden).flatMap(({node}) => [...node.querySelectorAll("video")]);
  const playing = clips.some((clip) => !clip.paused);
  for (const clip of clips) {
    if (playing) {
      clip.pause();
    } else {
      clip.currentTime = 0;
      clip.play();
    }
  }
}
