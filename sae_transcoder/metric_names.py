"""The held-out metrics by category, in the names of SAELens and SAEBench's core evaluation, and what each means."""

# y: a module's output at a token that counts; out: the coder's. Scores and losses: the coder's output in the module's place. The scores against
# zeros bear SAELens's and SAEBench's names, because theirs are; run_store/scores.py says when a score is undefined.
METRICS = {
    "model_behavior_preservation": {
        "kl_div_score": "1 - kl_div_with_sae / kl_div_with_ablation",
        "kl_div_with_ablation": "KL(original || module's output zero), nats per token",
        "kl_div_with_sae": "KL(original || coder in place), nats per token",
        "kl_div_score_mean_ablation": "1 - kl_div_with_sae / kl_div_with_mean_ablation",
        "kl_div_with_mean_ablation": "KL(original || module's output its mean over the tokens), nats per token",
        "kl_div_ablation_std_error": "standard error of kl_div_with_ablation, over held-out sequences",
        "kl_div_mean_ablation_std_error": "standard error of kl_div_with_mean_ablation, over held-out sequences",
    },
    "model_performance_preservation": {
        "ce_loss_score": "(ce_loss_with_ablation - ce_loss_with_sae) / (ce_loss_with_ablation - ce_loss_without_sae)",
        "ce_loss_with_ablation": "cross-entropy of the next token, module's output zero, nats",
        "ce_loss_with_sae": "the same, coder in place",
        "ce_loss_without_sae": "the same, the model as it is",
        "ce_loss_score_mean_ablation": "as ce_loss_score, with ce_loss_with_mean_ablation",
        "ce_loss_with_mean_ablation": "cross-entropy of the next token, module's output its mean over the tokens, nats",
        "ce_loss_ablation_std_error": "standard error of ce_loss_with_ablation - ce_loss_without_sae, over held-out sequences",
        "ce_loss_mean_ablation_std_error": "standard error of ce_loss_with_mean_ablation - ce_loss_without_sae, over held-out sequences",
    },
    "reconstruction_quality": {
        "fvu": "sum |y - out|^2 / sum |y - mean y|^2, the mean over all tokens",
        "explained_variance": "1 - fvu",
        "mse": "mean |y - out|^2, summed over dimensions",
        "cossim": "mean cosine of y and out",
    },
    "shrinkage": {
        "l2_norm_in": "mean |y|",
        "l2_norm_out": "mean |out|",
        "l2_ratio": "mean |out| / |y|",
        "relative_reconstruction_bias": "sum |out|^2 / sum y.out (Rajamanoharan et al. 2024, equation 10)",
    },
    "sparsity": {
        "l0": "latents above zero per token",
        "l1": "sum of activations per token",
    },
    "token_stats": {
        "total_tokens_eval_reconstruction": "positions over which losses and KL are averaged",
        "total_tokens_eval_sparsity_variance": "tokens that the coder was given",
        "frac_tokens_excluded": "share of all held-out positions at which the coder is left out",
    },
    "misc_metrics": {
        "frac_alive": "share of latents that fire at least once",
        "freq_over_1_percent": "share of latents that fire on more than 1 % of tokens",
        "freq_over_10_percent": "share of latents that fire on more than 10 % of tokens",
        "normalized_freq_over_1_percent": "share of all firing by latents that fire on more than 1 % of tokens",
        "normalized_freq_over_10_percent": "share of all firing by latents that fire on more than 10 % of tokens",
        "average_max_encoder_cosine_sim": "mean over latents of the largest cosine with another latent's encoder row",
        "average_max_decoder_cosine_sim": "the same for decoder rows",
    },
}
NAMES = tuple(name for category in METRICS.values() for name in category)
END_TO_END = tuple(name for part in ("behavior", "performance") for name in METRICS[f"model_{part}_preservation"])
"""Those that need forwards of the whole language model."""

RUN_COLUMNS = {
    "run": "the run's name, the last part of its directory",
    "state": "queued, running, done, failed, interrupted or preempted",
    "step": "optimizer steps that are done",
    "total": "optimizer steps of the whole run",
    "tokens": "training tokens that are read",
    "tokens_per_s": "training tokens a second",
    "eta": "time that a running run has left",
    "why": "why a run ended before its last step",
    "kind": "what kind of coder it is, by its activation and whether it is a Matryoshka coder",
    "never_fired": "share of latents that fire on no held-out token, 1 - frac_alive",
    "train_fvu": "FVU of the training batches since the last line of metrics.jsonl, the mean over coders",
    "dead_fraction": "share of latents that have not fired for dead_feature_threshold training tokens",
}
"""What sae-report shows of a run beside its fields and held-out metrics."""

LEVEL_METRICS = {
    "fvu": "as above, out being the reconstruction by the first latents alone",
    "l0": "as above, of the first latents",
}
"""Of each nested dictionary of a Matryoshka coder, which is the first `width` latents; the last is the coder itself."""
THRESHOLD = "threshold"
"""The one pre-activation above which any latent of a trained batchtopk coder fires."""
THRESHOLD_QUANTILES = {
    "threshold_min": 0.0, "threshold_p10": 0.1, "threshold_p25": 0.25, "threshold_p50": 0.5, "threshold_p75": 0.75, "threshold_p90": 0.9,
    "threshold_max": 1.0,
}  # fmt: skip
"""{quantile of the thresholds over a jumprelu coder's latents: share of the latents below it}"""


def level_metric(name: str, width: int) -> str:
    """The name of a level's metric where all metrics of a coder stand side by side: `fvu_width_512`."""
    return f"{name}_width_{width}"
