"use strict";
// The search: in the strongest contexts, raised and lowered tokens of all latents, then in all their contexts. Case does not matter. A number
// is that of a latent too, which then comes first.

const FOUND = {context: 1, raised: 2, lowered: 4, further: 8, number: 16}; // where; a row may have several

class Search {
  constructor(coder, query) {
    Object.assign(this, {coder, query: query.toLowerCase(), found: new Uint8Array(coder.rows), read: 0, ended: false, stopped: false});
    this.total = Math.ceil(coder.rows / coder.sizes.rows) + Math.ceil(coder.rows / coder.sizes.latents);
    const matches = coder.lower.map(text => text.includes(this.query));
    this.tokenMatches = id => matches[id] ?? false;
    const number = query.trim().replaceAll(",", "");
    const row = /^\d+$/.test(number) ? coder.rowOf(Number(number)) : -1;
    if (row >= 0) this.found[row] = FOUND.number;
  }

  stop() {
    this.stopped = true;
  }

  // Reads all shards one after another; calls back after each.
  async run(progress) {
    const {coder} = this;
    for (let part = 0; part * coder.sizes.rows < coder.rows && !this.stopped; part++) {
      this.searchRows(await coder.tableRows(part));
      this.step(progress);
    }
    for (let row = 0; row < coder.rows && !this.stopped; row += coder.sizes.latents) {
      if (this.anyLeft(row)) this.searchContexts(row, await load(`${coder.facts.key}/latents/${row / coder.sizes.latents}`));
      this.step(progress);
    }
  }

  step(progress) {
    this.read++;
    this.ended = this.read === this.total;
    if (!this.stopped) progress();
  }

  searchRows({first, context, raised, lowered}) {
    const end = Math.min(first + this.coder.sizes.rows, this.coder.rows);
    for (let row = first; row < end; row++) {
      const i = row - first;
      if (this.contains(context.tokens(i))) this.found[row] |= FOUND.context;
      if (raised(i).some(this.tokenMatches)) this.found[row] |= FOUND.raised;
      if (lowered(i).some(this.tokenMatches)) this.found[row] |= FOUND.lowered;
    }
  }

  // Whether the tokens, joined, contain the query.
  contains(tokens) {
    let text = "";
    for (let i = 0; i < tokens.length; i++) text += this.coder.lower[tokens[i]] ?? "";
    return text.includes(this.query);
  }

  anyLeft(first) {
    return this.found.subarray(first, first + this.coder.sizes.latents).includes(0);
  }

  searchContexts(first, {contexts}) {
    const tokens = unpackLists(contexts.tokens);
    let context = 0;
    unpack(contexts.count).forEach((count, i) => {
      const end = context + count;
      for (; context < end && !this.found[first + i]; context++) {
        if (this.contains(tokens(context))) this.found[first + i] = FOUND.further;
      }
      context = end;
    });
  }
}

function whereFound(bits) {
  const names = {number: "its number", context: "strongest", raised: "raised", lowered: "lowered", further: "further context"};
  return Object.keys(names).filter(name => bits & FOUND[name]).map(name => names[name]).join(", ");
}
