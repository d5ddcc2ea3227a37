"use strict";
// Tokens as text: what is invisible gets a mark, and the activation a colour.

const MARKS = new Map([[" ", "·"], ["\n", "↵"], ["\t", "→"], ["\r", "␍"], ["\u00a0", "⍽"]]);
// Controls, what sets the direction of text, separators, what has no width, halves of surrogate pairs.
const UNSEEN = /[\u0000-\u001f\u007f-\u00a0\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202f\u2060-\u206f\ufeff\ufff9-\ufffb]|[\ud800-\udfff]/gu;
const SPACES_TOO = new RegExp(`${UNSEEN.source}| +`, UNSEEN.flags);
const PLAIN = /^[\u0020-\u007e]*[\u0021-\u007e]$/;
const LONGEST = 80; // characters of a token that are shown

function markOf(character) {
  return MARKS.get(character) ?? `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
}

// The text of a token as nodes: marks for what is not seen, a line break behind the mark of a newline. A token of nothing but
// whitespace shows its spaces as dots.
function textNodes(text) {
  if (text === "") return [mark("∅")];
  const shortened = text.length > LONGEST ? `${text.slice(0, LONGEST)}…` : text;
  if (PLAIN.test(text)) return [shortened]; // most tokens: a view has thousands
  const unseen = /^\s+$/.test(text) ? SPACES_TOO : UNSEEN;
  const nodes = [];
  let end = 0;
  for (const found of shortened.matchAll(unseen)) {
    if (found.index > end) nodes.push(shortened.slice(end, found.index));
    nodes.push(mark([...found[0]].map(markOf).join("")));
    if (found[0] === "\n") nodes.push(element("span", {class: "break"}, "\n"));
    end = found.index + found[0].length;
  }
  if (end < shortened.length) nodes.push(shortened.slice(end));
  return nodes;
}

function mark(text) {
  return element("span", {class: "mark"}, text);
}

// A token by itself, with the spaces at its ends seen.
function loneToken(text) {
  const [, before, inner, after] = /^( *)(.*?)( *)$/s.exec(text);
  const nodes = inner ? [...spaces(before), ...textNodes(inner), ...spaces(after)] : textNodes(text);
  return element("bdi", {class: "lone"}, ...nodes);
}

function spaces(text) {
  return text ? [mark("·".repeat(Math.min(text.length, LONGEST)))] : [];
}

// A token of a context. strength: its activation over the latent's largest.
function contextToken(text, strength) {
  const span = element("bdi", {class: "token"}, ...textNodes(text));
  if (strength > 0) {
    span.classList.add("fires");
    span.style.setProperty("--strength", `${Math.round(100 * Math.min(1, 0.12 + 0.88 * strength))}%`);
  }
  return span;
}
