"use strict";
// The data lie in script files that call register(). They are loaded by script elements: a page on disk may not fetch().

const ARRAYS = {
  u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, i1: Int8Array, i2: Int16Array, i4: Int32Array, f4: Float32Array, f8: Float64Array,
};
const MOST_KEPT = 40; // shards; those used least recently are forgotten

const arrived = new Map(); // key: value, between register() and the end of its script
const kept = new Map(); // key: promise of the value

function register(key, value) {
  arrived.set(key, value);
}

// The value of data/<key>.js. Rejects where the file is not there.
function shard(key) {
  const promise = kept.get(key) ?? load(key);
  kept.delete(key); // and to the end of the order
  kept.set(key, promise);
  if (kept.size > MOST_KEPT) kept.delete(kept.keys().next().value);
  return promise;
}

function load(key) {
  return new Promise((resolve, reject) => {
    const script = element("script", {src: `data/${key}.js`});
    const end = () => {
      script.remove();
      const value = arrived.get(key);
      if (arrived.delete(key)) resolve(value);
      else reject(new Error(`data/${key}.js cannot be read: the folder of this page is not complete; write it again`));
    };
    script.addEventListener("load", end);
    script.addEventListener("error", end);
    document.head.append(script);
  });
}

// The numbers of a packed column.
function unpack([type, text]) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
  return new ARRAYS[type](bytes.buffer);
}

// Where each of the lists of so many lengths begins, and the end of the last.
function begins(lengths) {
  const starts = new Uint32Array(lengths.length + 1);
  for (let i = 0; i < lengths.length; i++) starts[i + 1] = starts[i] + lengths[i];
  return starts;
}

// A packed column of lists as a function from row to list.
function unpackLists({lengths, values}) {
  const starts = begins(unpack(lengths)), all = unpack(values);
  return row => all.subarray(starts[row], starts[row + 1]);
}

// Packed contexts: `tokens(i)` of context i, `activations(i)` on each of these.
function unpackContexts({tokens, at, activations}) {
  const starts = begins(unpack(tokens.lengths)), ids = unpack(tokens.values);
  const all = new Float32Array(ids.length);
  const values = unpack(activations);
  unpack(at).forEach((place, i) => { all[place] = values[i]; });
  return {
    tokens: i => ids.subarray(starts[i], starts[i + 1]),
    activations: i => all.subarray(starts[i], starts[i + 1]),
  };
}
