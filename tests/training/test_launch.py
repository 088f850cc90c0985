"""The scripts that start a run on a cluster: they parse, and give flags that there are.

And every command with a mesh that a document shows: the mesh can share its batch.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from contextlib import ExitStack, suppress
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from nvfp4_jax.training import TrainConfig
from nvfp4_jax.training.errors import Diverged, UsageError, outcome
from nvfp4_jax.training.mesh import parse_mesh
from nvfp4_jax.training.prepare import check_mesh

CHECKOUT = Path(__file__).parents[2]
LAUNCH = CHECKOUT / "experiments" / "launch"
DOCUMENTS = [CHECKOUT / "README.md", CHECKOUT / "BENCHMARKS.md", *sorted(LAUNCH.iterdir())]
COMMANDS = re.compile(r"((?:nvfp4 (?:train|plan|compare)|sbatch|mpi\.sh)\b[^`\n]*--mesh[^`\n]*)")
GPUS_PER_NODE = 8  # as slurm.sh has it
FLAGS = {field.name.replace("_", "-") for field in fields(TrainConfig)}


def flags_of(text: str) -> set[str]:
    """The flags of every `nvfp4 train` in a script; a line ends it that no backslash continues."""
    calls = re.findall(r"nvfp4 train((?:[^\n]*\\\n)*[^\n]*)", text)
    return {flag for call in calls for flag in re.findall(r"--([a-z][a-z-]*)", call)}


@pytest.mark.parametrize("path", sorted(LAUNCH.iterdir()), ids=lambda path: path.name)
def test_flags_are_those_of_train(path):
    found = flags_of(path.read_text())
    assert "distributed" in found
    assert found <= FLAGS


@pytest.mark.parametrize("path", sorted(LAUNCH.glob("*.sh")), ids=lambda path: path.name)
def test_scripts_parse(path):
    subprocess.run(["bash", "-n", path], check=True, timeout=60)
    assert path.stat().st_mode & 0o111


def test_the_job_has_as_many_pods_as_processes_and_meets_at_the_first():
    service, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    name, count = job["metadata"]["name"], job["spec"]["completions"]
    (container,) = job["spec"]["template"]["spec"]["containers"]
    script = container["args"][0]
    subprocess.run(["bash", "-n", "-c", script], check=True, timeout=60)
    assert job["spec"]["parallelism"] == count
    assert f"--processes {count} " in script
    address, port = f"{name}-0.{service['metadata']['name']}", container["ports"][0]
    assert f"--distributed {address}:{port['containerPort']} " in script
    assert service["spec"]["selector"] == {"job-name": name}
    assert job["spec"]["template"]["spec"]["subdomain"] == service["metadata"]["name"]


@pytest.fixture
def script(tmp_path):
    """A pod's script, with its workdir here."""
    _, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["/bin/bash", "-c"]
    return container["args"][0].replace("/shared/run", str(tmp_path))


@pytest.fixture
def pod(script, tmp_path):
    """Starts the script as a process: what `nvfp4` is in it and what it writes are here."""
    with ExitStack() as started:

        def start(nvfp4: str) -> subprocess.Popen[bytes]:
            command = ["/bin/bash", "-c", f"cd {tmp_path}\nnvfp4() {{ {nvfp4}; }}\n{script}"]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
            started.callback(end, process)
            return process

        yield start


def end(process: subprocess.Popen[bytes]) -> None:
    """With all that it started: a run that nobody waits for would hold the pipe open."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def status_of(process: subprocess.Popen[bytes]) -> int:
    process.communicate(timeout=60)
    return process.returncode


@pytest.mark.parametrize(
    ("nvfp4", "status"),
    [
        ("exit 2", 2),
        ("exit 3", 3),
        ("exit 1", 1),
        ("nowhere", 127),
        ("sleep 0.1; exit 134", 134),
        ("touch parameters.safetensors", 0),
        ("true", 75),
    ],
)
def test_a_pod_ends_as_its_run_does_however_soon(pod, nvfp4, status):
    started = [pod(nvfp4) for _ in range(10)]
    assert [status_of(process) for process in started] == [status] * 10


@pytest.mark.parametrize(("ended", "status"), [("exit 0", 75), ("exit 134", 134)])
def test_a_pod_that_is_evicted_waits_for_its_run(pod, ended, status):
    running = f"trap 'sleep 0.3; {ended}' TERM; echo; while true; do sleep 0.05; done"
    started = [pod(running) for _ in range(10)]
    for process in started:  # once its run has begun, which its shell may not have noticed yet
        process.stdout.readline()
        process.terminate()
    assert [status_of(process) for process in started] == [status] * 10


def test_a_pod_that_is_evicted_before_its_run_begins_is_started_again(script):
    evicted = script.replace("nvfp4 train", "kill -TERM $$; nvfp4 train")
    assert evicted != script
    assert subprocess.run(["/bin/bash", "-c", evicted], timeout=60).returncode == 75


def test_only_what_would_come_to_the_same_is_not_started_again():
    _, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    (rule,) = job["spec"]["podFailurePolicy"]["rules"]
    final = {status for _, status in filter(None, map(outcome, (UsageError(), Diverged())))}
    assert (rule["action"], set(rule["onExitCodes"]["values"])) == ("FailJob", final)
    script = (LAUNCH / "slurm.sh").read_text()
    assert set(map(int, re.findall(r"\$status -ne (\d+)", script))) == final


def commands_with_a_mesh() -> list[tuple[str, str]]:
    """(document, command) of each; a backslash continues a line, in a comment too."""
    found = []
    for path in DOCUMENTS:
        text = re.sub(r"\\\n[#\s]*", " ", path.read_text())
        found += [(path.name, command) for command in COMMANDS.findall(text)]
    return found


def number(command: str, flag: str, default: int) -> int:
    given = re.search(rf"--{flag} (\d+)", command)
    return int(given[1]) if given else default


def test_every_mesh_shown_can_share_its_batch():
    found = commands_with_a_mesh()
    assert {name for name, _ in found} >= {"README.md", "BENCHMARKS.md", "kubernetes.yaml"}
    for name, command in found:
        spec = re.search(r"--mesh ([a-z]+=\d[\w=,]*)", command)
        assert spec, (name, command)
        mesh = parse_mesh(spec[1])
        sizes = {
            flag: number(command, flag, TrainConfig.__dataclass_fields__[flag].default)
            for flag in ("batch", "length", "microbatches")
        }
        check_mesh(mesh, SimpleNamespace(**sizes))
        if command.startswith("sbatch"):
            assert mesh.size == GPUS_PER_NODE * number(command, "nodes", 2), (name, command)


def test_the_scripts_have_the_gpus_of_their_mesh():
    assert f"#SBATCH --gpus-per-node={GPUS_PER_NODE} " in (LAUNCH / "slurm.sh").read_text()
    assert "#SBATCH --nodes=2\n" in (LAUNCH / "slurm.sh").read_text()
    _, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    spec = re.search(r"--mesh (\S+)", container["args"][0])
    each = container["resources"]["limits"]["nvidia.com/gpu"]
    assert spec
    assert parse_mesh(spec[1]).size == job["spec"]["completions"] * each
