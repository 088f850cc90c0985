"""What a process checks by itself before it is one of several, and what it does first."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from nvfp4_jax.training import UsageError, train
from nvfp4_jax.training import distributed as distributed_module
from nvfp4_jax.training import workdir as workdir_module
from nvfp4_jax.training.distributed import (
    agreed,
    check_flags,
    first_alone,
    is_first,
    joined,
    several,
)

from . import micro


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("host", 2, 0), r"--distributed host: give slurm, mpi or HOST:PORT"),
        (("host:1234", None, 0), r"needs --processes N and --process I"),
        (("host:1234", 2, 2), r"--process 2: give 0 to 1"),
        (("slurm", None, None), r"SLURM_PROCID is not set, so srun did not start this process"),
        (("mpi", None, None), r"OMPI_COMM_WORLD_RANK is not set, so mpirun did not start"),
        ((None, None, 1), r"--process 1 goes with --distributed HOST:PORT; add that"),
    ],
)
def test_flags_that_do_not_fit_together_are_refused(flags, words):
    with pytest.raises(UsageError, match=words):
        check_flags(*flags)


def test_under_slurm_numbers_are_not_given(monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "1")
    check_flags("slurm", None, None)
    with pytest.raises(UsageError, match=r"--processes 2 goes with .* slurm and mpi know it"):
        check_flags("slurm", 2, None)


def test_a_workdir_that_is_not_shared_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir_module, "SHARED_WITHIN_SECONDS", 0)
    about = {"model": {"pattern": "-"}, "recipe": {"name": "bf16"}}
    run = cast(Any, SimpleNamespace(config=SimpleNamespace(workdir=tmp_path)))
    run.describe = lambda: {**about, "recipe": {**about["recipe"], "text": "..."}}
    with pytest.raises(UsageError, match=r"not the same folder on every process"):
        workdir_module.find_description(run)
    (tmp_path / "config.json").write_text(json.dumps(about))
    workdir_module.find_description(run)


def test_a_config_that_asks_for_processes_is_refused_by_one_alone(inputs, tmp_path):
    config = micro.config(inputs, tmp_path / "run", distributed="slurm")
    with pytest.raises(UsageError, match=r"distributed='slurm' is honoured by the command line"):
        train(config, Console(file=io.StringIO()))
    assert not (tmp_path / "run").exists()


def test_a_process_alone_is_the_first_and_agrees_with_itself():
    with joined(None, None, None):
        assert is_first()
        assert not several()
        assert agreed(lambda: 7) == 7
        assert first_alone(lambda: 8) == 8


@pytest.mark.parametrize("first", [True, False])
def test_the_first_makes_its_own_before_the_others(monkeypatch, first):
    happened = []

    def agree(make):
        made = make()
        happened.append("all are here")
        return made

    monkeypatch.setattr(distributed_module, "agreed", agree)
    monkeypatch.setattr(distributed_module, "is_first", lambda: first)
    assert first_alone(lambda: happened.append("made") or 7) == 7
    assert happened == (["made", "all are here"] if first else ["all are here", "made"])


def test_no_program_of_several_processes_shares_trials():
    script = """
import os
import nvfp4_jax.training.loop  # what has been imported by then
from jax._src.compiler import get_compile_options
from nvfp4_jax.training.tuning import keep_trials_apart

keep_trials_apart()
keep_trials_apart()
print(os.environ["XLA_FLAGS"])
options = get_compile_options(1, 1)  # held: the rest points into it
print(options.executable_build_options.debug_options)
"""
    environment = os.environ | {"XLA_FLAGS": "--xla_cpu_enable_fast_math=false"}
    words = [sys.executable, "-c", script]
    told = subprocess.check_output(words, env=environment, text=True)
    flags, *options = told.splitlines()
    assert flags == f"{environment['XLA_FLAGS']} --xla_gpu_shard_autotuning=false"
    assert "xla_gpu_shard_autotuning: false" in options
