"""What the runs of one command have in common."""

from dataclasses import dataclass

from sae_transcoder.config.fields.metadata import no_result


@dataclass
class SweepConfig:
    """What several runs of one command (`-m`) have in common."""

    sweep_name: str | None = no_result(None)
    """Folder inside `save_dir` for the runs of a sweep. null: a single run has none; a sweep's name is composed of the experiment or model_type,
    the swept fields and a hash of the other settings, so that more values add runs to the same sweep."""
    runs_per_pack: int | None = no_result(None, at_least=1)
    """Runs that train side by side at most. null: as many as the memory estimate allows; on a cluster whose memory is not known, 4."""
    workers: int | None = no_result(None, at_least=1)
    """Processes that train packs at the same time, one on each GPU. null: as many as there are GPUs; on a CPU 1."""
    objective: str = no_result("fvu")
    """Held-out metric, the mean over coders, that a run returns to a sweeper which searches (a name of eval.json)."""
    dry_run: bool = no_result(False)
    """Check everything, show what would be trained and how long it would take, with hardware=slurm also the job's script, and stop."""
    prepare: bool = no_result(False, is_added=True)
    """Download the language model, tokenise the text, and stop: the same command without it then needs no network."""
