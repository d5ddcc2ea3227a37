"use strict";
// One coder: what the index says of it, its numbers, and its shards unpacked. A row is the place of a latent in its files.

class Coder {
  constructor(run, facts, sizes, vocabulary, numbers) {
    Object.assign(this, {run, facts, sizes, vocabulary, numbers, rows: facts.shown});
    this.lower = vocabulary.map(text => text.toLowerCase());
    this.parts = new Map(); // number of a shard: promise of its rows
    const latents = numbers.latent ?? new Int32Array();
    this.all = latents.length > 0 && latents[latents.length - 1] === latents.length - 1; // then row and latent are one
  }

  get link() {
    return coderLink(this.run, this.facts);
  }

  linkTo(latent) {
    return `${this.link}/${latent}`;
  }

  text(id) {
    return this.vocabulary[id] ?? ""; // a model may have more ids than its tokenizer
  }

  // The row of a latent, -1 where it is not shown.
  rowOf(latent) {
    if (!this.all) return this.numbers.latent.indexOf(latent);
    return latent >= 0 && latent < this.rows ? latent : -1;
  }

  fires(row) {
    return this.numbers.density[row] > 0;
  }

  // {first, heights, context, peak, raised, lowered} of the rows from `first` on, by the number of their shard.
  tableRows(part) {
    if (!this.parts.has(part)) this.parts.set(part, load(`${this.facts.key}/rows/${part}`).then(packed => this.unpackRows(part, packed)));
    return this.parts.get(part);
  }

  unpackRows(part, packed) {
    return {
      first: part * this.sizes.rows,
      heights: unpack(packed.heights),
      context: unpackContexts(packed.context),
      peak: unpack(packed.context.peak),
      raised: unpackLists(packed.raised),
      lowered: unpackLists(packed.lowered),
    };
  }

  // The shard that has a row's contexts, packed, and the first row in it.
  async details(row) {
    const part = Math.floor(row / this.sizes.latents);
    return {first: part * this.sizes.latents, packed: await shard(`${this.facts.key}/latents/${part}`)};
  }

  // The coder of another seed, `seed7`, at the same hookpoint, as the index has it; null where it is not in this page.
  ofSeed(seed) {
    return this.run.coders.find(facts => facts.name === `${this.facts.hookpoint}/${seed}`) ?? null;
  }
}

function coderLink(run, facts) {
  return `#/${encodeURIComponent(run.title)}/${encodeURIComponent(facts.name)}`;
}

async function openCoder(index, run, facts) {
  const [vocabulary, packed] = await Promise.all([shard(run.vocabulary), shard(`${facts.key}/numbers`)]);
  const numbers = Object.fromEntries(Object.entries(packed).map(([name, column]) => [name, unpack(column)]));
  return new Coder(run, facts, index, vocabulary, numbers);
}
