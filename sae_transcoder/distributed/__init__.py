"""The ranks that train one run together: which one this process is, what part of the work it has, how ranks connect, fail and exchange values.

torchrun, or the SLURM launcher, starts a process for each rank and sets the environment that says which it is. torch is imported where ranks
connect.
"""

from sae_transcoder.distributed.connection import PeerFailed
from sae_transcoder.distributed.environment import local_rank, rank, refuse, world_size
from sae_transcoder.distributed.ranks import ALONE, Ranks, meet
from sae_transcoder.distributed.split import rank_rows, split_hookpoints

__all__ = ["ALONE", "PeerFailed", "Ranks", "local_rank", "meet", "rank", "rank_rows", "refuse", "split_hookpoints", "world_size"]
