"""What a name that there is not may have been meant to be, for the end of a message."""

from collections.abc import Collection
from difflib import get_close_matches


def did_you_mean(name: str, known: Collection[str], otherwise: str = "", most: int = 3, prefix: str = "") -> str:
    """`did you mean A or B?`, with at most so many of the known names that contain this one or are spelt like it; else `otherwise`.

    prefix: stands before each, as `to=`.
    """
    longer = sorted((one for one in known if name in one), key=len) if len(name) >= 3 else []
    near = list(dict.fromkeys([*longer, *get_close_matches(name, known, cutoff=0.5)]))[:most]
    return f"did you mean {' or '.join(prefix + one for one in near)}?" if near else otherwise
