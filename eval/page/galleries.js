// Galleries: samples of the same prompt and noise side by side across methods, the credit of the prompt's probe beneath.

/** The samples of a medium and tier; they are put on the page when it is opened. */
function galleryOf(gallery) {
  const node = folding(gallery.id, `${gallery.medium === "video" ? "Videos" : "Images"}, ${gallery.tier} tier`, false);
  let parts = null;
  const fill = () => {
    if (parts) return;
    parts = gallery.prompts.map((prompt) => promptOf(gallery, prompt));
    node.append(...aboutGallery(gallery), ...parts);
    filter();
  };
  const filter = () => {
    const left = gallery.prompts.map((prompt) => shownOf(gallery, prompt));
    node.hidden = !left.some((of) => of.includes(true));
    for (const [i, part] of (parts || []).entries()) {
      part.hidden = !left[i].includes(true);
      for (const [j, figure] of part.querySelectorAll("figure").entries()) figure.hidden = !left[i][j];
    }
    for (const clip of node.querySelectorAll("video")) if (clip.closest("[hidden]")) clip.pause();
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

/** Of each method of a gallery, whether the filters leave its sample of a prompt. */
function shownOf(gallery, prompt) {
  const other = chosen.medium && gallery.medium !== chosen.medium || chosen.skill && prompt.skill !== chosen.skill;
  return gallery.methods.map((method, i) => Boolean(prompt.samples[i]) && !other && !chosen.hidden.has(family(method)));
}

/** The samples of one prompt. */
function promptOf(gallery, prompt) {
  const largest = largestCredit(prompt.samples);
  const figures = gallery.methods.map((method, i) => sampleOf(gallery, prompt, method, prompt.samples[i], largest));
  const skill = prompt.skill ? [make("span", {class: "skill"}, prompt.skill.replaceAll("_", " "))] : [];
  const node = make("section", {class: "prompt"}, make("h4", {}, prompt.text, " ", ...skill));
  const clips = figures.filter((figure) => figure.querySelector("video"));
  if (clips.length > 1) node.append(button("Play or pause all", () => together(clips), {class: "together"}));
  node.append(make("div", {class: "strip"}, ...figures));
  return node;
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
function together(figures) {
  const clips = figures.filter((figure) => !figure.hidden).map((figure) => figure.querySelector("video"));
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
