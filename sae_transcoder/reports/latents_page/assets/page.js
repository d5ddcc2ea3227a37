"use strict";
// Which view the address asks for, the chooser, and the keys.
// #/<run>/<coder> is a table, #/<run>/<coder>/<latent> one latent.

const tables = new Map(); // key of a coder: promise of its table
let index = null;
let view = {}; // {table, row}: what is shown; no row for a table
let turn = 0; // counts addresses, so that a slow one does not overtake the next

history.scrollRestoration = "manual";

async function showAddress() {
  const own = ++turn;
  hideTip();
  try {
    const [title, name, latent] = location.hash.replace(/^#\/?/, "").split("/").map(decodeURIComponent);
    const run = title ? index.runs.find(each => each.title === title) : index.runs[0];
    const facts = name ? run?.coders.find(each => each.name === name) : run?.coders[0];
    if (!facts) throw new Error(`${[title, name].filter(Boolean).join(", ") || "latents"}: not in this page; choose a coder above`);
    if (!name) return location.replace(coderLink(run, facts));
    document.getElementById("chooser").value = coderLink(run, facts);
    const table = await tableOf(run, facts);
    if (own === turn) await (latent ? showLatent(table, latent, own) : showTable(table));
  } catch (error) {
    if (own !== turn) return;
    leaveView({});
    document.getElementById("main").replaceChildren();
    document.getElementById("chooser").selectedIndex = -1; // so that each coder is a change
    showFault(error);
  }
}

function tableOf(run, facts) {
  if (!tables.has(facts.key)) tables.set(facts.key, openCoder(index, run, facts).then(coder => new Table(coder)));
  return tables.get(facts.key);
}

function showTable(table) {
  const from = view.table === table ? view.row ?? null : null;
  replaceView({table}, table.element, table.coder.facts.name);
  table.shown(from);
}

async function showLatent(table, text, own) {
  const {coder} = table, row = /^\d+$/.test(text) ? coder.rowOf(Number(text)) : -1;
  if (row < 0) throw new Error(`latent ${text}: not among the ${counted(coder.rows, "latent")} of ${coder.facts.name} in this page`);
  const content = await latentView(coder, row, table.order);
  if (own !== turn) return;
  replaceView({table, row}, content, `latent ${text}, ${coder.facts.name}`);
  scrollTo(0, 0);
  centrePeaks(content);
  content.querySelector("h1").focus({preventScroll: true});
}

function leaveView(next) {
  if (view.table && view.row === undefined) view.table.scroll = scrollY;
  view = next;
}

function replaceView(next, content, title) {
  leaveView(next);
  document.getElementById("fault").hidden = true;
  document.getElementById("main").replaceChildren(content);
  document.title = `${title} · ${next.table.coder.run.title}`;
}

function showFault(error) {
  const place = document.getElementById("fault");
  place.textContent = error instanceof URIError ? "the address is cut off or misspelt; choose a coder above" : error.message;
  place.hidden = false;
}

function fillChooser() {
  const chooser = document.getElementById("chooser");
  const several = index.runs.length > 1;
  for (const run of index.runs) {
    for (const facts of run.coders) {
      chooser.append(element("option", {value: coderLink(run, facts)}, several ? `${run.title} · ${facts.name}` : facts.name));
    }
  }
  chooser.addEventListener("change", () => { location.hash = chooser.value; });
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  const input = event.target.closest("input, select");
  if (event.key === "Escape") leave(input);
  else if (!input && event.key === "/") goToSearch(event);
  else if (!input && event.key === "j") document.querySelector("a[rel=next]")?.click();
  else if (!input && event.key === "k") document.querySelector("a[rel=prev]")?.click();
}

// Escape closes the tooltip, else empties and leaves the search, else leaves the latent.
function leave(input) {
  if (hideTip()) return;
  if (input?.id === "search") {
    input.value = "";
    view.table.startSearch("");
  }
  if (input) input.blur();
  else if (view.row !== undefined) location.hash = view.table.coder.link;
}

async function goToSearch(event) {
  event.preventDefault();
  if (!view.table) return;
  if (view.row !== undefined) {
    location.hash = view.table.coder.link;
    await new Promise(resolve => { addEventListener("hashchange", () => setTimeout(resolve), {once: true}); });
  }
  document.getElementById("search")?.select();
}

function redraw() {
  if (view.table && view.row === undefined) view.table.rows.draw();
}

addEventListener("scroll", redraw, {passive: true});
addEventListener("resize", redraw);
addEventListener("hashchange", showAddress);
addEventListener("keydown", onKey);
load("index").then(value => {
  index = value;
  fillChooser();
  return showAddress();
}).catch(showFault);
