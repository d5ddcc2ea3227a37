"""What the header of a safetensors file says of its tensors, without reading them."""

from pathlib import Path


def tensor_headers(path: Path) -> dict[str, tuple[list[int], str]]:
    """{tensor: its shape and number format, such as F32}. Raises OSError or SafetensorError for a damaged file."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {name: (list(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
