"""deploy/slurm/pipeline.sbatch on a real Slurm of one machine: interrupted, it ends with the same weights."""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests import scratch, tiny

DAEMONS = ("munged", "slurmctld", "slurmd")
PATH = os.pathsep.join([os.environ["PATH"], "/usr/sbin"])
MISSING = [name for name in (*DAEMONS, "sbatch") if not shutil.which(name, path=PATH)]
pytestmark = [
    pytest.mark.server,
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(
        bool(MISSING), reason=f"Slurm is not installed ({', '.join(MISSING)}): apt-get install slurm-wlm"
    ),
]

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
KillWait=30
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus}
PartitionName=all Nodes={host} Default=YES State=UP
"""

STEPS = 60
SMALL = ("--gpus-per-node=0", "--cpus-per-task=2", "--output=slurm.log", "--error=slurm.log")


class Cluster:
    """Slurm on this machine. environment: with which its commands find it."""

    def __init__(self, folder: Path) -> None:
        with ExitStack() as free:
            sockets = [free.enter_context(socket.socket()) for _ in range(2)]
            for one in sockets:
                one.bind(("127.0.0.1", 0))
            ports = [one.getsockname()[1] for one in sockets]
        self.folder, host = folder, socket.gethostname()
        self.environment = os.environ | {"PATH": PATH, "SLURM_CONF": str(folder / "slurm.conf")}
        for name in ("state", "spool"):
            (folder / name).mkdir()
        (folder / "slurm.conf").write_text(
            CONFIGURATION.format(
                host=host, user=getpass.getuser(), folder=folder, ports=ports, cpus=max(2, os.cpu_count() or 1)
            )
        )
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        own = [f"--{name}={folder}/munge.{name.removesuffix('-file')}" for name in ("key-file", "socket", "pid-file")]
        own += [f"--log-file={folder}/munged.said", f"--seed-file={folder}/munge.seed"]
        self.processes: list[subprocess.Popen[bytes]] = []
        self._start("munged", "--foreground", "--force", *own)
        self._wait(lambda: (folder / "munge.socket").exists())
        self._start("slurmctld", "-D", "-c")
        self._start("slurmd", "-D", "-N", host)
        self._wait(lambda: "idle" in self.asked("sinfo", "--noheader", check=False))

    def _start(self, *words: str) -> None:
        with (self.folder / f"{words[0]}.log").open("w") as log:
            self.processes.append(
                subprocess.Popen(words, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            )

    def _wait(self, ready) -> None:
        end = time.monotonic() + 60
        while not ready():
            dead = [process.args for process in self.processes if process.poll() is not None]
            said = "\n".join(log.read_text() for log in sorted(self.folder.glob("*.log")))
            assert not dead and time.monotonic() < end, f"{dead}\n{said}"
            time.sleep(0.2)

    def asked(self, *words: str, check: bool = True, cwd: Path | None = None, **environment: str) -> str:
        """Standard output of a command of Slurm."""
        own = {**self.environment, **environment}
        done = subprocess.run(words, env=own, cwd=cwd, capture_output=True, text=True, timeout=60)
        assert not check or not done.returncode, done.stderr
        return done.stdout.strip()

    def submit(self, project: Path, *stages: str) -> str:
        """The id of the job that runs these stages of the project, in two processes."""
        own = scratch.environment(project) | {"SLURM_CONF": self.environment["SLURM_CONF"]}
        script = str(scratch.ROOT / "deploy" / "slurm" / "pipeline.sbatch")
        words = ["sbatch", "--parsable", *SMALL, script, *stages]
        done = subprocess.run(words, cwd=project, env=own | {"PROCESSES": "2"}, capture_output=True, text=True)
        assert not done.returncode, done.stderr
        return done.stdout.strip()

    def field(self, job: str, name: str) -> str:
        """A field of the job, as `scontrol show job` prints it."""
        shown = self.asked("scontrol", "--oneliner", "show", "job", job)
        return next(word.partition("=")[2] for word in shown.split() if word.startswith(f"{name}="))

    def stop(self) -> None:
        """End its jobs and its daemons."""
        self.asked("scancel", "--full", f"--user={getpass.getuser()}", check=False)
        time.sleep(1)
        for process in reversed(self.processes):
            process.send_signal(signal.SIGTERM)
            process.wait(60)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    started = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        yield started
    finally:
        started.stop()


def said(project: Path) -> str:
    """What the jobs in this project have printed."""
    log = project / "slurm.log"
    return log.read_text(errors="replace") if log.exists() else ""


def wait_for(cluster: Cluster, project: Path, job: str, condition) -> None:
    """Return once `condition` holds; fail with what the job said where it ends before, or in ten minutes."""
    end = time.monotonic() + 600
    while not condition():
        state = cluster.field(job, "JobState")
        under_way = state in ("PENDING", "RUNNING", "COMPLETING") and time.monotonic() < end
        assert under_way or condition(), f"{state}\n{said(project)}"
        time.sleep(0.2)


def end_of(cluster: Cluster, project: Path, job: str) -> None:
    wait_for(cluster, project, job, lambda: cluster.field(job, "JobState") == "COMPLETED")


def test_a_job_that_is_signalled_and_preempted_ends_with_the_weights_of_one_left_alone(
    cluster: Cluster, trained: Path, tmp_path: Path
) -> None:
    alone, disturbed = (scratch.copy(trained, tmp_path / name) for name in ("alone", "disturbed"))
    for project in (alone, disturbed):
        tiny.apply(
            project / "params.yaml",
            {"generator.steps": STEPS, "generator.validate_every": STEPS, "run.checkpoint_every": 1},
        )
    end_of(cluster, alone, cluster.submit(alone, "generator"))
    assert "continuing" not in said(alone)

    job = cluster.submit(disturbed, "generator")
    checkpoint = disturbed / "checkpoints" / "generator" / "checkpoint.safetensors"
    wait_for(cluster, disturbed, job, checkpoint.exists)
    cluster.asked("scancel", "--batch", "--signal=USR1", job)  # what --signal=B:USR1@600 sends
    wait_for(cluster, disturbed, job, lambda: cluster.field(job, "Restarts") == "1")
    assert "the checkpoint is written" in said(disturbed)
    wait_for(cluster, disturbed, job, lambda: said(disturbed).count("generator: continuing from step") == 1)
    cluster.asked("scontrol", "requeue", job)  # what a job of higher priority does
    end_of(cluster, disturbed, job)
    assert cluster.field(job, "Restarts") == "2"
    assert said(disturbed).count("generator: continuing from step") == 2
    for name in ("config.json", "model.safetensors"):
        ends = [(project / "models" / "generator" / name).read_bytes() for project in (alone, disturbed)]
        assert ends[0] == ends[1], name
    assert scratch.run(disturbed, "dvc", "status", "generator").strip() == "Data and pipelines are up to date."
