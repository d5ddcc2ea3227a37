"use strict";
// The rows of the table. Only those within sight are in the document, each at its place in a body as high as all of them.

const BEYOND = 8; // rows above and below those within sight
const AROUND = 12; // tokens of the strongest context on either side of its peak

class Rows {
  constructor(coder, order) {
    Object.assign(this, {coder, order, shown: new Map()}); // place: element
    this.body = element("div", {role: "rowgroup", class: "body"});
    this.body.addEventListener("click", event => {
      const row = event.target.closest(".row");
      if (row && !event.target.closest("a") && getSelection().isCollapsed) location.hash = row.querySelector("a").hash;
    });
  }

  get height() {
    return parseFloat(getComputedStyle(this.body).getPropertyValue("--row"));
  }

  // After the order has changed: removes what is no longer at its place, and draws. The focus stays at its latent.
  redraw() {
    const focused = this.body.contains(document.activeElement) ? document.activeElement.closest(".row") : null;
    const focusedRow = focused ? Number(focused.dataset.row) : null;
    for (const [place, line] of this.shown) {
      const row = this.order.rows[place];
      if (Number(line.dataset.row) === row && line.dataset.where === this.where(row)) continue;
      line.remove();
      this.shown.delete(place);
    }
    this.draw();
    if (focused && !focused.isConnected) this.focus(this.order.rows.indexOf(focusedRow));
  }

  where(row) {
    return this.order.found ? whereFound(this.order.found[row]) : "";
  }

  // Draws the rows that have come into sight, removes those that have left it.
  draw() {
    const {height} = this, count = this.order.rows.length;
    this.body.style.height = `${height * count}px`;
    const above = -this.body.getBoundingClientRect().top;
    const first = Math.max(0, Math.floor(above / height) - BEYOND);
    const end = Math.min(count, Math.ceil((above + innerHeight) / height) + BEYOND);
    for (const [place, row] of this.shown) {
      if ((place < first || place >= end) && !row.contains(document.activeElement)) {
        row.remove();
        this.shown.delete(place);
      }
    }
    for (let place = first; place < end; place++) this.place(place, height);
  }

  place(place, height) {
    let row = this.shown.get(place);
    if (!row) {
      row = this.drawn(this.order.rows[place], place);
      this.shown.set(place, row);
      const next = [...this.shown.keys()].reduce((best, each) => (each > place && each < best ? each : best), Infinity);
      this.body.insertBefore(row, this.shown.get(next) ?? null); // in order, for the keyboard
    }
    row.style.transform = `translateY(${place * height}px)`;
  }

  drawn(row, place) {
    const {coder} = this, {numbers, facts} = coder;
    const cell = (name, ...children) => element("div", {role: "cell", class: name}, ...children);
    const latent = numbers.latent[row];
    const line = element("div", {role: "row", class: "row", "aria-rowindex": place + 2},
      cell("latent", element("a", {href: coder.linkTo(latent)}, whole(latent))),
      cell("density", percent(numbers.density[row])),
      cell("max", number(numbers.max[row])),
      cell("mean", number(numbers.mean[row])),
      facts.levels ? cell("level", numbers.level[row] < 0 ? "" : String(numbers.level[row])) : null,
      cell("centre"),
      cell("peak"),
      facts.raised ? cell("raised") : null);
    Object.assign(line.dataset, {place, row, where: this.where(row)});
    this.fill(line, row).catch(showFault);
    return line;
  }

  // What comes from the row's shard.
  async fill(line, row) {
    const data = await this.coder.tableRows(Math.floor(row / this.coder.sizes.rows));
    const i = row - data.first, bins = this.coder.run.histogram_edges.length - 1;
    if (this.coder.fires(row)) {
      line.querySelector(".centre").append(smallHistogram(data.heights.subarray(i * bins, (i + 1) * bins), this.coder.facts.bins));
    }
    line.querySelector(".peak").append(this.excerpt(data, i, row));
    const raised = Array.from(data.raised(i).subarray(0, 8), id => loneToken(this.coder.text(id)));
    line.querySelector(".raised")?.append(...raised.flatMap(token => [token, " "]));
    const {where} = line.dataset;
    if (where) line.querySelector(".peak").append(element("span", {class: "where", title: "where the search found it"}, where));
  }

  // The peak of the strongest context in the middle, some tokens on either side.
  excerpt({context, peak}, i, row) {
    const tokens = context.tokens(i), activations = context.activations(i), most = this.coder.numbers.max[row];
    const token = place => contextToken(this.coder.text(tokens[place]), activations[place] / most);
    const span = (name, from, to) => {
      const part = element("span", {class: name});
      for (let place = Math.max(0, from); place < Math.min(to, tokens.length); place++) part.append(token(place));
      return part;
    };
    if (!tokens.length) return element("span", {class: "none"}, this.coder.fires(row) ? "" : "never fires");
    const at = peak[i];
    return element("span", {class: "excerpt"}, span("before", at - AROUND, at), span("at", at, at + 1), span("after", at + 1, at + 1 + AROUND));
  }

  // Moves the keyboard's focus to the row at a place, which comes into sight.
  focus(place) {
    if (place < 0 || place >= this.order.rows.length) return;
    const {height} = this, box = this.body.getBoundingClientRect();
    const head = document.querySelector(".head")?.getBoundingClientRect().height ?? 0;
    const top = box.top + place * height;
    if (top < head) scrollBy(0, top - head);
    else if (top + height > innerHeight) scrollBy(0, top + height - innerHeight);
    this.draw();
    this.shown.get(place)?.querySelector("a").focus({preventScroll: true});
  }
}
