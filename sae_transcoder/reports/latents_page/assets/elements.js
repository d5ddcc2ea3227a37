"use strict";
// Elements and numbers as text. What is shown enters the page as text nodes, never as markup.

const SVG = "http://www.w3.org/2000/svg";

// An element with attributes and children; a child is a node, a text, or null for none.
function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

function svgElement(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null) node.setAttribute(name, value);
  }
  node.append(...children.filter(child => child !== null));
  return node;
}

// Three significant digits.
function number(value) {
  if (!Number.isFinite(value)) return "–";
  if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e6)) return value.toExponential(2).replace("e+", "e");
  return Number(value.toPrecision(3)).toLocaleString("en-US", {maximumFractionDigits: 6});
}

function whole(value) {
  return value.toLocaleString("en-US");
}

// A share of tokens.
function percent(share) {
  return `${number(100 * share)} %`;
}

function counted(count, word) {
  return `${whole(count)} ${word}${count === 1 ? "" : "s"}`;
}
