"""Settings of other programs, by their names there, and what takes their place here.

From the configs of SAELens 6.54.12 (its runners', its training SAEs', LoggingConfig, EvalConfig), dictionary_learning 0.1.0 (trainSAE, its trainers
and buffers), sparsify 1.3.3 (RunConfig, TrainConfig), and the usual words of training programs. docs/glossary.md shows it all. A name that is also a
field here stands in no table: its value is checked as the field's, and DIFFERENT_HERE says where it means something else.
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
LAYERS = Word("called layers here, a list", "write 'layers=[{}]'")
HEAD = Word("a head alone cannot be chosen", "leave it out; site=attention is the whole module")
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
CHOICES = "write architecture=topk, batchtopk, jumprelu, matryoshka or groupmax"
KIND = Word("a kind of coder is chosen by its preset", CHOICES)
SEVERAL = Word("a sweep trains several coders on one forward", "write -m k=16,32,64, or -m architecture=topk,batchtopk")
FLAT = Word("the config is flat: the coder's fields stand beside all others", "write k=32, or the like, by itself")
MIXED = Word("only the language model has a number format, coders are float32", "write dtype=bfloat16 or float32")
ONLY_MODEL = Word("only the language model's layers are compiled", "write compile_model=true, or leave it out")
AUXK = Word("dead latents are revived by a loss of their own, not resampled", "write auxk_alpha=0.03125")
DEAD = Word("counted in tokens here, not in steps", "write dead_feature_threshold=TOKENS")
WIDTHS = Word("nested dictionaries are named by their widths", "write 'matryoshka_widths=[256,512,1024,2048]', all latents last")
TO_HUB = Word("coders are uploaded once they are trained", "leave it out, and then sae-export RUN to=hub push=USER/NAME")
NO_UPLOAD = Word("the tracker gets numbers and settings; coders lie in the run's directory", LEAVE_OUT)
ALL_METRICS = Word("all metrics are measured", "leave it out, or set eval_end_to_end=false to leave out what needs the whole model")
NUM_EVAL = Word("counted in sequences", "write eval_samples=256")
MODEL_KWARGS = Word("the model's settings are fields", "set revision, dtype, quantization or trust_remote_code")
KINDS_OF_DATA = Word(
    "dataset says what kind of data, dataset_name which",
    "write dataset=hub dataset_name={}, or with files of your own dataset=local_text dataset_name={}",
)
FIRST = Word("positions at the start can be left out", "write exclude_first_tokens=1")
TOKENISED = Word("tokenised once, by all cores, and kept in cache_dir", "leave it out, or set cache_dir")
WANDB = Word("a choice of tracker", "write tracker=wandb")
SLURM = Word("a choice of hardware", "write hardware=slurm")

BY_SUBJECT = {
    "The coder": {
        "d_sae dict_size n_latents n_features num_features d_hidden": WIDTH,
        "dict_mult expansion expansion_ratio": called("expansion_factor"),
        "topk top_k target_l0 l0": called("k"),
        "sae_type trainer trainer_class dict_class": KIND,
        "sae": FLAT,
        "saes trainer_configs": SEVERAL,
        "activation_fn": called("activation"),
        "l1_coefficient l1_penalty l1_alpha l1_coeff sparsity_penalty sparsity_coefficient initial_sparsity_penalty sparsity_function lp_norm "
        "anneal_start anneal_end p_start p_end n_sparsity_updates sparsity_queue_length": SPARSITY,
        "l1_warm_up_steps l0_warm_up_steps sparsity_warmup_steps": called("l0_warmup_steps"),
        "bandwidth": called("jumprelu_bandwidth"),
        "jumprelu_sparsity_loss_mode": called("jumprelu_loss"),
        "jumprelu_tanh_scale": Word("4 with jumprelu_loss=tanh", LEAVE_OUT),
        "jumprelu_ste_to_input": Word("the estimated gradient of the step is that of the thresholds alone", LEAVE_OUT),
        "pre_act_loss_coefficient": Word("not part of the losses here", "leave it out; auxk_alpha=0.03125 revives dead latents"),
        "residual_threshold max_iterations stop_on_duplicate_support": Word("there is no matching pursuit here", CHOICES),
        "n_heads n_attn_layers bottleneck_factor sae_diff_type kval_topk tied_weights activation_normalization_factor": Word(
            "there is no temporal SAE here", CHOICES
        ),
        "topk_threshold_lr": Word("the share of the new value; here that of the old one is set", "write threshold_beta=0.99 for 0.01"),
        "threshold_start_step": Word("the threshold averages about the last twentieth of the run", "leave it out, or set threshold_beta"),
        "group_fractions group_sizes": WIDTHS,
        "group_weights": Word("all dictionaries weigh the same", LEAVE_OUT),
        "use_matryoshka_aux_loss": called("auxk_per_level"),
        "aux_loss_coefficient auxk_coef aux_alpha": Word("auxk_alpha here, the weight beside an FVU", "write auxk_alpha=0.03125"),
        "resample_steps use_ghost_grads ghost_grads": AUXK,
        "k_aux auxk top_k_aux": Word("AuxK takes half as many latents as the module is wide", "leave it out; auxk_alpha is its weight"),
        "normalize_sae_decoder norm_decoder": called("normalize_decoder"),
        "rescale_acts_by_decoder_norm": Word("an SAE's decoder rows are kept at norm 1", "leave it out, or set normalize_decoder"),
        "b_dec_init_method": called("b_dec_init"),
        "apply_b_dec_to_input": Word("an SAE takes b_dec off its input, a transcoder does not, as in sparsify", LEAVE_OUT),
        "use_sparse_activations": Word("latents are kept sparse wherever that takes less time", LEAVE_OUT),
        "transcode transcoder": Word("a kind of model_type", "write model_type=transcoder"),
        "io": Word("what is read and what is predicted follow from model_type", "write model_type=sae or model_type=transcoder"),
        "d_in d_out d_model activation_dim d_submodule": FROM_MODEL,
        "from_pretrained_path sae_path": called("finetune"),
    },
    "Where activations are read": {
        "hook_name hook_names hook_point hook_eval submodule submodule_name module module_name": MODULE,
        "hook_layer hook_point_layer layer layer_idx": LAYERS,
        "hook_head_index hook_head_indices activations_split_by_head apply_W_O": HEAD,
        "reshape_activations": Word("a module's output is read as it is", LEAVE_OUT),
    },
    "The language model": {
        "lm_name model_id model_path": called("model_name"),
        "model_class_name tokenizer_name tokenizer": FROM_MODEL,
        "model_kwargs model_from_pretrained_kwargs": MODEL_KWARGS,
        "load_in_8bit": Word("a kind of quantization", "write quantization=int8"),
        "load_in_4bit": Word("a kind of quantization", "write quantization=nf4"),
        "hf_token": Word("kept out of commands and files", "leave it out and set HF_TOKEN in the environment, or enter `hf auth login` once"),
        "autocast autocast_lm autocast_dtype": MIXED,
        "precision torch_dtype": called("dtype"),
        "bf16 bfloat16": Word("a number format of the language model", "write dtype=bfloat16"),
        "fp16 half": Word("a number format of the language model", "write dtype=float16"),
        "compile_llm": called("compile_model"),
        "llm_compilation_mode compile_sae sae_compilation_mode": ONLY_MODEL,
        "llm_device act_store_device": called("device"),
        "remote": Word("the language model runs where the command does", LEAVE_OUT),
    },
    "The data": {
        "dataset_path data_files data_dir data": KINDS_OF_DATA,
        "is_dataset_tokenized": Word("a kind of dataset", "write dataset=pretokenized"),
        "dataset_trust_remote_code": Word("data sets run no code of their own", LEAVE_OUT),
        "streaming": Word("hub sets are streamed, files are read", LEAVE_OUT),
        "split": called("dataset_split"),
        "column_name": called("text_column"),
        "data_args": Word("data sets have fields", "set dataset_config, dataset_split or text_column"),
        "use_chat_formatting": Word("conversations are read from the column that is named", "write messages_column=messages"),
        "context_size context_length ctx_len seq_len seq_length sequence_length max_length max_len block_size": called("max_seq_length"),
        "training_tokens total_training_tokens total_training_samples num_tokens n_tokens tokens": called("max_tokens"),
        "max_examples num_samples": called("max_samples"),
        "begin_batch_token begin_sequence_token": Word("called prepend_bos here, true or false", "write prepend_bos=true"),
        "sequence_separator_token": called("separator"),
        "disable_concat_sequences": Word("documents are packed, with a separator after each", LEAVE_OUT),
        "seqpos_slice remove_bos": FIRST,
        "exclude_special_tokens": Word("called exclude_tokens here, a list of ids", "write 'exclude_tokens=[0,1]'"),
        "shuffle": Word("documents are always shuffled", "leave it out, or set shuffle_seed"),
        "data_preprocessing_num_proc num_proc pretokenize_batch_size save_path": TOKENISED,
        "num_workers": Word("batches are read ahead without processes of their own", LEAVE_OUT),
        "n_batches_in_buffer buffer_size buffer_size_gb n_ctxs activations_mixing_fraction use_cached_activations cached_activations_path "
        "new_cached_activations_path prefetch_llm_batches": NO_BUFFER,
    },
    "Batches, length, optimizer": {
        "batch_size_tokens train_batch_size_tokens train_batch_size_samples train_batch_size out_batch_size sae_batch_size": STEP_TOKENS,
        "store_batch_size_prompts batch_size_prompts model_batch_size llm_batch_size refresh_batch_size": called("batch_size"),
        "gradient_accumulation_steps grad_accum_steps accumulate_grad_batches": called("grad_acc_steps"),
        "steps num_steps n_steps training_steps": called("max_steps"),
        "epochs num_epochs": Word("a run takes each sample once", "leave it out; max_samples=null takes all there are"),
        "learning_rate": called("lr"),
        "lr_warm_up_steps warmup_steps num_warmup_steps": called("lr_warmup_steps"),
        "lr_scheduler_name lr_scheduler scheduler": called("lr_schedule"),
        "lr_end": Word("the rate falls to 0", "leave it out, or write lr_schedule=constant"),
        "n_restart_cycles": Word("the rate falls once", LEAVE_OUT),
        "decay_start": Word("the fall of the rate is counted from the run's end", "write lr_decay_steps=STEPS"),
        "adam_beta1 adam_beta2 beta1 beta2": BETAS,
        "betas": called("adam_betas"),
        "optim": called("optimizer"),
        "wd": called("weight_decay"),
        "max_grad_norm clip_grad_norm": called("grad_clip_norm"),
        "seed random_seed": SEED,
        "dead_feature_window dead_steps_threshold": DEAD,
        "feature_sampling_window": Word("dead latents are counted over all tokens", "leave it out, or set dead_feature_threshold"),
        "n_batches_for_norm_estimate": Word("a mean norm is estimated on the first batch", "leave it out; normalize_activations=mean_norm scales"),
    },
    "Evaluation, logs, files, machines": {
        "n_eval_batches n_eval_reconstruction_batches n_eval_sparsity_variance_batches n_batches": NUM_EVAL,
        "eval_batch_size_prompts": Word("an evaluation takes the run's batches", "leave it out, or set eval_samples and batch_size"),
        "eval_every_n_wandb_logs": Word("counted in optimizer steps", "write eval_every=STEPS"),
        "compute_kl compute_ce_loss compute_l2_norms compute_sparsity_metrics compute_variance_metrics compute_featurewise_density_statistics "
        "compute_featurewise_weight_based_metrics": ALL_METRICS,
        "evaluator": Word("held-out metrics are measured at the end of each run", "leave it out, or set eval_every"),
        "log_to_wandb use_wandb wandb logger": WANDB,
        "log_activations_store_to_wandb log_optimizer_state_to_wandb log_weights_to_wandb": NO_UPLOAD,
        "run_cfg": Word("the tracker gets all settings", LEAVE_OUT),
        "report_to": called("tracker"),
        "wandb_project": called("project"),
        "wandb_entity": called("entity"),
        "wandb_group": called("group"),
        "wandb_name name": called("run_name"),
        "wandb_id": Word("a run that goes on keeps its run at the tracker", LEAVE_OUT),
        "wandb_log_frequency log_steps logging_steps": called("log_every"),
        "n_checkpoints": Word("counted by their distance in optimizer steps", "write keep_every=STEPS"),
        "save_steps": called("keep_every"),
        "checkpoint_path output_path output_dir": called("save_dir"),
        "save_final_checkpoint": Word("the coders are always saved at the end", LEAVE_OUT),
        "resume_from_checkpoint": LAST_SAVED,
        "hf_repo_id hf_num_shards hf_revision hf_is_private_repo": TO_HUB,
        "verbose": Word("what a person must know is always printed", LEAVE_OUT),
        "num_gpus gpus": called("workers"),
        "slurm": SLURM,
    },
}  # fmt: skip
"""{subject: {names there, with spaces between: what they are here}}."""

OTHER_WORDS = {name: word for words in BY_SUBJECT.values() for names, word in words.items() for name in names.split()}
"""{name there: what it is here}."""

DIFFERENT_HERE = {
    "dead_feature_threshold": "in SAELens the share of tokens below which a latent counts as dead; here, as in sparsify, tokens without firing",
    "normalize_activations": "expected_average_only_in in SAELens and true in dictionary_learning are mean_norm here",
    "l0_coefficient": "in SAELens a weight beside a squared error, which grows with the norm of the activations; here beside an FVU",
    "auxk_alpha": "in dictionary_learning a weight beside a squared error; here, as in sparsify, beside an FVU",
    "matryoshka_widths": "SAELens adds the coder's width where it is missing; here all latents stand last, or [] chooses the widths",
    "dtype": "in SAELens the number format of the SAE; here of the language model alone, coders are float32",
    "hookpoints": "in sparsify `*` crosses dots; here it stays within one part of a name, and `**` crosses them",
    "lr": "sparsify's own rate, where none is set, is lr=sparsify here",
    "resume": "in sparsify true or false; here auto (the default), must or never",
    "save_dir": "sparsify adds run_name to it, or `unnamed`; here a composed name takes that place",
}
"""{field: what another program means by its name, and what it means here}."""
