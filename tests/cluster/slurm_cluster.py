"""A SLURM cluster of two nodes on this machine: its daemons as ordinary processes, on loopback."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from tests.cluster import slurm_accounts

# No cgroups. A requeued job waits as long as a credential lives, 5 s at least.
CONFIG = """
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={base}/munge.sock,cred_expire=5
CredType=cred/munge
StateSaveLocation={base}/state
SlurmdSpoolDir={base}/spool-%n
SlurmctldPidFile={base}/slurmctld.pid
SlurmdPidFile={base}/slurmd-%n.pid
SlurmctldLogFile={base}/slurmctld.log
SlurmdLogFile={base}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,sched_min_interval=1000,batch_sched_delay=0,builtin_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=5
JobCompType=jobcomp/none
JobAcctGatherType=jobacct_gather/none
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1
NodeName=n3 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[3]} CPUs=1
PartitionName=main Nodes=n[1-2] Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=20
PartitionName=urgent Nodes=n[1-2] MaxTime=INFINITE PriorityTier=9 PreemptMode=OFF
PartitionName=apart Nodes=n3 MaxTime=INFINITE
"""
DAEMONS = ("munged", "slurmctld", "slurmd", "setpriv")


def why_not() -> str:
    """Why it cannot be started here; empty if it can."""
    missing = [name for name in (*DAEMONS, "sbatch") if shutil.which(name, path=_path()) is None]
    if missing:
        return f"{', '.join(missing)} missing: apt-get install slurm-wlm munge"
    if os.getuid() != 0:
        return "SLURM's daemons need root"
    return ""


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class SlurmCluster:
    """The cluster; jobs see the same files as the tests do, but on n3, which lacks one folder.

    Attributes:
        flags: Of ``scripts/run.py``, to run jobs here.
        environment: Variables to be set beside the usual ones.
        hidden: A folder that node n3 (partition "apart") sees empty.
        accounts: Whether SLURM keeps accounts, which ``sacct`` tells.
    """

    flags = ("--launcher", "slurm", "--partition", "main")

    def __init__(self) -> None:
        # Not below pytest's folder: munge wants folders that others may enter, and short names.
        self.base = Path(tempfile.mkdtemp(prefix="slurm-"))
        self.base.chmod(0o755)
        self.hidden = self.base / "hidden"
        self.environment = {"SLURM_CONF": str(self.base / "slurm.conf"), "PATH": _path()}
        self.accounts = slurm_accounts.available(_path())
        self._daemons: list[subprocess.Popen] = []

    def start(self) -> None:
        base = self.base
        self.hidden.mkdir()
        ports = free_ports(6)
        more = slurm_accounts.LINES if self.accounts else slurm_accounts.WITHOUT
        config = CONFIG.format(base=base, ports=ports[:4]) + more.format(base=base, ports=ports[4:])
        (base / "slurm.conf").write_text(config)
        (base / "munge.key").write_bytes(os.urandom(1024))
        (base / "munge.key").chmod(0o600)
        files = [f"--{name}={base}/munge.{name}" for name in ("pid-file", "log-file", "seed-file")]
        socket_file = f"--socket={base}/munge.sock"
        self._run("munged", "-F", f"--key-file={base}/munge.key", socket_file, *files)
        self._wait_for((base / "munge.sock").exists, "munged")
        if self.accounts:
            self._keep_accounts(ports[4:])
        self._run("slurmctld", "-D", "-c")
        for name in ("n1", "n2"):
            self._run("slurmd", "-D", "-N", name)
        blind = f"mount -t tmpfs none {self.hidden} && exec slurmd -D -N n3"
        self._run("unshare", "--mount", "sh", "-c", blind)
        self._wait_for(
            lambda: self.ask("sinfo", "-h", "-p", "main", "-t", "idle", "-o", "%D") == "2", "slurmd"
        )

    def _keep_accounts(self, ports: list[int]) -> None:
        self._run(*slurm_accounts.database(self.base, ports[0]))
        self._wait_for((self.base / "database.sock").exists, "mariadbd")
        slurm_accounts.write_config(self.base, ports)
        self._run("slurmdbd", "-D")
        add = ("sacctmgr", "-i", "add", "cluster", "test")
        self._wait_for(lambda: "test" in self.ask(*add), "slurmdbd")

    def _run(self, *command: str) -> None:
        with open(self.base / f"{command[0]}.out", "ab") as log:
            environment = {**os.environ, **self.environment}
            # They end with the tests, however those end.
            words = ["setpriv", "--pdeathsig", "TERM", *command]
            self._daemons.append(subprocess.Popen(words, env=environment, stdout=log, stderr=log))

    def _wait_for(self, condition, what: str) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            if time.monotonic() > deadline:
                logs = [
                    file.read_text(errors="replace")[-2000:] for file in self.base.glob("*.log")
                ]
                raise RuntimeError(f"{what} did not start: {logs}")
            time.sleep(0.1)

    def ask(self, *command: str) -> str:
        """What one of SLURM's commands prints; empty where it fails."""
        environment = {**os.environ, **self.environment}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    def at_work(self) -> list[str]:
        """The jobs that run or wait."""
        return self.ask("squeue", "-h", "-r", "-o", "%i %T").splitlines()

    def take_back(self) -> None:
        """Tell the job that runs to make room, as before its time limit."""
        (name,) = self.ask("squeue", "-h", "-r", "-t", "running", "-o", "%i").splitlines()
        self.ask("scancel", "--signal=USR1", name)

    def requeued(self) -> int:
        """How often jobs that SLURM remembers were put back into the queue."""
        jobs = self.ask("scontrol", "show", "job", "-o").split()
        return sum(int(word.removeprefix("Restarts=")) for word in jobs if "Restarts=" in word)

    def forget(self, seconds: int) -> None:
        """Change how long SLURM itself remembers a job that has ended."""
        file = self.base / "slurm.conf"
        kept = [line for line in file.read_text().splitlines() if "MinJobAge" not in line]
        file.write_text("\n".join([*kept, f"MinJobAge={seconds}"]) + "\n")
        self.ask("scontrol", "reconfigure")

    def clear(self) -> None:
        """Cancel what a test has left, and forget it all."""
        self.ask("scancel", "--user=root")
        self._wait_for(lambda: not self.at_work(), "an end of the jobs")

    def stop(self) -> None:
        self.ask("scancel", "--user=root", "--signal=KILL", "--full")
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in reversed(self._daemons):
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(self.base, ignore_errors=True)
