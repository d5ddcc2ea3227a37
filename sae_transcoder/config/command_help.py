"""What `sae-train --help` prints: what a first run needs, the groups with their choices, where all else is told; and the form of other helps."""

import argparse
import re
import sys
import textwrap
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from sae_transcoder.config.presets import CONF, by_family, choices, default_choices
from sae_transcoder.config.spelling import did_you_mean

WIDTH = 100  # characters of a line
LABEL = 14  # of them for a group's name

TOP = """\
Train sparse autoencoders (SAEs) and transcoders with EleutherAI's sparsify.
model_type is required, where no experiment sets it; everything else has a default.

  sae-train experiment=demo                                the bundled model and text, no download
  sae-train model_type=transcoder k=16 'layers=[6]'        one run, on SmolLM2-135M
  sae-train -m model_type=sae k=16,32 'layers=[6],[12]'    a sweep: four runs on one forward

Groups, GROUP=CHOICE; a choice marked (default) is taken where none is given:
"""
BOTTOM = """

Fields, FIELD=VALUE, such as layers k expansion_factor lr batch_size max_tokens dataset_name
  --explain                every field in one line
  --explain k lr           all about these fields: meaning, range, default, presets that set them
  --explain model gpt2     the choices of a group; what a choice sets
  dry_run=true             what would be trained, how long it takes, how much memory; nothing runs
  --cfg job                the composed config; nothing runs
Options
  -m                       a sweep: all combinations of the values that stand between commas
  --config-dir FOLDER      choices of your own beside these: FOLDER/GROUP/CHOICE.yaml
  json=FILE [--to-yaml]    a JSON config of the program before this one; run it [convert it]
  --info, --version        versions, device, SLURM, caches, to copy into an issue; the version alone
  --hydra-help             Hydra's options; tab completion: eval "$(sae-train -sc install=bash)\""""


def help_text(config_dirs: Sequence[Path] = ()) -> str:
    """The whole text, with the choices in the folders that --config-dir names."""
    return TOP + "\n".join(group_lines(choices([CONF, *config_dirs]))) + BOTTOM


def group_lines(groups: dict[str, list[str]]) -> list[str]:
    """Each group with its choices, the default marked; models a family a line."""
    defaults, lines = default_choices(), []
    for group, names in groups.items():
        label = group
        for part in by_family(names) if group == "model" else [names]:
            marked = [f"{name} (default)" if name == defaults.get(group) else name for name in part]
            text = ", ".join(marked).replace(" (", "\N{NO-BREAK SPACE}(")  # a mark stays on its choice's line
            wrapped = textwrap.wrap(text, WIDTH, initial_indent=f"  {label:<{LABEL}}", subsequent_indent=" " * (LABEL + 2))
            lines += [line.replace("\N{NO-BREAK SPACE}", " ") for line in wrapped]
            label = ""
    return lines


class CommandParser(argparse.ArgumentParser):
    """The parser of a command with options of its own; a wrong one ends the command as other mistakes do, with a fix and exit code 1."""

    def __init__(self, prog: str, settings: Sequence[str] = (), **others: Any):
        """settings: names that the command takes as NAME=VALUE."""
        super().__init__(prog, formatter_class=WideHelp, **others)
        self.settings = settings

    def error(self, message: str) -> NoReturn:
        """Ends the command with the message, and for an unknown option with what may have been meant."""
        unknown = re.findall(r"^unrecognized arguments: (-\S+)", message)
        if message.startswith("the following arguments are required"):  # which argparse tells first
            known = self._option_string_actions
            unknown = [word for word in sys.argv[1:] if word.startswith("--") and word.partition("=")[0] not in known]
        if unknown:
            option, _, value = unknown[0].partition("=")
            self.exit(1, f"error: {option}: there is no such option; {self.meant(option.lstrip('-'), value, sys.argv)}\n")
        self.exit(1, f"error: {message}; see {self.prog} --help\n")

    def meant(self, name: str, value: str, arguments: Sequence[str]) -> str:
        """What to write in place of an option of that name. value: what stands behind its `=`, if anything."""
        if (setting := name.replace("-", "_")) in self.settings:
            after = (following for word, following in pairwise(arguments) if word == f"--{name}" and not following.startswith("-"))
            return f"write {setting}={value or next(after, 'VALUE')}"
        options = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        return did_you_mean(f"--{name}", options, f"see {self.prog} --help", most=1)


class WideHelp(argparse.RawDescriptionHelpFormatter):
    """The help of a command with options of its own: descriptions as they are written, and lines as wide as those of sae-train."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26, width=WIDTH)
