"""report.html: the table of runs and interactive plots with a tooltip for each coder; one file that opens offline.

The facts that tooltips show are in the page once, as FACTS, and in the same order the addresses of the coders' latents, as LATENTS.
"""

import html
import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from plotly.offline import get_plotlyjs

from sae_transcoder.reports.columns import Column, columns, count_states
from sae_transcoder.reports.interactive_plots import PLOTS
from sae_transcoder.reports.matching import NOT_MATCHED, Matching
from sae_transcoder.reports.notes import notes
from sae_transcoder.reports.plot_data import PlottedCoder
from sae_transcoder.reports.seed_columns import IN_COMMON, OVER_SEEDS, PAIR_COLUMNS, group_columns, group_values, pair_values
from sae_transcoder.reports.seed_groups import CoderPlace, seed_groups
from sae_transcoder.run_store import run_records
from sae_transcoder.run_store.run_records import Record

TITLES = {
    "pareto": "Sparsity against fidelity, held out",
    "curves": "Training",
    "densities": "How often latents fire",
    "levels": "Matryoshka: what the first latents reconstruct",
    "thresholds": "JumpReLU: above which pre-activations latents fire",
}

HEAD = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline';
  img-src data: blob:; form-action 'none'; base-uri 'none'">
<link rel="icon" href="data:,">
<title>sae-report</title>
<style>
html { overflow-y: scroll; }
body { font: 14px/1.45 system-ui, sans-serif; margin: 24px auto; max-width: 1400px; padding: 0 20px; color: #222; }
h1 { font-size: 20px; } h2 { font-size: 16px; margin: 28px 0 4px; } p { color: #555; margin: 4px 0; }
.runs { overflow: auto; max-height: 70vh; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 3px 10px; text-align: right; white-space: nowrap; border-bottom: 1px solid #eee; }
th { position: sticky; top: 0; background: #fff; border-bottom: 1px solid #999; }
.left { text-align: left; }
.done { color: #1a7f37; } .failed { color: #c62828; } .running { color: #00718f; } .cancelled { color: #8e24aa; }
.interrupted, .preempted { color: #8a6100; } .queued { color: #777; }
@media (max-width: 700px) { body { padding: 0 8px; } #tip { max-width: 90vw; } }
#tip { position: fixed; display: none; pointer-events: none; background: #fff; border: 1px solid #888; border-radius: 3px;
  padding: 6px 9px; font-size: 12px; box-shadow: 0 2px 6px #0003; z-index: 9; max-width: 46em; }
#tip td { padding: 0 8px 0 0; border: 0; text-align: left; white-space: normal; overflow-wrap: anywhere; }
#tip td:first-child { color: #666; white-space: nowrap; }
</style>
"""

SCRIPT = """
const tip = document.getElementById("tip");
const pointed = event => event.points.find(point => point.customdata !== undefined)?.customdata;
function show(event) {
  const coder = pointed(event);
  if (coder === undefined) return;
  tip.replaceChildren();
  const table = tip.appendChild(document.createElement("table"));
  for (const fact of [...FACTS[coder], ...(LATENTS[coder] ? [["click", "shows its latents"]] : [])]) {
    const row = table.insertRow();
    for (const text of fact) row.insertCell().textContent = text;
  }
  tip.style.display = "block";
  const {clientX: x, clientY: y} = event.event, {offsetWidth: width, offsetHeight: height} = tip;
  tip.style.left = (x + 18 + width < innerWidth ? x + 18 : Math.max(0, x - 18 - width)) + "px";
  tip.style.top = Math.max(0, Math.min(y + 12, innerHeight - height - 4)) + "px";
}
for (const [id, figure] of Object.entries(FIGURES)) {
  // Without showSendToCloud=false plotly offers to upload the picture.
  const options = {responsive: true, displaylogo: false, showSendToCloud: false, plotlyServerURL: "",
    modeBarButtonsToRemove: ["select2d", "lasso2d"], toImageButtonOptions: {format: "svg", filename: id}};
  const narrow = matchMedia(`(max-width: ${figure.layout.meta.least}px)`);
  Plotly.newPlot(id, figure.data, figure.layout, options).then(plot => {
    const arrange = () => Plotly.relayout(plot, structuredClone(figure.layout.meta[narrow.matches ? "narrow" : "wide"]));
    narrow.addEventListener("change", arrange);
    if (narrow.matches) arrange();
    plot.on("plotly_hover", show);
    plot.on("plotly_click", event => { if (LATENTS[pointed(event)]) location.href = LATENTS[pointed(event)]; });
    plot.on("plotly_unhover", () => { tip.style.display = "none"; });
  });
}
"""


def report_page(
    records: Sequence[Record],
    coders: Sequence[PlottedCoder],
    matching: Matching = NOT_MATCHED,
    latents: Mapping[CoderPlace, str] = MappingProxyType({}),
    asked: Sequence[str] = (),
) -> str:
    """The page of the runs and their coders, among these the means over seeds, and of the latents that were matched.

    latents: {coder: the address, seen from the page, to which a click on it leads}; asked: metrics beside the usual ones.
    """
    numbered = list(enumerate(coders))
    drawn = {name: figure_and_note for name, draw in PLOTS.items() if (figure_and_note := draw(numbered))}
    sections = [
        f'<h2>{TITLES[name]}</h2>\n<p>{html.escape(note)}</p>\n<div id="{name}"></div>\n' for name, (_, note) in drawn.items()
    ]
    figures = ", ".join(f"{json.dumps(name)}: {inert(figure.to_json())}" for name, (figure, _) in drawn.items())
    states = ", ".join(f"{count} {state}" for state, count in count_states(records).items()) or "no runs"
    facts = inert(json.dumps([coder.facts for coder in coders], separators=(",", ":")))
    links = inert(json.dumps([latents.get(coder.place) if coder.place else None for coder in coders], separators=(",", ":")))
    return (
        f"{HEAD}<h1>{len(records):,} runs, {sum(not coder.seeds for coder in coders):,} coders</h1>\n<p>{states}</p>\n"
        f'<div class="runs">{html_table(columns(records, asked, metrics_first=True), list(map(run_records.values, records)))}</div>\n'
        f"{''.join(f'<p>{html.escape(note)}</p>{chr(10)}' for note in notes(records))}"
        f'{comparisons(records, matching)}{"".join(sections)}<div id="tip" role="tooltip"></div>\n'
        f"<script>{get_plotlyjs()}</script>\n<script>\nconst FACTS = {facts};\nconst LATENTS = {links};\n"
        f"const FIGURES = {{{figures}}};\n{SCRIPT}</script>\n"
    )


def inert(text: str) -> str:
    """JSON that cannot end the script element around it."""
    return text.replace("<", "\\u003c")


def comparisons(records: Sequence[Record], matching: Matching) -> str:
    """The tables of metrics over seeds and of latents in common, where there are any."""
    groups = seed_groups(records)
    tables = []
    if groups:
        rows = [group_values(group, matching) for group in groups]
        tables.append((OVER_SEEDS, html_table(group_columns(groups, matching), rows)))
    if matching.shows_pairs:
        tables.append((IN_COMMON, html_table(PAIR_COLUMNS, list(map(pair_values, matching.pairs)))))
    return "".join(f'<h2>{title}</h2>\n<div class="runs">{table}</div>\n' for title, table in tables)


def html_table(shown: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows, in the columns of the terminal's tables."""
    sides = ["" if column.right else ' class="left"' for column in shown]
    head = "".join(f"<th{side}>{html.escape(column.header)}</th>" for column, side in zip(shown, sides, strict=True))
    body = []
    for values in rows:
        cells = [
            f'<td class="left {values["state"]}">{values["state"]}</td>' if column.key == "state"
            else f"<td{side}>{html.escape(column.show(values))}</td>"
            for column, side in zip(shown, sides, strict=True)
        ]  # fmt: skip
        body.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n" + "\n".join(body) + "\n</tbody></table>"
