"""What `sae-train --info` prints, to be copied into an issue: versions, devices, SLURM, caches. It holds no token, URL or host name."""

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from huggingface_hub import constants

from sae_transcoder import slurm_client
from sae_transcoder.config import Config
from sae_transcoder.data.sources import cache_dir
from sae_transcoder.language_model.compilation import machine_obstacle
from sae_transcoder.language_model.weights_dtype import resolve_dtype
from sae_transcoder.preflight import device_memory
from sae_transcoder.process import code_version, host_memory, installed_packages

OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")


def print_info() -> None:
    """Prints a line for each fact, its name first."""
    lines = [*package_lines(), *machine_lines(), *gpu_lines(), ("slurm", slurm_in_words()), *cache_lines()]
    width = max(len(name) for name, _ in lines)
    for name, fact in lines:
        print(f"{name:<{width}}  {fact}")


def package_lines() -> Iterator[tuple[str, str]]:
    """This package, Python, the packages that decide most, the extras."""
    here = from_home(code_version.PACKAGE.parent)
    yield installed_packages.NAME, f"{code_version.current()}; {installed_packages.how_installed()}, {here}"
    yield "python", f"{platform.python_version()}, {from_home(sys.executable)}"
    for name in installed_packages.MAIN:
        yield name, installed_packages.version_of(name)
    for extra, packages in installed_packages.extras().items():
        yield f"extra {extra}", packages


def machine_lines() -> Iterator[tuple[str, str]]:
    """The system, its processor and its memory."""
    cpu = torch.device("cpu")
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield "system", platform.platform()
    yield "memory", f"{in_units(device_memory.here(cpu))}, {in_units(host_memory.available_bytes())} of it available"
    yield "cpu", f"{os.cpu_count()} cores, {usable} of them for this process, threads {torch.get_num_threads()}; {ways(cpu)}"


def gpu_lines() -> Iterator[tuple[str, str]]:
    """Each GPU that torch can use, or that there is none."""
    built_for = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}" if torch.version.cuda else None
    built = f"torch is built for {built_for}" if built_for else "torch is built without CUDA"
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    yield "gpus", f"{num_gpus or 'none that torch can use'}; {built}"
    for index in range(num_gpus):
        try:
            fact = gpu_in_words(torch.device("cuda", index))
        except RuntimeError as error:  # of a GPU that does not work
            fact = f"cannot be used: {str(error).splitlines()[0]}"
        yield f"cuda:{index}", fact


def gpu_in_words(device: torch.device) -> str:
    """A GPU's name, memory and what it allows. Raises RuntimeError where it does not work."""
    properties = torch.cuda.get_device_properties(device)
    with torch.cuda.device(device):
        free, total = torch.cuda.mem_get_info()
        memory = f"{in_units(total)}, {in_units(free)} of it free"
        return f"{properties.name}, compute capability {properties.major}.{properties.minor}, {memory}; {ways(device)}"


def ways(device: torch.device) -> str:
    """The number format that runs take on a device by default, and whether they can compile there."""
    dtype = str(resolve_dtype(Config(), device)).removeprefix("torch.")
    obstacle = machine_obstacle(device)
    return f"dtype {dtype}; {obstacle or 'compiles'}"


def slurm_in_words() -> str:
    """Whether jobs can be submitted from here, and the job that this process belongs to."""
    try:
        client = slurm_client.ask("sbatch", "--version") if shutil.which("sbatch") else "no sbatch"
    except slurm_client.SlurmError as error:
        client = f"sbatch fails: {str(error).splitlines()[-1].removeprefix('sbatch: ')}"
    job = slurm_client.current_job()
    return f"{client}; " + (f"inside job {job}" if job else "outside of jobs")


def cache_lines() -> Iterator[tuple[str, str]]:
    """Where this program and Hugging Face's libraries keep data, how much room there is, whether the hub is asked."""
    folder = cache_dir(Config())
    yield "cache_dir", f"{from_home(folder)}, {in_units(size_of(folder))}, {free_beside(folder)}"
    hub = Path(constants.HF_HOME)
    yield "HF_HOME", f"{from_home(hub)}, {free_beside(hub)}"
    yield "offline", ", ".join(f"{name}={os.environ[name]}" for name in OFFLINE if os.environ.get(name)) or "no"


def size_of(folder: Path) -> int:
    """Bytes of the files below a folder; 0 where it is not there. Files that vanish meanwhile do not count."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except OSError:
                continue
    return total


def free_beside(path: Path) -> str:
    """The room that is left on the disk of a path, or of the first of its parents that is there."""
    try:
        return f"{in_units(shutil.disk_usage(next(place for place in (path, *path.parents) if place.exists())).free)} free"
    except OSError as error:
        return f"cannot be reached: {error.strerror}"


def from_home(path: str | Path) -> str:
    """A path with `~` for the user's folder, whose name concerns nobody else."""
    path, home = Path(path), Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


def in_units(num_bytes: int) -> str:
    """Bytes in GiB, or where these are few in MiB."""
    return f"{num_bytes / 2**30:,.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:,.0f} MiB"
