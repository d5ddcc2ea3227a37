"""What `sae-train --help` prints.

Hydra takes most of a second for the same text: it copies every registered config for each look into a group, and looks about a hundred times.
"""

import string
from collections.abc import Iterator

from hydra import compose
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType

from sae_transcoder.config.composition import hydra_on_conf


def help_text() -> str:
    """The template in conf/config.yaml with its groups filled in, as Hydra prints it (tested)."""
    with hydra_on_conf():
        template = compose("config", return_hydra_config=True).hydra.help.template
        groups = dict(config_groups(GlobalHydra.instance().config_loader()))
    lines = "".join(f"{group}: {', '.join(groups[group])}\n" for group in sorted(groups))
    return string.Template(template).substitute(APP_CONFIG_GROUPS=lines)


def config_groups(loader: ConfigLoader, parent: str = "") -> Iterator[tuple[str, list[str]]]:
    """(group, its choices) of all groups below `parent` but Hydra's own."""

    def names(group: str, kind: ObjectType) -> list[str]:
        return sorted({name for s in loader.get_sources() if s.is_group(group) for name in s.list(group, kind)})

    for name in names(parent, ObjectType.GROUP):
        group = f"{parent}/{name}".lstrip("/")
        if group == "hydra":
            continue
        if choices := names(group, ObjectType.CONFIG):
            yield group, choices
        yield from config_groups(loader, group)
