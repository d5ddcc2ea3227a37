"""Settings of other programs, by their names there, and what takes their place here.

From the configs of SAELens 6.54.12 (LanguageModelSAERunnerConfig, LoggingConfig, those of its training SAEs), dictionary_learning 0.1.0 (trainSAE,
its trainers and buffers), sparsify 1.3.3 (RunConfig, TrainConfig), and the usual words of training programs. A name that is also a field
here stands in no table: its value is checked as the field's.
"""

from typing import NamedTuple


class Word(NamedTuple):
    """A setting of another program. `meaning`: what it is here; `fix`: what to write in its place, `{}` for its value."""

    meaning: str
    fix: str


LEAVE_OUT = "leave it out"


def called(field: str) -> Word:
    """A setting that has another name here and takes the same values."""
    return Word(f"called {field} here", f"write {field}={{}}")


MODULE = Word(
    "transformers' names are used here",
    "write 'layers=[6]' and site=residual, mlp or attention, or 'hookpoints=[\"layers.6.mlp\"]'",
)
STEP_TOKENS = Word("an optimizer step has batch_size x grad_acc_steps x max_seq_length tokens", "set these to {} together")
NO_BUFFER = Word("no activations are stored, each batch is read from the model as it comes", LEAVE_OUT)
SPARSITY = Word(
    "no L1 penalty; k is the number of active latents per token",
    "write k=32, or architecture=jumprelu jumprelu_loss=step l0_coefficient=NUMBER",
)
FROM_MODEL = Word("known from the model", LEAVE_OUT)
WIDTH = Word("called num_latents here", "write num_latents={}, or expansion_factor=8 for 8 latents per dimension")
SEED = Word("the coders and the data have seeds of their own", "write 'init_seeds=[{}]', shuffle_seed={}, or both")
BETAS = Word("one of adam_betas", "write 'adam_betas=[0.9,0.999]' with both")
LAST_SAVED = Word("a run that was stopped goes on from its last save", "leave it out and repeat the same command (resume=auto)")
KIND = Word("a kind of coder is chosen by its preset", "write architecture=topk, batchtopk, jumprelu, matryoshka or groupmax")
MIXED = Word("only the language model has a number format, coders are float32", "write dtype=bfloat16 or float32")
ONLY_MODEL = Word("only the language model's layers are compiled", "write compile_model=true, or leave it out")
KINDS_OF_DATA = Word(
    "dataset says what kind of data, dataset_name which",
    "write dataset=hub dataset_name={}, or with files of your own dataset=local_text dataset_name={}",
)

OTHER_WORDS = {
    # the coder
    "d_sae": WIDTH,
    "dict_size": WIDTH,
    "n_latents": WIDTH,
    "n_features": WIDTH,
    "num_features": WIDTH,
    "dict_mult": called("expansion_factor"),
    "expansion": called("expansion_factor"),
    "topk": called("k"),
    "target_l0": called("k"),
    "l0": called("k"),
    "sae_type": KIND,
    "trainer": KIND,
    "dict_class": KIND,
    "activation_fn": called("activation"),
    "l1_coefficient": SPARSITY,
    "l1_penalty": SPARSITY,
    "l1_alpha": SPARSITY,
    "sparsity_penalty": SPARSITY,
    "initial_sparsity_penalty": SPARSITY,
    "sparsity_function": SPARSITY,
    "lp_norm": SPARSITY,
    "l1_warm_up_steps": called("l0_warmup_steps"),
    "l0_warm_up_steps": called("l0_warmup_steps"),
    "sparsity_warmup_steps": called("l0_warmup_steps"),
    "bandwidth": called("jumprelu_bandwidth"),
    "jumprelu_sparsity_loss_mode": called("jumprelu_loss"),
    "jumprelu_tanh_scale": Word("4 with jumprelu_loss=tanh", LEAVE_OUT),
    "pre_act_loss_coefficient": Word("not part of the losses here", "leave it out; auxk_alpha=0.03125 revives dead latents"),
    "topk_threshold_lr": Word("the share of the new value; here that of the old one is set", "write threshold_beta=0.99 for 0.01"),
    "threshold_start_step": Word("the threshold averages about the last twentieth of the run", "leave it out, or set threshold_beta"),
    "group_fractions": Word("nested dictionaries are named by their widths", "write 'matryoshka_widths=[256,512,1024,2048]', all latents last"),
    "group_sizes": Word("nested dictionaries are named by their widths", "write 'matryoshka_widths=[256,512,1024,2048]', all latents last"),
    "group_weights": Word("all dictionaries weigh the same", LEAVE_OUT),
    "use_matryoshka_aux_loss": called("auxk_per_level"),
    "aux_loss_coefficient": Word("auxk_alpha here, the weight beside an FVU", "write auxk_alpha=0.03125"),
    "resample_steps": Word("dead latents are revived by a loss of their own, not resampled", "write auxk_alpha=0.03125"),
    "rescale_acts_by_decoder_norm": Word("an SAE's decoder rows are kept at norm 1", "leave it out, or set normalize_decoder"),
    "b_dec_init_method": called("b_dec_init"),
    "apply_b_dec_to_input": Word("sparsify's coders do as they do", LEAVE_OUT),
    "transcode": Word("a kind of model_type", "write model_type=transcoder"),
    "transcoder": Word("a kind of model_type", "write model_type=transcoder"),
    "io": Word("what is read and what is predicted follow from model_type", "write model_type=sae or model_type=transcoder"),
    "d_in": FROM_MODEL,
    "d_out": FROM_MODEL,
    "d_model": FROM_MODEL,
    "activation_dim": FROM_MODEL,
    "d_submodule": FROM_MODEL,
    "from_pretrained_path": called("finetune"),
    # where activations are read
    "hook_name": MODULE,
    "hook_point": MODULE,
    "hook_eval": MODULE,
    "submodule": MODULE,
    "submodule_name": MODULE,
    "hook_layer": Word("called layers here, a list", "write 'layers=[{}]'"),
    "hook_point_layer": Word("called layers here, a list", "write 'layers=[{}]'"),
    "layer": Word("called layers here, a list", "write 'layers=[{}]'"),
    "hook_head_index": Word("a head alone cannot be chosen", "leave it out; site=attention is the whole module"),
    # the language model
    "lm_name": called("model_name"),
    "model_id": called("model_name"),
    "model_path": called("model_name"),
    "model_class_name": FROM_MODEL,
    "tokenizer_name": FROM_MODEL,
    "model_kwargs": Word("the model's settings are fields", "set revision, dtype, quantization or trust_remote_code"),
    "model_from_pretrained_kwargs": Word("the model's settings are fields", "set revision, dtype, quantization or trust_remote_code"),
    "load_in_8bit": Word("a kind of quantization", "write quantization=int8"),
    "load_in_4bit": Word("a kind of quantization", "write quantization=nf4"),
    "hf_token": Word("kept out of commands and files", "leave it out and set HF_TOKEN in the environment, or enter `hf auth login` once"),
    "autocast": MIXED,
    "autocast_lm": MIXED,
    "autocast_dtype": MIXED,
    "precision": called("dtype"),
    "torch_dtype": called("dtype"),
    "compile_llm": called("compile_model"),
    "llm_compilation_mode": ONLY_MODEL,
    "compile_sae": ONLY_MODEL,
    "sae_compilation_mode": ONLY_MODEL,
    "llm_device": called("device"),
    "act_store_device": called("device"),
    # the data
    "dataset_path": KINDS_OF_DATA,
    "data_files": KINDS_OF_DATA,
    "data_dir": KINDS_OF_DATA,
    "data": KINDS_OF_DATA,
    "is_dataset_tokenized": Word("a kind of dataset", "write dataset=pretokenized"),
    "streaming": Word("hub sets are streamed, files are read", LEAVE_OUT),
    "split": called("dataset_split"),
    "column_name": called("text_column"),
    "data_args": Word("data sets have fields", "set dataset_config, dataset_split or text_column"),
    "use_chat_formatting": Word("conversations are read from the column that is named", "write messages_column=messages"),
    "context_size": called("max_seq_length"),
    "context_length": called("max_seq_length"),
    "ctx_len": called("max_seq_length"),
    "seq_len": called("max_seq_length"),
    "seq_length": called("max_seq_length"),
    "training_tokens": called("max_tokens"),
    "total_training_tokens": called("max_tokens"),
    "num_tokens": called("max_tokens"),
    "n_tokens": called("max_tokens"),
    "max_examples": called("max_samples"),
    "num_samples": called("max_samples"),
    "sequence_separator_token": called("separator"),
    "disable_concat_sequences": Word("documents are packed, with a separator after each", LEAVE_OUT),
    "seqpos_slice": Word("positions at the start can be left out", "write exclude_first_tokens=1"),
    "remove_bos": Word("positions at the start can be left out", "write exclude_first_tokens=1"),
    "exclude_special_tokens": Word("called exclude_tokens here, a list of ids", "write 'exclude_tokens=[0,1]'"),
    "shuffle": Word("documents are always shuffled", "leave it out, or set shuffle_seed"),
    "data_preprocessing_num_proc": Word("tokenised once, by all cores", LEAVE_OUT),
    "num_proc": Word("tokenised once, by all cores", LEAVE_OUT),
    "n_batches_in_buffer": NO_BUFFER,
    "buffer_size": NO_BUFFER,
    "n_ctxs": NO_BUFFER,
    "activations_mixing_fraction": NO_BUFFER,
    "use_cached_activations": NO_BUFFER,
    "cached_activations_path": NO_BUFFER,
    "prefetch_llm_batches": NO_BUFFER,
    # batches, length, optimizer
    "batch_size_tokens": STEP_TOKENS,
    "train_batch_size_tokens": STEP_TOKENS,
    "train_batch_size": STEP_TOKENS,
    "out_batch_size": STEP_TOKENS,
    "sae_batch_size": STEP_TOKENS,
    "store_batch_size_prompts": called("batch_size"),
    "model_batch_size": called("batch_size"),
    "llm_batch_size": called("batch_size"),
    "refresh_batch_size": called("batch_size"),
    "gradient_accumulation_steps": called("grad_acc_steps"),
    "grad_accum_steps": called("grad_acc_steps"),
    "steps": called("max_steps"),
    "num_steps": called("max_steps"),
    "n_steps": called("max_steps"),
    "training_steps": called("max_steps"),
    "epochs": Word("a run takes each sample once", "leave it out; max_samples=null takes all there are"),
    "num_epochs": Word("a run takes each sample once", "leave it out; max_samples=null takes all there are"),
    "learning_rate": called("lr"),
    "lr_warm_up_steps": called("lr_warmup_steps"),
    "warmup_steps": called("lr_warmup_steps"),
    "num_warmup_steps": called("lr_warmup_steps"),
    "lr_scheduler_name": called("lr_schedule"),
    "lr_scheduler": called("lr_schedule"),
    "scheduler": called("lr_schedule"),
    "lr_end": Word("the rate falls to 0", "leave it out, or write lr_schedule=constant"),
    "n_restart_cycles": Word("the rate falls once", LEAVE_OUT),
    "decay_start": Word("the fall of the rate is counted from the run's end", "write lr_decay_steps=STEPS"),
    "adam_beta1": BETAS,
    "adam_beta2": BETAS,
    "beta1": BETAS,
    "beta2": BETAS,
    "optim": called("optimizer"),
    "wd": called("weight_decay"),
    "max_grad_norm": called("grad_clip_norm"),
    "clip_grad_norm": called("grad_clip_norm"),
    "seed": SEED,
    "random_seed": SEED,
    "dead_feature_window": Word("counted in tokens here, not in steps", "write dead_feature_threshold=TOKENS"),
    "feature_sampling_window": Word("dead latents are counted over all tokens", "leave it out, or set dead_feature_threshold"),
    "n_batches_for_norm_estimate": Word("a mean norm is estimated on the first batch", "leave it out; normalize_activations=mean_norm scales"),
    # evaluation, logs, files
    "n_eval_batches": Word("counted in sequences", "write eval_samples=256"),
    "eval_batch_size_prompts": Word("an evaluation takes the run's batches", "leave it out, or set eval_samples and batch_size"),
    "eval_every_n_wandb_logs": Word("counted in optimizer steps", "write eval_every=STEPS"),
    "log_to_wandb": Word("a choice of tracker", "write tracker=wandb"),
    "use_wandb": Word("a choice of tracker", "write tracker=wandb"),
    "report_to": called("tracker"),
    "wandb_project": called("project"),
    "wandb_entity": called("entity"),
    "wandb_group": called("group"),
    "wandb_name": called("run_name"),
    "name": called("run_name"),
    "wandb_id": Word("a run that goes on keeps its run at the tracker", LEAVE_OUT),
    "wandb_log_frequency": called("log_every"),
    "log_steps": called("log_every"),
    "logging_steps": called("log_every"),
    "n_checkpoints": Word("counted by their distance in optimizer steps", "write keep_every=STEPS"),
    "save_steps": called("keep_every"),
    "checkpoint_path": called("save_dir"),
    "output_path": called("save_dir"),
    "output_dir": called("save_dir"),
    "save_final_checkpoint": Word("the coders are always saved at the end", LEAVE_OUT),
    "resume_from_checkpoint": LAST_SAVED,
    "hf_repo_id": Word("coders are uploaded once they are trained", "leave it out, and then sae-export RUN to=hub push={}"),
    "verbose": Word("what a person must know is always printed", LEAVE_OUT),
    "num_gpus": called("workers"),
    "gpus": called("workers"),
}  # fmt: skip
"""{name there: what it is here}."""
