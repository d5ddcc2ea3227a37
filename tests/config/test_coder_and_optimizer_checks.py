"""Settings of coders and optimizers that do not go together, refused with field, value and fix before torch is imported."""

import pytest

from helpers.command_line import composed
from sae_transcoder.config import Config, matryoshka_widths
from sae_transcoder.config.checks import faults

JUMP, BATCH, NESTED = "activation=jumprelu", "activation=batchtopk", "matryoshka_widths=[8,64]"
WRONG = [
    # fields that another kind of coder reads
    (["l0_coefficient=1"], "l0_coefficient=1.0 with activation=topk", "set activation=jumprelu"),
    (["l0_warmup_steps=5", BATCH], "l0_warmup_steps=5 with activation=batchtopk", "set activation=jumprelu"),
    (["jumprelu_loss=step"], "jumprelu_loss=step with activation=topk", "leave it out"),
    (["jumprelu_bandwidth=0.1"], "jumprelu_bandwidth=0.1 with activation=topk", "leave it out"),
    (["jumprelu_init_threshold=0.1", "activation=groupmax"], "jumprelu_init_threshold=0.1 with activation=groupmax", "leave it out"),
    (["threshold_beta=0.9", JUMP], "threshold_beta=0.9 with activation=jumprelu", "set activation=batchtopk"),
    # kinds that exclude each other
    (["multi_topk=true", BATCH], "multi_topk=True with activation=batchtopk", "set one of them"),
    (["multi_topk=true", JUMP], "multi_topk=True with activation=jumprelu", "set one of them"),
    (["k_decay_steps=5", JUMP], "k_decay_steps=5 with activation=jumprelu", "set l0_warmup_steps"),
    ([NESTED, JUMP], "matryoshka_widths=[8, 64] with activation=jumprelu", "leave matryoshka_widths out"),
    ([NESTED, "activation=groupmax"], "matryoshka_widths=[8, 64] with activation=groupmax", "leave matryoshka_widths out"),
    ([NESTED, "multi_topk=true"], "matryoshka_widths=[8, 64] with multi_topk=True", "set one of them"),
    # nested dictionaries
    (["matryoshka_widths=[0,8]"], "matryoshka_widths=[0, 8]", "1 latent or more"),
    (["matryoshka_widths=[64,8,8]"], "matryoshka_widths=[64, 8, 8]", "write matryoshka_widths=[8, 64]"),
    (["auxk_per_level=true"], "auxk_per_level=True with matryoshka_widths=null", "set matryoshka_widths"),
    (["auxk_per_level=true", NESTED, "auxk_alpha=0"], "auxk_per_level=True with auxk_alpha=0.0", "set auxk_alpha=0.03125"),
    # numbers
    (["jumprelu_bandwidth=0", JUMP], "jumprelu_bandwidth=0.0", "above 0"),
    (["jumprelu_bandwidth=nan", JUMP], "jumprelu_bandwidth=nan", "finite"),
    (["jumprelu_init_threshold=-1", JUMP], "jumprelu_init_threshold=-1.0", "at least 0"),
    (["jumprelu_init_threshold=1e39", JUMP], "jumprelu_init_threshold=1e+39", "at most"),  # beyond float32
    (["l0_coefficient=inf", JUMP], "l0_coefficient=inf", "finite"),
    (["threshold_beta=1", BATCH], "threshold_beta=1.0", "below 1"),
    (["threshold_beta=-0.1", BATCH], "threshold_beta=-0.1", "at least 0"),
    (["threshold_beta=nan", BATCH], "threshold_beta=nan", "finite"),
    (["decoder_init_norm=0", "normalize_decoder=false"], "decoder_init_norm=0.0", "above 0"),
    (["decoder_init_norm=inf", "normalize_decoder=false"], "decoder_init_norm=inf", "finite"),
    (["decoder_init_norm=0.1"], "decoder_init_norm=0.1 with model_type=sae, normalize_decoder=None", "set normalize_decoder=false"),
    (["decoder_init_norm=0.1", "normalize_decoder=false", "finetune=x"], "decoder_init_norm=0.1 with finetune=x", "set one of them"),
    (["b_dec_init=zeros", "finetune=x"], "b_dec_init=zeros with finetune=x", "set one of them"),
    (["b_dec_init=zeros", "corrections=false"], "b_dec_init=zeros with corrections=False", "leave one of them out"),
    # the optimizer
    (["grad_clip_norm=0"], "grad_clip_norm=0.0", "null for none"),
    (["grad_clip_norm=nan"], "grad_clip_norm=nan", "finite"),
    (["grad_clip_norm=1", "optimizer=signum"], "grad_clip_norm=1.0 with optimizer=signum", "leave grad_clip_norm out"),
    (["adam_betas=[0.9]"], "adam_betas=[0.9]", "two numbers"),
    (["adam_betas=[0.9,1.0]"], "adam_betas=[0.9, 1.0]", "below 1"),
    (["adam_betas=[nan,0.9]"], "adam_betas=[nan, 0.9]", "as [0.9,0.999]"),
    (["adam_betas=[0.9,0.99]", "optimizer=muon"], "adam_betas=[0.9, 0.99] with optimizer=muon", "leave adam_betas out"),
    (["lr_decay_steps=0"], "lr_decay_steps=0", "at least 1"),
    (["lr_decay_steps=5", "lr_schedule=constant"], "lr_decay_steps=5 with lr_schedule=constant", "leave lr_schedule out"),
    (["lr_decay_steps=5", "optimizer=signum"], "lr_decay_steps=5 with optimizer=signum", "leave lr_decay_steps out"),
    (["lr_schedule=cosine", "optimizer=signum"], "lr_schedule=cosine with optimizer=signum", "leave lr_schedule out"),
    # sparsify's own behaviour
    (["corrections=false", BATCH], "activation=batchtopk with corrections=False", "leave one of them out"),
    (["corrections=false", JUMP], "activation=jumprelu with corrections=False", "leave one of them out"),
    (["corrections=false", NESTED], "matryoshka_widths=[8, 64] with corrections=False", "leave one of them out"),
    (["corrections=false", "normalize_activations=mean_norm"], "normalize_activations=mean_norm with corrections=False", "leave one"),
    (["corrections=false", "lr_schedule=cosine"], "lr_schedule=cosine with corrections=False", "leave one of them out"),
    (["corrections=false", "lr_decay_steps=5"], "lr_decay_steps=5 with corrections=False", "leave one of them out"),
    (["corrections=false", "grad_clip_norm=1"], "grad_clip_norm=1.0 with corrections=False", "leave one of them out"),
    (["corrections=false", "adam_betas=[0.9,0.99]"], "adam_betas=[0.9, 0.99] with corrections=False", "leave one of them out"),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "setting", "fix"), WRONG, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_settings_that_do_not_go_together_are_refused_with_field_value_and_fix(
    overrides: list[str], setting: str, fix: str
) -> None:
    (message,) = faults(composed("model_type=sae", *overrides))
    assert message.startswith(setting)
    assert fix in message.removeprefix(setting)


@pytest.mark.parametrize(
    "overrides",
    [
        [JUMP, "loss_fn=ce", "l0_coefficient=0.1", "l0_warmup_steps=5", "jumprelu_loss=tanh", "auxk_alpha=0"],
        [JUMP, "model_type=transcoder", "skip_connection=true", "decoder_init_norm=0.1", "init_seeds=[1,2]"],
        [BATCH, "threshold_beta=0", "k_decay_steps=5", "loss_fn=kl", "normalize_activations=mean_norm"],
        [NESTED, BATCH, "auxk_per_level=true", "exclude_first_tokens=1", "micro_acc_steps=2"],
        [NESTED, "normalize_decoder=false", "decoder_init_norm=0.1"],
        ["optimizer=muon", "lr_schedule=cosine", "lr_decay_steps=5", "grad_clip_norm=1"],
        ["lr_schedule=constant", "lr_warmup_steps=0", "adam_betas=[0,0.999]"],
        ["corrections=false", "activation=groupmax"],
    ],
    ids=" ".join,
)
def test_settings_that_go_together_are_obeyed(overrides: list[str]) -> None:
    assert faults(composed("model_type=sae", *overrides)) == []


def test_an_empty_list_of_widths_stands_for_shares_of_any_number_of_latents() -> None:
    for choice in ("matryoshka", "matryoshka_topk"):
        cfg = composed("model_type=sae", f"architecture={choice}")
        assert matryoshka_widths(cfg, 32) == [32, 64, 128, 256]
        assert matryoshka_widths(composed("model_type=sae", f"architecture={choice}", "num_latents=100"), 32) == [12, 25, 50, 100]
    named = Config(model_type="sae", matryoshka_widths=[3, 256])
    assert (matryoshka_widths(named, 32), matryoshka_widths(Config(model_type="sae"), 32)) == ([3, 256], None)
