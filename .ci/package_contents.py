"""Checks that a wheel and an sdist hold every file that they must hold, and no other: python .ci/package_contents.py SDIST WHEEL"""

import sys
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
CODE = ("sae_transcoder", "hydra_plugins")
TEXTS = ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "constraints.txt")
MADE = ("PKG-INFO", ".gitignore")  # what hatchling puts into an sdist itself
SHOWN = 20  # faults
METADATA = ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")
# What once was, or easily is, forgotten: a name that is missing here and on disk would not be noticed otherwise.
NAMED = (
    "sae_transcoder/conf/config.yaml", "sae_transcoder/conf/experiment/demo.yaml", "sae_transcoder/demo/model/model.safetensors",
    "sae_transcoder/demo/text.py", "sae_transcoder/py.typed", "sae_transcoder/reports/latents_page/assets/index.html",
    "hydra_plugins/sae_transcoder_local/__init__.py", "hydra_plugins/sae_transcoder_slurm/__init__.py",
)  # fmt: skip


def files_of(*folders: str) -> set[str]:
    """The files below these folders of the project, without what Python compiles."""
    paths = (path for folder in folders for path in (ROOT / folder).rglob("*"))
    return {str(path.relative_to(ROOT)) for path in paths if path.is_file() and "__pycache__" not in path.parts}


def expected_in_wheel(info: str) -> set[str]:
    """The names in a wheel. info: its folder of metadata."""
    conf = {f"sae_transcoder/{name}" for name in files_of("conf")}
    return files_of(*CODE) | conf | {f"{info}/{name}" for name in METADATA}


def expected_in_sdist(top: str) -> set[str]:
    """The names in an sdist. top: the folder that it unpacks to."""
    return {f"{top}/{name}" for name in (*files_of(*CODE, "conf"), *TEXTS, *MADE)}


def faults(archive: Path, held: Iterable[str], expected: set[str]) -> list[str]:
    """What an archive lacks and what it should not hold."""
    held = set(held)
    lacks = [f"{archive.name}: lacks {name}" for name in sorted(expected - held)]
    return lacks + [f"{archive.name}: holds {name}, which is no part of it" for name in sorted(held - expected)]


def main() -> None:
    """Exit code 1 where an archive is not what it should be."""
    sdist, wheel = (next(path for path in map(Path, sys.argv[1:]) if path.name.endswith(end)) for end in (".tar.gz", ".whl"))
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = [name for name in archive.namelist() if not name.endswith("/")]
    with tarfile.open(sdist) as archive:
        in_sdist = [member.name for member in archive.getmembers() if member.isfile()]
    info = f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"
    found = faults(wheel, in_wheel, expected_in_wheel(info) | set(NAMED)) + faults(
        sdist, in_sdist, expected_in_sdist(sdist.name.removesuffix(".tar.gz"))
    )
    print("\n".join(found[:SHOWN]) or f"{wheel.name}, {len(in_wheel)} files; {sdist.name}, {len(in_sdist)} files")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
