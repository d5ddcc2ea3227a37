"""Exports coders for SAELens: `sae_lens.SAE.load_from_disk(FOLDER)`, one folder per coder (tried with 6.54.12)."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from sae_transcoder.coder.names import coder_dir, hookpoint_of
from sae_transcoder.config import ConfigError
from sae_transcoder.exports.source import Source, StoredCoder
from sae_transcoder.exports.targets import WriteFiles


def writer(source: Source) -> WriteFiles:
    """Returns the function that writes FOLDER/<coder>/cfg.json and sae_weights.safetensors.

    SAELens has no top-k transcoder. A transcoder is written as a top-k SAE that does not subtract b_dec from its input, which computes
    the same. Raises ConfigError for groupmax and skip connections, which SAELens's top-k SAE cannot express.
    """
    faults = []
    for name, coder in source.coders.items():
        if coder.cfg["activation"] != "topk":
            faults.append(f"{name}: activation={coder.cfg['activation']}: SAELens has none such; only topk can be exported to it")
        if coder.cfg["skip_connection"]:
            faults.append(f"{name}: skip_connection=True: SAELens's top-k SAE has none; export to circuit_tracer or hub instead")
    if faults:
        raise ConfigError(*faults)

    def write_files(out_dir: Path) -> None:
        for name, coder in source.coders.items():
            own_dir = out_dir / coder_dir(name)
            own_dir.mkdir(parents=True)
            renamed = {
                "W_enc": coder.weights["encoder.weight"].T,
                "b_enc": coder.weights["encoder.bias"],
                "W_dec": coder.weights["W_dec"],
                "b_dec": coder.weights["b_dec"],
            }
            save_file({key: value.contiguous() for key, value in renamed.items()}, own_dir / "sae_weights.safetensors")
            (own_dir / "cfg.json").write_text(json.dumps(sae_lens_config(source, name, coder), indent=2) + "\n")

    return write_files


def sae_lens_config(source: Source, name: str, coder: StoredCoder) -> dict[str, Any]:
    """One coder's config in SAELens's format."""
    settings = source.settings
    return {
        "architecture": "topk",
        "d_in": coder.cfg["d_in"],
        "d_sae": len(coder.weights["W_dec"]),
        "k": coder.cfg["k"],
        "rescale_acts_by_decoder_norm": False,
        "apply_b_dec_to_input": not coder.cfg["transcode"],
        "normalize_activations": "none",
        "reshape_activations": "none",
        "dtype": "float32",
        "device": "cpu",
        # No hook_name: SAELens would read the module's output there; a transcoder's input is another.
        "metadata": {
            "model_name": settings["model_name"],
            "dataset_path": settings["dataset_name"],
            "context_size": settings["max_seq_length"],
            "prepend_bos": bool(source.begin),
            "sae_transcoder_begin": source.begin,
            "sae_transcoder_train_on": settings["train_on"],
            "sae_transcoder_model_type": settings["model_type"],
            "sae_transcoder_module": hookpoint_of(name),
        },
    }
