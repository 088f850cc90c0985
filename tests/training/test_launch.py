"""The scripts that start a run on a cluster: they parse, and give flags that there are."""

from __future__ import annotations

import re
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from nvfp4_jax.training import TrainConfig

LAUNCH = Path(__file__).parents[2] / "experiments" / "launch"
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
