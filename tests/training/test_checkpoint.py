"""Checkpoints on disk: whole to the bit or noticed, laid out anew on any devices, kept by a policy.

No model and no step here: a state of a few arrays, cut over eight simulated devices, with the
values that a careless copy would lose: NaNs with a payload, negative zeros, subnormals.
"""

from __future__ import annotations

import gc
import hashlib
import resource
import shutil
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from nvfp4_jax.training import checkpoint
from nvfp4_jax.training.checkpoint import Checkpoints
from nvfp4_jax.training.errors import StorageError, UsageError
from nvfp4_jax.training.integrity import find_damage, seal
from nvfp4_jax.training.recovery import newest
from nvfp4_jax.training.state import TrainState

ABOUT = {"run": {"model": {"hidden": 16}}, "position": {"next": 7}}


def layout(rows: int, columns: int) -> dict[str, NamedSharding]:
    """Where each leaf lies on a mesh of rows x columns devices."""
    devices = np.array(jax.devices()[: rows * columns]).reshape(rows, columns)
    mesh = Mesh(devices, ("rows", "columns"))
    cuts = {"kernel": ("rows", "columns"), "scale": ("columns",), "counter": ()}
    return {name: NamedSharding(mesh, PartitionSpec(*cut)) for name, cut in cuts.items()}


def state(places: dict[str, NamedSharding]) -> TrainState:
    """Arrays of random bits, whatever numbers they are, and counters."""
    bits = np.random.default_rng(0).integers(0, 2**32, (3, 16, 8), np.uint32)
    bits[:, 0, :4] = 0x7FC00123, 0xFF800001, 0x80000000, 0x00000001
    kernels = [jax.device_put(b.view(np.float32), places["kernel"]) for b in bits]
    scale = jax.device_put(np.arange(8, dtype=np.float32) / 3, places["scale"])
    step, skipped, in_a_row = (jax.device_put(np.int32(n), places["counter"]) for n in (5, 1, 0))
    parameters = {"block/kernel": kernels[0], "norm/scale": scale}
    moments = tuple({"block/kernel": k, "norm/scale": scale} for k in kernels[1:])
    return TrainState(parameters, moments, step, skipped, in_a_row)


def like(value: TrainState) -> TrainState:
    """Shapes, dtypes and places of a state."""
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), value
    )


def bits_of(value: TrainState) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(value)]


def write(folder: Path, *steps: int, keep: int = 9, keep_every: str | None = None) -> Path:
    """Save the same state as several steps."""
    saved = state(layout(4, 2))
    with Checkpoints(folder, keep, keep_every) as checkpoints:
        for step in steps:
            checkpoints.save(saved, step, **ABOUT)
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """A folder with checkpoints of steps 5 and 10; to be read only."""
    return write(tmp_path_factory.mktemp("run") / "checkpoints", 5, 10)


@pytest.fixture
def folder(written, tmp_path) -> Path:
    """A copy of it."""
    return shutil.copytree(written, tmp_path / "checkpoints")


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def silent(line: str) -> None:
    raise AssertionError(f"nothing was to be said: {line}")


@pytest.mark.parametrize("shape", [(4, 2), (2, 4), (8, 1), (1, 2), (1, 1)])
def test_what_eight_devices_saved_any_mesh_loads_bit_for_bit(written, shape):
    target = state(layout(*shape))
    found = newest(written, silent)
    assert found is not None
    loaded = checkpoint.load(found, like(target))
    assert bits_of(loaded) == bits_of(target)
    for leaf, wanted in zip(jax.tree.leaves(loaded), jax.tree.leaves(target), strict=True):
        assert leaf.sharding == wanted.sharding
    assert (found.step, found.run, found.position) == (10, ABOUT["run"], ABOUT["position"])


def test_a_save_says_nothing_in_the_log(tmp_path, caplog):
    """Orbax warns through absl, in a terminal across the progress bar."""
    write(tmp_path / "checkpoints", 1)
    assert [record.getMessage() for record in caplog.records] == []


def test_what_one_device_saved_eight_load(tmp_path):
    one = SingleDeviceSharding(jax.devices()[3])
    saved = jax.tree.map(lambda leaf: jax.device_put(leaf, one), state(layout(1, 1)))
    with Checkpoints(tmp_path / "checkpoints", keep=2) as checkpoints:
        checkpoints.save(saved, 1, **ABOUT)
    found = newest(tmp_path / "checkpoints", silent)
    assert found is not None
    assert bits_of(checkpoint.load(found, like(state(layout(2, 4))))) == bits_of(saved)


def test_a_flipped_bit_is_noticed_in_every_file(folder):
    """At 64 places of each file, its ends and the file of digests included."""
    for path in files(folder / "10"):
        content = path.read_bytes()
        for place in sorted({int(i) for i in np.linspace(0, len(content) - 1, 64) if content}):
            changed = bytearray(content)
            changed[place] ^= 1 << place % 8
            path.write_bytes(changed)
            assert find_damage(folder / "10"), (path, place)
        path.write_bytes(content)
    assert find_damage(folder / "10") is None


def test_every_file_cut_short_or_deleted_is_noticed_and_named(folder):
    for path in files(folder / "10"):
        content = path.read_bytes()
        for length in {0, 1, len(content) // 2, len(content) - 1} & {*range(len(content))}:
            path.write_bytes(content[:length])
            assert find_damage(folder / "10"), (path, length)
        path.unlink()
        assert find_damage(folder / "10") == f"{path.relative_to(folder / '10')} is missing"
        path.write_bytes(content)


def test_files_that_others_leave_are_no_damage_and_files_like_ours_are(folder):
    (folder / "10" / ".DS_Store").write_text("a file manager was here")
    assert find_damage(folder / "10") is None
    (folder / "10" / "state" / "d" / "extra").write_text("")
    assert find_damage(folder / "10") == "state/d/extra is not what SHA256SUMS says"


def test_digests_are_what_sha256sum_writes(written):
    lines = (written / "10" / "SHA256SUMS").read_text().splitlines()
    assert len(lines) == len(files(written / "10")) - 1
    for line in lines:
        digest, name = line.split("  ")
        assert digest == hashlib.sha256((written / "10" / name).read_bytes()).hexdigest()


def test_a_damaged_one_is_named_and_set_aside_and_the_one_before_used(folder):
    (array, *_) = files(folder / "10" / "state" / "d")
    content = bytearray(array.read_bytes())
    content[-1] ^= 1
    array.write_bytes(content)
    said: list[str] = []
    found = newest(folder, said.append)
    assert found is not None
    assert found.step == 5
    aside = folder.with_name("checkpoints-unreadable") / "10"
    name = array.relative_to(folder / "10")
    assert said == [
        f"checkpoint 10 is damaged: {name} is not what SHA256SUMS says; it is now {aside}"
    ]
    assert find_damage(aside)
    assert newest(folder, silent) == found


def test_where_none_is_whole_the_run_is_refused_and_nothing_is_deleted(folder):
    for step in ("5", "10"):
        (folder / step / "_CHECKPOINT_METADATA").write_text("{}")
    for _ in range(2):  # and again, with all of them set aside
        with pytest.raises(UsageError, match=r"no checkpoint .* whole.*steps 5, 10\).*--workdir"):
            newest(folder, lambda line: None)
    assert len(files(folder.with_name("checkpoints-unreadable"))) > 10


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(UsageError, match="checkpoints is a file"):
        newest(tmp_path / "checkpoints", silent)


def test_an_empty_folder_and_none_are_no_checkpoint(tmp_path):
    assert newest(tmp_path / "checkpoints", silent) is None
    with Checkpoints(tmp_path / "checkpoints", keep=1):
        pass
    assert newest(tmp_path / "checkpoints", silent) is None


def test_what_a_killed_process_left_is_cleared(folder):
    for name in ("15.writing", "15.writing.orbax-checkpoint-tmp", "5.deleting"):
        shutil.copytree(folder / "5", folder / name)
    with Checkpoints(folder, keep=2):
        assert sorted(path.name for path in folder.iterdir()) == ["10", "5"]


@pytest.mark.parametrize(
    ("keep", "keep_every", "kept"),
    [
        (1, None, [9]),
        (2, None, [8, 9]),
        (1, "4", [4, 8, 9]),
        (3, "4", [4, 6, 8, 9]),
        (1, "1000h", [2, 9]),  # the first, and none since
        (1, "0.000001h", [2, 4, 6, 8, 9]),
    ],
)
def test_the_policy_keeps(tmp_path, keep, keep_every, kept):
    folder = write(tmp_path / "checkpoints", 2, 4, 6, 8, 9, keep=keep, keep_every=keep_every)
    assert sorted(checkpoint.steps(folder)) == kept
    assert sorted(path.name for path in folder.iterdir()) == sorted(map(str, kept))


# The tasks that Orbax leaves behind when one of them fails complain that their loop is closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_save_that_fails_in_the_background_is_told_and_costs_nothing(folder):
    """A limit on the size of files stands for a full disk: the kernel refuses to write more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    checkpoints = Checkpoints(folder, keep=2)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (512, hard))
        checkpoints.save(state(layout(4, 2)), 15, **ABOUT)
        with pytest.raises(StorageError, match=r"/15: cannot save .*: File too large; .* step 10"):
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoint.steps(folder) == [10, 5]
    (folder / "15.writing.orbax-checkpoint-tmp").mkdir(exist_ok=True)  # a task left behind may, too
    checkpoints.save(state(layout(4, 2)), 20, **ABOUT)
    checkpoints.wait()
    assert sorted(path.name for path in folder.iterdir()) == ["10", "20"]
    gc.collect()  # they complain when they are collected: here, and in no other test


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_folder_that_went_away_during_a_run_is_told(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    (tmp_path / "checkpoints").rmdir()
    (tmp_path / "checkpoints").write_text("")
    before = set(threading.enumerate())
    with pytest.raises(StorageError, match=r"checkpoints/1: cannot save .*none before it"):
        checkpoints.save(state(layout(1, 1)), 1, **ABOUT)
    for thread in set(threading.enumerate()) - before:  # which the end of the process waits for
        thread.join(20)
        assert thread.daemon or not thread.is_alive()
    gc.collect()


def test_a_sealed_folder_is_whole_until_it_is_touched(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_bytes(bytes(range(256)))
    seal(tmp_path)
    assert find_damage(tmp_path) is None
