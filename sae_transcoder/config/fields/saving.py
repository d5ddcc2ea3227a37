"""Where a run is kept."""

from dataclasses import dataclass
from enum import StrEnum

from sae_transcoder.config.fields.metadata import no_result, path


class Resume(StrEnum):
    auto = "auto"
    never = "never"
    must = "must"


@dataclass
class SavingConfig:
    """Where a run is kept."""

    save_dir: str = path("outputs", result=False)
    """Folder of all runs. In this and other paths `~` and `$NAME` stand for what they mean on the machine where the command is started."""
    run_name: str | None = no_result(None)
    """Folder of this run inside `save_dir`. null: composed of the main settings and the signature."""
    save_every: int = no_result(1000, at_least=1)
    """Optimizer steps between two saves of the training state, of coders/ and of best/."""
    keep_every: int | None = no_result(None, at_least=1)
    """Optimizer steps between two exports that are kept, in snapshots/step<N>_tokens<T>/. null: none."""
    save_best: bool = no_result(True)
    """Keep each hookpoint's coder of the lowest held-out FVU (with loss_fn=ce, kl: held-out loss) seen at a save in best/."""
    resume: Resume = no_result(Resume.auto)
    """auto: continue the run where its directory holds a training state, else start; must: continue, or be refused;
    never: be refused where the directory holds a run."""
