"""What is measured on the held-out sequences."""

from dataclasses import dataclass

from sae_transcoder.config.fields.metadata import no_result


@dataclass
class EvaluationConfig:
    """What is measured on the held-out sequences (metric_names.py has the metrics); always at a run's end."""

    eval_every: int | None = no_result(None, at_least=1)
    """Optimizer steps between two evaluations before the end. null: none."""
    eval_end_to_end: bool = no_result(True)
    """Measure the language model with the coders in place (cross-entropy, KL) too: for each coder a forward of the whole model,
    one with zeros and one with the mean for each hookpoint. false: the coders' own metrics; with loss_fn=fvu layers beyond the last
    hookpoint are then not loaded, where the model's first layers do not depend on their number."""
