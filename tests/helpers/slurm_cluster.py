"""A real Slurm of one node with four pretend GPUs, which the tests start and stop without systemd or root. Its files lie in one folder.

It needs Debian's packages munge, slurmctld, slurmd and slurm-client. The daemons use their own keys, sockets and ports, so they do not meet
other clusters, such as one that the machine belongs to.
"""

import contextlib
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

from helpers import HANGS
from helpers.ports import free_port

GPUS = 4
T = TypeVar("T")

CONFIG = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
CryptoType=crypto/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={port}
SlurmdPort={node_port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,sched_min_interval=0
GresTypes=gpu
MpiDefault=none
KillWait=8
MaxArraySize=5
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=16000 Gres=gpu:{gpus} State=UNKNOWN
PartitionName=gpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF DefMemPerCPU=2000
PartitionName=low Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=0 DefMemPerCPU=2000
PartitionName=grace Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60 DefMemPerCPU=2000
"""


class Cluster:
    """A running Slurm. `environment`: variables that its commands need."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}

    def ask(self, *command: str, check: bool = True) -> str:
        """Runs a Slurm command and returns its output."""
        done = subprocess.run(command, env=os.environ | self.environment, capture_output=True, text=True)
        assert not check or done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """The fields of a job in `scontrol show job`."""
        shown = self.ask("scontrol", "show", "job", "--oneliner", number)
        return dict(part.split("=", 1) for part in shown.split() if "=" in part)

    def hurry(self) -> None:
        """Lets requeued jobs start in three seconds instead of two minutes. (At once is too early: Slurm still revokes credentials.)"""
        waiting = self.ask("squeue", "--noheader", "--array", "--states=PENDING", "--format=%i %r", check=False)
        for number, reason in (line.split(maxsplit=1) for line in waiting.splitlines()):
            if reason == "BeginTime":
                start = self.job(number).get("EligibleTime", "Unknown")
                if start != "Unknown" and datetime.fromisoformat(start) > datetime.now() + timedelta(seconds=10):
                    self.ask("scontrol", "update", f"JobId={number}", "StartTime=now+3", check=False)

    def wait(self, condition: Callable[[], T], hurry: bool = True) -> T:
        """Waits until `condition()` holds and returns its value; fails after HANGS seconds. hurry: requeued jobs start soon."""
        end = time.monotonic() + HANGS
        while not (value := condition()):
            assert time.monotonic() < end, self.ask("squeue", "--all", "--array", "--states=all")
            if hurry:
                self.hurry()
            time.sleep(0.2)
        return value

    def idle(self) -> bool:
        """Whether no job waits or runs."""
        return not self.ask("squeue", "--noheader", "--states=PENDING,RUNNING,COMPLETING")


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Cluster]:
    """Starts a Slurm in the folder; at exit, cancels its jobs and stops it."""
    host = socket.gethostname().split(".")[0]
    (folder / "state").mkdir()
    (folder / "spool").mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    for number in range(GPUS):
        (folder / f"gpu{number}").symlink_to("/dev/null")  # Slurm wants a character device
    (folder / "gres.conf").write_text(f"NodeName={host} Name=gpu File={folder}/gpu[0-{GPUS - 1}]\n")
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # otherwise slurmd does not start without its own cgroups
    user = subprocess.check_output(["id", "-un"], text=True).strip()
    text = CONFIG.format(host=host, folder=folder, user=user, port=free_port(), node_port=free_port(), gpus=GPUS)
    (folder / "slurm.conf").write_text(text)
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    munge = ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket"]
    munge += [f"--{name}-file={folder}/munge.{name}" for name in ("pid", "log", "seed")]
    cluster = Cluster(folder)
    with contextlib.ExitStack() as stack:
        for command in (munge, ["slurmctld", "-D"], ["slurmd", "-D"]):
            daemon = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=(folder / f"{command[0]}.out").open("w"),
                stderr=subprocess.STDOUT,
            )
            stack.callback(daemon.wait)
            stack.callback(daemon.terminate)
            if command is munge:
                while not (folder / "munge.socket").exists():
                    assert daemon.poll() is None, (folder / "munged.out").read_text()
                    time.sleep(0.01)
        stack.callback(lambda: (cluster.ask("scancel", f"--user={user}", check=False), cluster.wait(cluster.idle, hurry=False)))
        cluster.wait(
            lambda: cluster.ask("sinfo", "--noheader", "--format=%t", "--partition=gpu", check=False) == "idle", hurry=False
        )
        yield cluster
