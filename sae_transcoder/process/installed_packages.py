"""Which packages are installed, in which version, and how this one came here."""

import json
from importlib.metadata import Distribution, PackageNotFoundError, distribution, metadata, requires, version

from packaging.requirements import Requirement

NAME = "sae-transcoder"
# What decides most about a result or an error. The PyPI package called sparsify is another product.
MAIN = ("torch", "transformers", "eai-sparsify", "hydra-core", "datasets", "wandb", "trackio")
FOR_DEVELOPERS = ("dev",)  # extras that change no run


def version_of(name: str) -> str:
    """The version of a package, or that it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def extras() -> dict[str, str]:
    """{extra of this package: its packages with their versions}, without those for developers; empty where this one is not installed."""
    try:
        names, lines = metadata(NAME).get_all("Provides-Extra") or [], requires(NAME) or []
    except PackageNotFoundError:
        return {}
    requirements = [requirement for requirement in map(Requirement, lines) if requirement.marker]
    return {
        extra: ", ".join(f"{one.name} {version_of(one.name)}" for one in requirements if one.marker.evaluate({"extra": extra}))  # type: ignore[union-attr]
        for extra in names
        if extra not in FOR_DEVELOPERS
    }


def how_installed() -> str:
    """How pip installed this package: editable, from a commit, from a folder or file, or by its name; see PEP 610."""
    try:
        return origin_in_words(distribution(NAME))
    except PackageNotFoundError:
        return "not installed"


def origin_in_words(package: Distribution) -> str:
    """What direct_url.json says of a package. Its URL is left out: it may hold a password."""
    text = package.read_text("direct_url.json")
    if text is None:
        return "wheel"
    origin = json.loads(text)
    if origin.get("dir_info", {}).get("editable"):
        return "editable"
    if commit := origin.get("vcs_info", {}).get("commit_id"):
        return f"wheel of commit {commit[:8]}"
    return "wheel of a local file or folder" if origin["url"].startswith("file:") else "wheel"
