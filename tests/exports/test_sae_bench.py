"""SAEBench's core evaluation of an exported SAE gives the numbers of eval.json (pytest -m peers)."""

import json
import runpy
from pathlib import Path

import pytest

from helpers import ROOT
from helpers.peers import run_in
from helpers.sweeps import SHORT
from sae_transcoder.api import load_config, train
from sae_transcoder.exports.write import export

pytestmark = pytest.mark.peers

EXAMPLE = ROOT / "examples" / "sae_bench_core.py"
# mse: of a batch, over its tokens once more than ours. explained_variance: 0.6.0 takes the mean of squares for the mean (docs/other_programs.md).
OTHERWISE = {"mse", "explained_variance", "explained_variance_legacy"}
RUN = """
import runpy, sys
module = runpy.run_path(sys.argv[1])
from pathlib import Path
import json
print(json.dumps(module["core_evaluation"](Path(sys.argv[2]), Path(sys.argv[3]), None, 4)))
"""


def test_core_metrics_are_those_of_the_run(tmp_path: Path) -> None:
    settings = [
        "k=8",
        "layers=[2]",
        "separator=none",
        "exclude_first_tokens=0",
        f"save_dir={tmp_path}",
        f"cache_dir={tmp_path}/cache",
    ]
    run = train(load_config(*SHORT, *settings))
    assert run.evaluation is not None
    out = export(str(run.directory), "sae_lens", tmp_path / "out")
    assert runpy.run_path(str(EXAMPLE))["write_sequences"](str(run.directory), tmp_path / "heldout") == 8
    done = run_in("sae_bench", "-c", RUN, EXAMPLE, out / "layers.2", tmp_path / "heldout")
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout.splitlines()[-1])
    ours = run.evaluation.coders[0].metrics
    shared = (theirs.keys() & ours.keys()) - OTHERWISE
    assert len(shared) == 23
    assert {name: theirs[name] for name in shared} == pytest.approx({name: ours[name] for name in shared}, rel=1e-3, abs=1e-3)
    assert theirs["mse"] * 4 * 32 == pytest.approx(ours["mse"], rel=1e-3)
