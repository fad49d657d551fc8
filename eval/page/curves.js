// Credit curves: what each step of the probe was credited with, one line an objective, told apart by colour, dash and mark.

const WIDTH = 200, HEIGHT = 124, LEFT = 40, RIGHT = 8, TOP = 14, BOTTOM = 30;

/** The largest credit of a prompt's curves, in either direction, over all methods that are shown. */
function largestCredit(samples) {
  const values = samples.flatMap((sample) => sample?.curve ? Object.values(sample.curve).flat().map(([, credit]) => credit) : []);
  return Math.max(1e-9, ...values.map(Math.abs));
}

/** A number in two significant digits, with a true minus sign. */
const brief = (value) => String(Number(value.toPrecision(2))).replace("-", "−");

/** A drawing of the credit of one probe, step by step, within ±largest. */
function curveOf(curve, objectives, largest, title) {
  const steps = [...new Set(Object.values(curve).flat().map(([step]) => step))].sort((a, b) => a - b);
  const first = steps[0], span = Math.max(1, steps.at(-1) - first);
  const x = (step) => LEFT + (WIDTH - LEFT - RIGHT) * (step - first) / span;
  const y = (credit) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - credit / largest) / 2;
  const words = Object.entries(curve).map(([name, points]) => `${name} ${points.map(([, credit]) => brief(credit)).join(", ")}`);
  const text = `${title}: credit of steps ${steps.join(", ")}: ${words.join("; ")}`;
  const drawing = draw("svg", {viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "curve", role: "img", "aria-label": text});
  for (const value of [largest, 0, -largest]) {
    drawing.append(draw("line", {x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value), class: value ? "rule" : "rule zero"}));
    drawing.append(draw("text", {x: LEFT - 4, y: y(value) + 3.5, "text-anchor": "end"}, brief(value)));
  }
  for (const step of steps.length > 8 ? [steps[0], steps.at(-1)] : steps) {
    drawing.append(draw("text", {x: x(step), y: HEIGHT - BOTTOM + 12, "text-anchor": "middle"}, String(step)));
  }
  drawing.append(draw("text", {x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 4, "text-anchor": "middle"}, "step"));
  drawing.append(draw("text", {x: 2, y: 8}, "credit"));
  for (const [name, points] of Object.entries(curve)) {
    const style = `line${objectives.indexOf(name) % 6}`;
    drawing.append(draw("polyline", {class: style, points: points.map(([step, credit]) => `${x(step)},${y(credit)}`).join(" ")}));
    for (const [step, credit] of points) drawing.append(markOf(style, x(step), y(credit)));
  }
  return drawing;
}

/** The mark of a line: circle, square or triangle. */
function markOf(style, x, y) {
  const shape = Number(style.at(-1)) % 3;
  if (shape === 0) return draw("circle", {class: `${style} mark`, cx: x, cy: y, r: 2.6});
  if (shape === 1) return draw("rect", {class: `${style} mark`, x: x - 2.4, y: y - 2.4, width: 4.8, height: 4.8});
  return draw("polygon", {class: `${style} mark`, points: `${x},${y - 3.2} ${x - 3},${y + 2.4} ${x + 3},${y + 2.4}`});
}

/** Which line is which objective. */
function legendOf(objectives) {
  const items = objectives.map((name, i) => {
    const sample = draw("svg", {viewBox: "0 0 30 10", class: "curve key", "aria-hidden": "true"},
      draw("polyline", {class: `line${i % 6}`, points: "1,5 29,5"}), markOf(`line${i % 6}`, 15, 5));
    return make("li", {}, sample, ` ${name === "all" ? "all (one sum of the objectives)" : name}`);
  });
  return make("ul", {class: "legend", "aria-label": "Lines of the credit curves"}, ...items);
}
