"use strict";
// Which rows the table shows, and in which order.

const FALLS_FIRST = new Set(["density", "max", "mean"]); // columns that fall at the first click

class Order {
  constructor(coder) {
    Object.assign(this, {coder, column: "latent", falling: false, from: 0, to: 1, dead: false, found: null});
    this.sort();
  }

  // Sorts by a column; by the same once more the other way round.
  sortBy(column) {
    this.falling = column === this.column ? !this.falling : FALLS_FIRST.has(column);
    this.column = column;
    this.sort();
  }

  sort() {
    const keys = this.keys();
    const rows = Uint32Array.from(keys, (_, row) => row);
    this.sorted = rows.sort((a, b) => keys[a] - keys[b] || a - b);
    this.filter();
  }

  // A number for each row, small ones first; what has none comes last either way.
  keys() {
    const {numbers} = this.coder, sign = this.falling ? -1 : 1;
    const byToken = ["peak", "raised"].includes(this.column) ? alphabetical(numbers[this.column], this.coder) : null;
    const values = byToken ?? numbers[this.column] ?? [];
    return Float64Array.from(values, value => (value >= 0 ? sign * value : Infinity));
  }

  // found: for each row whether the search found it, or null without a search.
  filter(found = this.found) {
    const {density} = this.coder.numbers;
    this.found = found;
    const isNumber = row => Boolean(found && found[row] & FOUND.number);
    const shown = this.sorted.filter(row => {
      if (isNumber(row)) return true;
      if (found && !found[row]) return false;
      if (!density[row]) return this.dead;
      return density[row] >= this.from && density[row] <= this.to;
    });
    const place = found ? shown.findIndex(isNumber) : -1;
    if (place > 0) {
      const row = shown[place];
      shown.copyWithin(1, 0, place);
      shown[0] = row;
    }
    this.rows = shown;
    this.places = null;
  }

  // The row behind another by so many places in the table; -1 where there is none. A row that the table does not show: by number.
  beside(row, step) {
    this.places ??= new Map(Array.from(this.rows, (each, place) => [each, place]));
    const place = this.places.get(row);
    if (place !== undefined) return this.rows[place + step] ?? -1;
    return row + step < this.coder.rows ? row + step : -1;
  }
}

// For each id its place in the alphabet, spaces before it aside; NaN for -1.
function alphabetical(ids, coder) {
  const texts = [...new Set(ids)].filter(id => id >= 0).map(id => [coder.text(id).trim().toLowerCase(), id]);
  texts.sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0));
  const places = new Map(texts.map(([, id], place) => [id, place]));
  return Float64Array.from(ids, id => places.get(id) ?? NaN);
}
