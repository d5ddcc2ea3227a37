"use strict";
// The table of a coder's latents: what it is, search and filters, the columns, and the rows.

const COLUMNS = [
  ["latent", "latent"], ["density", "density"], ["max", "max"], ["mean", "mean"], ["level", "level"],
  ["centre", "activations"], ["peak", "strongest context"], ["raised", "raised tokens"],
];
const HINTS = {
  density: "share of tokens on which it fires", level: "smallest Matryoshka dictionary that has it",
  centre: "histogram of log activations; sorts by their mean", peak: "sorts by the token at which it fires most",
  raised: "tokens whose logits it raises most; sorts by the first",
};
const TYPED = 150; // ms after the last key until the search begins
const REDRAW = 250; // ms between two looks at what a search has found

class Table {
  constructor(coder) {
    Object.assign(this, {coder, order: new Order(coder), search: null, scroll: 0, drawnAt: 0});
    this.rows = new Rows(coder, this.order);
    this.status = element("p", {role: "status"});
    this.progress = element("progress", {"aria-label": "contexts read", hidden: ""});
    this.head = element("div", {role: "row", class: "head"}, ...this.columns());
    const hidden = [...(coder.facts.levels ? [] : ["no-level"]), ...(coder.facts.raised ? [] : ["no-raised"])];
    this.element = element("section", {class: "latents"},
      element("h1", {tabindex: "-1"}, coder.facts.name), element("p", {class: "about"}, about(coder)), this.controls(),
      element("div", {class: "found"}, this.status, this.progress),
      element("div", {role: "table", class: ["table", ...hidden].join(" "), "aria-label": "latents"},
        element("div", {role: "rowgroup", class: "heads"}, this.head), this.rows.body));
    this.element.addEventListener("keydown", event => this.onKey(event));
  }

  columns() {
    const {facts} = this.coder;
    const there = COLUMNS.filter(([column]) => (column !== "level" || facts.levels) && (column !== "raised" || facts.raised));
    return there.map(([column, title]) => {
      const button = element("button", {type: "button", title: HINTS[column] ?? null}, title);
      button.addEventListener("click", () => {
        this.order.sortBy(column);
        this.changed();
      });
      return element("div", {role: "columnheader", class: column, "data-column": column}, button);
    });
  }

  controls() {
    const {coder} = this;
    this.query = element("input", {type: "search", id: "search", placeholder: "number, or text of contexts, raised, lowered", spellcheck: "false"});
    this.from = element("input", {inputmode: "decimal", "aria-label": "least density in percent", size: "6"});
    this.to = element("input", {inputmode: "decimal", "aria-label": "largest density in percent", size: "6"});
    this.dead = element("input", {type: "checkbox", id: "dead"});
    const dead = coder.numbers.density?.reduce((count, density) => count + (density === 0), 0) ?? 0;
    this.dead.disabled = dead === 0;
    let waiting;
    this.query.addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => this.startSearch(this.query.value), TYPED);
    });
    for (const input of [this.from, this.to, this.dead]) input.addEventListener("input", () => this.filter());
    return element("div", {class: "controls", role: "search"},
      element("label", {}, "search ", this.query),
      element("span", {class: "densities"}, "density from ", this.from, " to ", this.to, " %"),
      element("label", {}, this.dead, ` show ${whole(dead)} that never fire`));
  }

  filter() {
    const share = (input, otherwise) => {
      const text = input.value.replace("%", "").trim(), value = text ? Number(text) / 100 : otherwise;
      input.setAttribute("aria-invalid", Number.isNaN(value));
      return Number.isNaN(value) ? otherwise : value;
    };
    Object.assign(this.order, {from: share(this.from, 0), to: share(this.to, 1), dead: this.dead.checked});
    this.order.filter();
    this.changed();
  }

  startSearch(query) {
    this.search?.stop();
    this.search = query ? new Search(this.coder, query) : null;
    this.order.filter(this.search?.found ?? null);
    this.changed();
    this.search?.run(() => this.onFound()).catch(showFault);
  }

  // Shows what has been found so far, not too often.
  onFound() {
    if (!this.search.ended && performance.now() - this.drawnAt < REDRAW) return;
    this.order.filter();
    this.changed();
  }

  changed() {
    this.drawnAt = performance.now();
    if (!this.element.isConnected) return;
    for (const head of this.head.children) {
      const sorted = head.dataset.column === this.order.column;
      head.setAttribute("aria-sort", sorted ? (this.order.falling ? "descending" : "ascending") : "none");
    }
    this.element.querySelector("[role=table]").setAttribute("aria-rowcount", this.order.rows.length + 1);
    this.rows.redraw();
    this.tellStatus();
  }

  tellStatus() {
    const {search, order, coder, progress} = this;
    const running = search !== null && !search.ended;
    const invalid = [this.from, this.to].find(input => input.getAttribute("aria-invalid") === "true");
    this.status.textContent = invalid ? `density “${invalid.value}”: not a number`
      : `${whole(order.rows.length)} of ${counted(coder.rows, "latent")}${running ? "; reading further contexts" : ""}`;
    progress.hidden = !running;
    if (running) Object.assign(progress, {max: search.total, value: search.read});
  }

  onKey(event) {
    const row = event.target.closest(".row"), step = {ArrowDown: 1, ArrowUp: -1}[event.key];
    if (!step || event.target.closest("input")) return;
    event.preventDefault();
    this.rows.focus(row ? Number(row.dataset.place) + step : 0);
  }

  // After the table has come back into the document: where it was, the focus at the latent that was looked at.
  shown(latentRow) {
    this.changed();
    scrollTo(0, this.scroll);
    this.rows.draw();
    const place = latentRow === null ? -1 : this.order.rows.indexOf(latentRow);
    if (place >= 0) this.rows.focus(place);
  }
}

// What the numbers of a coder were computed on.
function about({run, facts}) {
  const kind = facts.transcoder ? "transcoder" : "SAE";
  const text = `${counted(facts.tokens, "token")} of ${run.text === "training" ? "the training text" : "held-out text"}, ${run.dataset_name}`;
  return `${run.title} · ${kind} of ${run.model_name}, ${facts.activation}${facts.k ? `, k ${whole(facts.k)}` : ""} · ${text}`;
}
