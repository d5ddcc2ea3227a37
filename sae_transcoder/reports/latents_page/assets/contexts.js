"use strict";
// The contexts of a latent: the strongest, then some of each range of activations.

let asText = false; // whether line breaks of the text are shown as such, for all latents

// own: [context's index in `data`, ...] of the latent in row `row`. data: columns of its shard's contexts.
function contextsSection(coder, row, data, own) {
  const list = element("div", {class: asText ? "contexts as-text" : "contexts"});
  for (const [range, group] of grouped(own, data.range)) {
    const name = element("h3", {}, range < 0 ? "Strongest" : rangeName(coder, row, range));
    list.append(element("section", {}, name, ...group.map(i => contextLine(coder, row, data, i))));
  }
  if (!own.length) list.append(element("p", {}, "It fires on none of these tokens."));
  return element("section", {class: "contexts-section"}, element("h2", {}, "Contexts"), lineChoice(list), list);
}

function grouped(own, ranges) {
  const groups = new Map();
  for (const i of own) groups.set(ranges[i], [...(groups.get(ranges[i]) ?? []), i]);
  return groups;
}

function rangeName(coder, row, range) {
  const {ranges} = coder.run, most = coder.numbers.max[row];
  const share = place => `${Math.round((100 * place) / ranges)} %`;
  const bound = place => number((most * place) / ranges);
  return `${share(range)} to ${share(range + 1)} of the largest: ${bound(range)} to ${bound(range + 1)}`;
}

function lineChoice(list) {
  const choices = [["one line each", false], ["as text", true]].map(([name, value]) => {
    const button = element("button", {type: "button", "aria-pressed": asText === value}, name);
    button.addEventListener("click", () => {
      asText = value;
      for (const each of choices) each.setAttribute("aria-pressed", each === button);
      list.classList.toggle("as-text", asText);
      centrePeaks(list);
    });
    return button;
  });
  return element("div", {class: "choice", role: "group", "aria-label": "lines"}, ...choices);
}

function contextLine(coder, row, data, i) {
  const tokens = data.tokens(i), activations = data.activations(i), most = coder.numbers.max[row];
  const line = element("div", {class: "line", role: "group", "aria-label": `document ${data.document[i]}`});
  const at = data.position[i] - data.start[i];
  tokens.forEach((id, place) => {
    const text = coder.text(id), activation = activations[place], token = contextToken(text, activation / most);
    token.tabIndex = place === at ? 0 : -1;
    token.classList.toggle("peak", place === at);
    told.set(token, () => [
      ["token", loneToken(text)], ["id", String(id)],
      ["activation", activation ? `${number(activation)} (${Math.round((100 * activation) / most)} % of the largest)` : "0"],
      ["position", whole(data.start[i] + place)],
    ]);
    line.append(token);
  });
  line.addEventListener("keydown", moveBetweenTokens);
  const where = `document ${whole(data.document[i])}, position ${whole(data.position[i])}`;
  return element("div", {class: "context"}, element("span", {class: "activation"}, number(data.activation[i])), line,
    element("span", {class: "place"}, where));
}

// A context is one stop of the Tab key; the arrow keys go from token to token.
function moveBetweenTokens(event) {
  const step = {ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling"}[event.key];
  const next = step && event.target.closest(".token")?.[step];
  if (!next) return;
  event.preventDefault();
  event.target.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

// Scrolls each line so that its peak is in the middle; peaks then stand below each other.
function centrePeaks(list) {
  const peaks = [...list.querySelectorAll(".peak")];
  const places = peaks.map(peak => peak.offsetLeft + peak.offsetWidth / 2 - peak.parentElement.clientWidth / 2); // read all, then write
  peaks.forEach((peak, i) => { peak.parentElement.scrollLeft = places[i]; });
}
