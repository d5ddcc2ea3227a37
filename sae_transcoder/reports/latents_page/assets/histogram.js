"use strict";
// Histograms of log2 activations: a small one for a row of the table, one with axes for the view of a latent.

// Bars of heights 0 to 255. Bins outside of `bins` are empty for every latent of the coder, so rows compare.
function smallHistogram(heights, [first, end]) {
  const bars = [];
  for (let i = first; i < end; i++) {
    if (heights[i]) bars.push(`M${i - first} 24v${(-24 * heights[i]) / 255}h1v${(24 * heights[i]) / 255}z`);
  }
  const shape = {viewBox: `0 0 ${end - first} 24`, preserveAspectRatio: "none", class: "small-histogram", "aria-hidden": "true"};
  return svgElement("svg", shape, svgElement("path", {d: bars.join("")}));
}

const PLOT = {width: 340, height: 120, left: 44, bottom: 22, top: 10};

// counts [bin], edges [bin + 1] in log2.
function largeHistogram(counts, edges, [first, end]) {
  const {width, height, left, bottom, top} = PLOT;
  const highest = Math.max(1, ...counts);
  const x = log => left + ((log - edges[first]) / (edges[end] - edges[first])) * (width - left - 8);
  const y = count => height - bottom - (count / highest) * (height - bottom - top);
  const plot = svgElement("svg", {viewBox: `0 0 ${width} ${height}`, class: "histogram", role: "img"});
  plot.append(svgElement("title", {}, spoken(counts, edges)));
  for (let i = first; i < end; i++) {
    if (!counts[i]) continue;
    const box = {x: x(edges[i]), y: y(counts[i]), width: Math.max(1, x(edges[i + 1]) - x(edges[i]) - 0.5), height: y(0) - y(counts[i])};
    const range = `${number(2 ** edges[i])} to ${number(2 ** edges[i + 1])}: ${counted(counts[i], "token")}`;
    plot.append(svgElement("rect", box, svgElement("title", {}, range)));
  }
  plot.append(svgElement("path", {class: "axis", d: `M${left} ${y(0)}H${width - 8}`}));
  for (const log of ticks(edges[first], edges[end])) {
    plot.append(svgElement("path", {class: "axis", d: `M${x(log)} ${y(0)}v4`}));
    plot.append(svgElement("text", {x: x(log), y: height - 6, "text-anchor": "middle"}, number(2 ** log)));
  }
  for (const count of [0, highest]) {
    plot.append(svgElement("text", {x: left - 6, y: y(count) + 4, "text-anchor": "end"}, count < 1e5 ? whole(count) : number(count)));
  }
  return plot;
}

// At most six powers of two, evenly spaced in log2.
function ticks(from, to) {
  const step = Math.max(1, Math.ceil((to - from) / 6));
  const found = [];
  for (let log = Math.ceil(from); log <= to; log++) {
    if (log % step === 0) found.push(log);
  }
  return found;
}

function spoken(counts, edges) {
  const most = counts.indexOf(Math.max(...counts));
  return `Histogram of activations; most lie between ${number(2 ** edges[most])} and ${number(2 ** edges[most + 1])}`;
}
