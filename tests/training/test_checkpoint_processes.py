"""Two processes write one checkpoint and agree on which to use; any number of devices reads it."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.random_kills import server
from nvfp4_jax.training import checkpoint
from nvfp4_jax.training.checkpoint import Checkpoints
from nvfp4_jax.training.recovery import newest
from nvfp4_jax.training.state import TrainState

from .test_distributed import free_port

KERNEL = np.random.default_rng(0).integers(0, 2**32, (8, 16), np.uint32).view(np.float32)
ABOUT = {"run": {"seed": 1}, "position": {"next": 3}}


def state(devices: list[jax.Device]) -> TrainState:
    """A kernel cut over these devices, and counters on all of them."""
    mesh = Mesh(np.array(devices), ("rows",))

    def place(value: np.ndarray, *cut: str) -> jax.Array:
        sharding = NamedSharding(mesh, PartitionSpec(*cut))
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    counters = [place(np.array(n, np.int32)) for n in (10, 1, 0)]
    return TrainState({"kernel": place(KERNEL, "rows")}, (), *counters)


def like(value: TrainState) -> TrainState:
    """Shapes, dtypes and places of a state."""
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), value
    )


def is_kernel(array: jax.Array) -> bool:
    """Whether what this process has of an array is that part of the kernel, to the bit."""
    return all(
        np.asarray(part.data).tobytes() == KERNEL[part.index].tobytes()
        for part in array.addressable_shards
    )


def save_and_look(process: int, address: str, folder: str, answer: str) -> None:
    """In each of two processes: save twice, damage the newest, and look for what to use."""
    jax.config.update("jax_platforms", "cpu")
    jax.distributed.initialize(address, 2, process)
    saved = state(jax.devices())
    with Checkpoints(Path(folder), keep=2) as checkpoints:
        for step in (5, 10):
            checkpoints.save(saved, step, **ABOUT)
    multihost_utils.sync_global_devices("saved")
    if process == 0:
        (Path(folder) / "10" / "state" / "_METADATA").write_text("{}")
    multihost_utils.sync_global_devices("damaged")
    said: list[str] = []
    found = newest(Path(folder), said.append)
    assert found is not None
    kernel = checkpoint.load(found, like(saved)).parameters["kernel"]
    told = {"step": found.step, "said": said, "equal": is_kernel(kernel), "of": jax.process_count()}
    Path(answer).write_text(json.dumps(told))
    jax.distributed.shutdown()


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> tuple[Path, list[dict]]:
    """(the folder of checkpoints, what each of two processes found)."""
    place = tmp_path_factory.mktemp("two")
    context, folder, address = server(), place / "checkpoints", f"127.0.0.1:{free_port()}"
    answers = [place / f"{process}.json" for process in range(2)]
    arguments = [(n, address, str(folder), str(answer)) for n, answer in enumerate(answers)]
    processes = [context.Process(target=save_and_look, args=a) for a in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0]
    return folder, [json.loads(answer.read_text()) for answer in answers]


def test_both_use_the_one_that_the_first_found_whole(answers):
    folder, (first, second) = answers
    same = {"step": 5, "equal": True, "of": 2}
    assert {**first, **same} == first
    assert second == {**same, "said": []}
    (said,) = first["said"]
    assert said.startswith("checkpoint 10 is damaged: state/_METADATA is not what SHA256SUMS says")
    assert sorted(path.name for path in folder.iterdir()) == ["5"]


@pytest.mark.parametrize("count", [1, 4, 8])
def test_what_two_processes_saved_one_process_loads_on_any_devices(answers, count):
    found = newest(answers[0], print)
    assert found is not None
    target = state(jax.devices()[:count])
    loaded = checkpoint.load(found, like(target))
    assert is_kernel(loaded.parameters["kernel"])
    assert len(loaded.parameters["kernel"].addressable_shards) == count
    assert [int(n) for n in (loaded.step, loaded.skipped)] == [10, 1]
