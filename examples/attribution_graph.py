"""Draws the attribution graph of a prompt: which latents, in which layers and at which tokens, lead to the next token.

circuit-tracer (https://github.com/safety-research/circuit-tracer) does the attribution, in an environment of its own:

    sae-train experiment=demo_circuit run_name=circuit
    sae-latents outputs/circuit
    sae-export outputs/circuit to=circuit_tracer features=true out=outputs/circuit_set
    python benchmarks/peers/environments.py circuit_tracer && source ~/.cache/sae_transcoder_benchmarks/circuit_tracer/bin/activate
    python examples/attribution_graph.py outputs/circuit_set "import os, sys" --out outputs/graph

It writes FOLDER/graph.png, and for circuit-tracer's own page FOLDER/graph.json, its index and the contexts of each latent in the graph
(without features=true and sae-latents: none):

    circuit-tracer start-server --graph_file_dir outputs/graph --port 8032
"""

import argparse
import json
import shutil
from pathlib import Path

import matplotlib
import torch
import yaml
from circuit_tracer import Graph, ReplacementModel, attribute
from circuit_tracer.graph import compute_graph_scores
from circuit_tracer.transcoder.activation_functions import TopK
from circuit_tracer.transcoder.single_layer_transcoder import TranscoderSet, load_transcoder_set
from circuit_tracer.utils.create_graph_files import create_graph_files
from huggingface_hub import snapshot_download

matplotlib.use("Agg")
from matplotlib import pyplot

pyplot.rcParams["text.parse_math"] = False  # a token may be a dollar

BUNDLED = Path(__file__).parents[1] / "sae_transcoder" / "demo" / "model"  # what model_name: demo stands for
COLOURS = {
    "cross layer transcoder": "tab:blue",
    "mlp reconstruction error": "lightgray",
    "embedding": "tab:green",
    "logit": "tab:red",
}


def load_set(folder: Path) -> TranscoderSet:
    """The transcoders that `sae-export to=circuit_tracer` wrote, in float32 on the CPU; they compute the same as those that were trained."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    files = {int(path.stem.removeprefix("layer_")): str(path) for path in folder.glob("layer_*.safetensors")}
    hooks = (config["feature_input_hook"], config["feature_output_hook"])
    transcoders = load_transcoder_set(
        files, config.get("scan", str(folder)), *hooks, device=torch.device("cpu"), lazy_encoder=False, lazy_decoder=False
    )
    if config["activation"] == "topk":
        for transcoder in transcoders:
            # circuit-tracer 0.5.0 loads a ReLU where there are no thresholds. Its TopK keeps negative values, sparsify's does not: hence a ReLU.
            transcoder.activation_function = torch.nn.Sequential(torch.nn.ReLU(), TopK(config["k"]))
    return transcoders


def load_model(folder: Path, model: str | None = None) -> ReplacementModel:
    """The language model with the set's transcoders in place of its MLPs. model: its path or hub name; None takes the set's model_name."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    path = model or (str(BUNDLED) if config["model_name"] == "demo" else config["model_name"])
    if model is None and config["revision"]:  # circuit-tracer has no option for a revision
        path = snapshot_download(path, revision=config["revision"])
    return ReplacementModel.from_pretrained_and_transcoders(path, load_set(folder), backend="nnsight", device=torch.device("cpu"))


def draw(graph: dict, path: Path) -> None:
    """Draws the graph of circuit-tracer's JSON: a column for each token, a row for each layer, a line for each direct effect.

    A line's opacity and width show its share of all effects on its upper end; negative effects are brown. Latents have their number
    beside them.
    """
    tokens = graph["metadata"]["prompt_tokens"]
    layers = sorted({int(node["layer"]) for node in graph["nodes"] if node["layer"] != "E"})
    row = {"E": 0} | {str(layer): i + 1 for i, layer in enumerate(layers)}
    nodes_by_cell: dict[tuple[int, int], list[dict]] = {}
    for node in graph["nodes"]:
        nodes_by_cell.setdefault((node["ctx_idx"], row[node["layer"]]), []).append(node)
    position = {
        node["node_id"]: (column + (i + 1) / (len(nodes) + 1) - 0.5, line)
        for (column, line), nodes in nodes_by_cell.items()
        for i, node in enumerate(nodes)
    }
    figure, axes = pyplot.subplots(figsize=(max(6, 1.3 * len(tokens)), 6), layout="constrained")
    total_effect: dict[str, float] = {}
    for link in graph["links"]:
        total_effect[link["target"]] = total_effect.get(link["target"], 0.0) + abs(link["weight"])
    for link in graph["links"]:
        (x0, y0), (x1, y1) = position[link["source"]], position[link["target"]]
        share = abs(link["weight"]) / total_effect[link["target"]]
        colour = "tab:brown" if link["weight"] < 0 else "dimgray"
        axes.plot([x0, x1], [y0, y1], color=colour, alpha=min(1.0, 0.05 + share), linewidth=0.3 + 2 * share, zorder=1)
    for kind, colour in COLOURS.items():
        points = [position[node["node_id"]] for node in graph["nodes"] if node["feature_type"] == kind]
        if points:
            label = {"cross layer transcoder": "latent", "mlp reconstruction error": "error", "embedding": "token"}.get(kind, kind)
            axes.scatter(*zip(*points, strict=True), s=18, color=colour, label=label, zorder=2)
    for node in graph["nodes"]:
        if node["feature_type"] == "logit":
            text, rotation, size = node["clerp"].removeprefix("Output ").replace("\n", "\\n"), 60, 7
        elif node["feature_type"] == "cross layer transcoder":
            text, rotation, size = node["node_id"].split("_")[1], 45, 4
        else:
            continue
        axes.annotate(text, position[node["node_id"]], (1, 4), textcoords="offset points", rotation=rotation, fontsize=size)
    axes.set_xticks(range(len(tokens)), [token.replace("\n", "\\n") for token in tokens], rotation=45)
    names = {**{str(layer): f"layer {layer}" for layer in layers[:-1]}, "E": "token", str(layers[-1]): "next token"}
    axes.set_yticks(list(row.values()), [names[name] for name in row])
    axes.margins(y=0.12)
    axes.legend(loc="upper left", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def copy_features(graph: dict, transcoders: Path, out: Path) -> int:
    """Copies what the page shows of the latents of circuit-tracer's JSON to where it looks for it. Returns how many have something."""
    numbers = {node["feature"] for node in graph["nodes"] if node["feature_type"] == "cross layer transcoder"}
    folder = Path("features") / graph["metadata"]["scan"].rpartition("/")[2]
    files = [folder / f"{number}.json" for number in numbers if (transcoders / folder / f"{number}.json").is_file()]
    for file in files:
        (out / folder).mkdir(parents=True, exist_ok=True)
        shutil.copy(transcoders / file, out / file)
    return len(files)


def write(graph: Graph, transcoders: Path, out: Path, nodes: float, edges: float) -> int:
    """Writes graph.json for circuit-tracer's page, and graph.png. nodes, edges: the shares of the influence that those drawn carry.

    Returns how many of the latents drawn have contexts.
    """
    create_graph_files(graph, "graph", out.absolute(), node_threshold=nodes, edge_threshold=edges)
    drawn = json.loads((out / "graph.json").read_text())
    draw(drawn, out / "graph.png")
    return copy_features(drawn, transcoders, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("transcoders", type=Path, help="a folder that sae-export to=circuit_tracer wrote")
    parser.add_argument("prompt", help="text; a token that begins a sequence is put before it")
    parser.add_argument("--out", type=Path, default=Path("graph"), help="the folder that is written (graph)")
    parser.add_argument("--model", help="path or hub name of the language model; default: as the transcoders' config.yaml says")
    parser.add_argument("--nodes", type=float, default=0.6, help="share of the influence that the nodes drawn carry (0.6)")
    parser.add_argument("--edges", type=float, default=0.8, help="share of the influence that the edges drawn carry (0.8)")
    arguments = parser.parse_args()
    if not (arguments.transcoders / "config.yaml").is_file():
        parser.exit(
            1, f"{arguments.transcoders}: no config.yaml in it; write the set by sae-export RUN to=circuit_tracer out=FOLDER\n"
        )
    graph = attribute(arguments.prompt, load_model(arguments.transcoders, arguments.model))
    replacement, completeness = compute_graph_scores(graph)
    shown = write(graph, arguments.transcoders, arguments.out, arguments.nodes, arguments.edges)
    print(f"{len(graph.selected_features):,} latents; replacement score {replacement:.3f}, completeness score {completeness:.3f}")
    print(f"written: {arguments.out / 'graph.png'}, {arguments.out / 'graph.json'}, contexts of {shown} latents")


if __name__ == "__main__":
    main()
