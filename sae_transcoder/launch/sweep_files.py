"""The files of a sweep that exist before its runs start: sweep.json, and for each new run .hydra/ and status.json."""

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf, open_dict

from sae_transcoder.config import run_dir, run_name, signature, sweep_dir
from sae_transcoder.launch.sweep_jobs import SweepJob
from sae_transcoder.process.atomic_files import replace_text
from sae_transcoder.run_store import run_files, status
from sae_transcoder.run_store.checked_files import damaged, read_object
from sae_transcoder.run_store.status import State, Status

MANIFEST = "sweep.json"


def write_sweep_files(master: DictConfig, jobs: Sequence[SweepJob]) -> None:
    """Adds the jobs to the sweep's manifest; writes the config of each run to be trained, as Hydra would, and marks new runs as queued."""
    write_manifest(jobs)
    hydra_node = OmegaConf.masked_copy(master, "hydra")
    choices = dict(hydra_node.hydra.runtime.choices)
    for job in jobs:
        if not job.action.trains:
            continue
        directory = run_dir(job.cfg)
        write_hydra_files(job, directory / ".hydra", hydra_node, choices)
        with suppress(Timeout), status.lock(directory):  # else another process has just started it
            if status.read(directory) is None:
                status.write(directory, Status(State.queued, signature(job.cfg)))


def write_manifest(jobs: Sequence[SweepJob]) -> None:
    """Adds the jobs to sweep.json in the sweep's folder."""
    folder = sweep_dir(jobs[0].cfg)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f".{MANIFEST}.lock"):
        path = folder / MANIFEST
        fix = "remove it, and the same command writes it anew; the runs do not depend on it"
        if (manifest := read_object(path, fix)) is None:
            manifest = {"sweep_name": jobs[0].cfg.sweep_name, "runs": {}}
        if not isinstance(manifest.get("runs"), dict):
            raise damaged(path, "names no runs", fix)
        manifest["runs"] |= {run_name(job.cfg): {"overrides": job.overrides, "signature": signature(job.cfg)} for job in jobs}
        replace_text(path, json.dumps(manifest, indent=2) + "\n")


def write_hydra_files(job: SweepJob, folder: Path, hydra_node: DictConfig, choices: dict[str, str]) -> None:
    """Writes config.yaml, overrides.yaml and hydra.yaml as Hydra would for the job. Changes hydra_node.

    hydra_node: the sweep's own Hydra settings; choices: {group: choice} of the sweep.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open_dict(hydra_node):
        overrides = dict(override.lstrip("+").split("=", 1) for override in job.overrides)
        hydra_node.hydra.overrides.task = job.overrides
        hydra_node.hydra.job.num, hydra_node.hydra.job.id = job.number, str(job.number)
        hydra_node.hydra.job.override_dirname = ",".join(sorted(job.overrides))
        hydra_node.hydra.runtime.output_dir = str(folder.parent.absolute())
        hydra_node.hydra.runtime.choices = choices | {group: overrides[group] for group in choices.keys() & overrides.keys()}
    run_files.write_config(job.cfg)
    for name, content in [("overrides", OmegaConf.create(job.overrides)), ("hydra", hydra_node)]:
        replace_text(folder / f"{name}.yaml", OmegaConf.to_yaml(content))
