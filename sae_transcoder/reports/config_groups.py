"""What to write in place of a group of sae-train, as in `--where architecture=topk`: the columns that tell its choice."""

from sae_transcoder.config.presets import CONF, choices, settings_of
from sae_transcoder.reports import formats
from sae_transcoder.run_store.run_records import coder_kind

COLUMNS_OF = {
    "model": ("model_name",),
    "dataset": ("dataset_name", "dataset_kind"),
    "architecture": ("kind", "multi_topk", "skip_connection"),
}
"""{group that is no column itself: the columns that its choices set, the first for a value that is no choice}."""


def instead_of(group: str, sign: str = "", choice: str = "") -> str | None:
    """What to write for a group and its choice; for a group alone, as --sort has it, its first column. None for what is no such group."""
    if group not in COLUMNS_OF:
        return None
    first, *_ = COLUMNS_OF[group]
    values = chosen(group, choice.strip()) or {first: choice.strip()}
    if sign in ("=", "=="):
        return f"write {' --where '.join(f'{column}={value}' for column, value in values.items())}"
    return f"write {first}{sign}{values.get(first, '')}" if len(values) == 1 else f"its columns are {', '.join(values)}"


def chosen(group: str, choice: str) -> dict[str, str]:
    """{column: value} of a preset, as the command line takes them; empty for what is none."""
    if choice not in choices()[group]:
        return {}
    settings = settings_of(CONF / group / f"{choice}.yaml")
    values = settings | {"kind": coder_kind(settings)}
    return {column: formats.setting(values[column]) for column in COLUMNS_OF[group] if values.get(column) is not None}
