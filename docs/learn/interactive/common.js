// Shared by the pictures of this folder: plain SVG, no library, no network.
"use strict";

const SVG = "http://www.w3.org/2000/svg";

function draw(parent, name, attributes, text) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  parent.appendChild(node);
  return node;
}

// Softmax of scores, without overflow.
function softmax(scores) {
  const top = Math.max(...scores);
  const powers = scores.map((score) => Math.exp(score - top));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / sum);
}

// KL divergence of weights from equal weights, in nats.
function divergence(weights) {
  return weights.reduce((sum, p) => sum + (p > 0 ? p * Math.log(p * weights.length) : 0), 0);
}

// Share of the examples that count: 1 for equal weights, 1/n for a single one.
function effectiveShare(weights) {
  return 1 / (weights.length * weights.reduce((sum, p) => sum + p * p, 0));
}

// Bars of weights over their examples; colours[i] and labels[i] belong to example i.
function bars(svg, weights, labels, colours) {
  svg.replaceChildren();
  const width = 640, height = 260, step = width / weights.length;
  draw(svg, "line", { x1: 30, x2: 30 + width, y1: 280, y2: 280, stroke: "currentColor" });
  for (const tick of [0, 0.25, 0.5, 0.75, 1]) {
    const y = 280 - height * tick;
    draw(svg, "line", { x1: 30, x2: 30 + width, y1: y, y2: y, stroke: "currentColor", opacity: 0.12 });
    draw(svg, "text", { x: 26, y: y + 4, "text-anchor": "end" }, tick);
  }
  weights.forEach((p, i) => {
    const x = 30 + i * step + step * 0.15;
    draw(svg, "rect", { x, y: 280 - height * p, width: step * 0.7, height: height * p, fill: colours[i] });
    draw(svg, "text", { x: x + step * 0.35, y: 298, "text-anchor": "middle" }, labels[i]);
    draw(svg, "text", { x: x + step * 0.35, y: 274 - height * p, "text-anchor": "middle" }, p.toFixed(2));
  });
}

// Calls `show` now and whenever a slider moves.
function watch(show) {
  for (const input of document.querySelectorAll("input, select")) input.addEventListener("input", show);
  show();
}

if (typeof module !== "undefined") module.exports = { softmax, divergence, effectiveShare };
