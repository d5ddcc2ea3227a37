"use strict";
// The view of one latent.

// order: that of the table, for the latents before and behind it.
async function latentView(coder, row, order) {
  const {first, packed} = await coder.details(row);
  const i = row - first;
  const one = name => unpack(packed[name])[i];
  const list = name => unpackLists(packed[name])(i);
  return element("article", {class: "latent-view"}, heading(coder, row, order),
    element("div", {class: "summary"}, facts(coder, row, one), histogramFigure(coder, row, list("histogram"))),
    element("div", {class: "columns"},
      contextsSection(coder, row, ...ownContexts(packed.contexts, i)),
      element("aside", {}, ...tokenLists(coder, list), ...latentLists(coder, list), otherSeed(coder, packed.other_seed[i], one))));
}

function heading(coder, row, order) {
  const step = (by, label, key) => {
    const to = order.beside(row, by);
    return to < 0 ? null : element("a", {href: coder.linkTo(coder.numbers.latent[to]), rel: by < 0 ? "prev" : "next", title: `key ${key}`}, label);
  };
  return element("div", {class: "heading"},
    element("h1", {tabindex: "-1"}, `Latent ${whole(coder.numbers.latent[row])}`),
    element("nav", {"aria-label": "latents"}, element("a", {href: coder.link, class: "up"}, `all of ${coder.facts.name}`),
      step(-1, "‹ previous", "k"), step(1, "next ›", "j")));
}

function facts(coder, row, one) {
  const {numbers, facts: {tokens}} = coder, threshold = one("threshold"), level = numbers.level[row];
  const shown = [
    ["density", percent(numbers.density[row])], ["fires on", `${whole(one("fires"))} of ${counted(tokens, "token")}`],
    ["largest", number(numbers.max[row])], ["mean where it fires", number(numbers.mean[row])],
    ...(Number.isNaN(threshold) ? [] : [["fires above", number(threshold)]]), ...(level < 0 ? [] : [["level", String(level)]]),
  ];
  return element("dl", {}, ...shown.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))));
}

function histogramFigure(coder, row, counts) {
  if (!coder.fires(row)) return null;
  const plot = largeHistogram(counts, coder.run.histogram_edges, coder.facts.bins);
  return element("figure", {}, plot, element("figcaption", {}, "tokens by activation, logarithmic"));
}

// The shard's contexts, and the indices of those of its latent i.
function ownContexts(packed, i) {
  const columns = ["range", "activation", "document", "sequence", "position", "start"].map(name => [name, unpack(packed[name])]);
  const starts = begins(unpack(packed.count));
  const own = Array.from({length: starts[i + 1] - starts[i]}, (_, place) => starts[i] + place);
  return [{...Object.fromEntries(columns), ...unpackContexts(packed)}, own];
}

function tokenLists(coder, list) {
  const shown = [
    ["Raises", "logits of tokens that its decoder row raises most", "raised", "raised_logits"],
    ["Lowers", "those that it lowers most", "lowered", "lowered_logits"],
    ["Reads", "tokens whose embeddings give its encoder row the largest products", "read", "read_products"],
  ];
  const lists = shown.map(([title, hint, ids, values]) => valueList(title, hint, list(ids), list(values), id => loneToken(coder.text(id)), number));
  if (!coder.facts.writes) lists.unshift(element("p", {class: "hint"}, "Its module does not write into the residual stream: it raises no tokens by itself."));
  return lists;
}

function latentLists(coder, list) {
  const link = latent => latentLink(coder, latent);
  return [
    valueList("Fires together with", "latents that fire on the most of its tokens, and on which share", list("together"), list("together_share"), link, percent),
    valueList("Nearest", "latents by the cosine of decoder rows", list("nearest"), list("nearest_cosine"), link, number),
  ];
}

// A latent by number and peak token; a link where this page shows it.
function latentLink(coder, latent) {
  const row = coder.rowOf(latent);
  if (row < 0) return whole(latent);
  const peak = coder.numbers.peak[row];
  const about = coder.fires(row) ? (peak < 0 ? null : loneToken(coder.text(peak))) : element("span", {class: "none"}, "never fires");
  return element("a", {href: coder.linkTo(latent)}, `${whole(latent)} `, about);
}

// keys with their values, or null where there are none.
function valueList(title, hint, keys, values, shown, format) {
  if (!keys.length) return null;
  const items = Array.from(keys, (key, i) => element("li", {}, element("span", {}, shown(key)), element("span", {class: "value"}, format(values[i]))));
  return element("section", {}, element("h2", {title: hint}, title), element("ul", {class: "values"}, ...items));
}

function otherSeed(coder, seed, one) {
  const latent = one("other_latent");
  if (!seed || latent < 0) return null;
  const there = coder.ofSeed(seed), text = `latent ${whole(latent)} of ${seed}`;
  const match = there ? element("a", {href: `${coderLink(coder.run, there)}/${latent}`}, text) : text;
  return element("section", {}, element("h2", {title: "the smaller one of the cosines of encoder and decoder rows"}, "In another seed"),
    element("ul", {class: "values"}, element("li", {}, element("span", {}, match), element("span", {class: "value"}, number(one("other_cosine"))))));
}
