"""circuit-tracer, in its own environment: the scores of attribution graphs. Started by circuit_scores.py with a job file."""

import json
import os
import sys
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

from attribution_graph import load_model
from circuit_tracer import attribute
from circuit_tracer.graph import compute_graph_scores


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    scores, prompts = [], []
    for folder in job["sets"]:
        model = load_model(Path(folder))
        scores.append([compute_graph_scores(attribute(prompt, model)) for prompt in job["prompts"]])
        prompts = [model.tokenizer.decode(prompt) for prompt in job["prompts"]]
    print(json.dumps({"scores": scores, "prompts": prompts}))


if __name__ == "__main__":
    main()
