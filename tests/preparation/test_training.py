"""Runs on token shards: bits for bytes, exact continuation, and faults that cost nothing."""

from __future__ import annotations

import io
import json
import math
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from nvfp4_jax.training import TrainConfig, UsageError, read_parameters, train
from nvfp4_jax.training.corpus import load_corpus
from nvfp4_jax.training.data import bytes_per_target
from nvfp4_jax.training.errors import StorageError
from nvfp4_jax.training.metrics import read_lines

from ..training import micro
from .texts import prepared, write_folder

pytestmark = pytest.mark.usefixtures("quick_to_compile")

VOCABULARY, STEPS = 300, 4
MODEL = {"pattern": "-", "hidden": 16, "ffn": 32}  # quick to compile


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """A prepared folder and a model for it."""
    folder = tmp_path_factory.mktemp("inputs")
    prepared(
        folder / "data", write_folder(folder / "text"), vocabulary=VOCABULARY, shard_tokens=500
    )
    (folder / "model.json").write_text(json.dumps(MODEL | {"vocabulary": VOCABULARY}))
    return folder


def config(inputs: Path, workdir: Path, **changes) -> TrainConfig:
    options = micro.options(inputs, workdir, data=inputs / "data", recipe="bf16", steps=STEPS)
    return TrainConfig(**options | {"eval_every": STEPS, "save_every": STEPS} | changes)


def run(options: TrainConfig, corpus=None) -> str:
    """What a run prints."""
    file = io.StringIO()
    train(options, Console(file=file, width=200), corpus)
    return file.getvalue()


@pytest.fixture(scope="module")
def straight(inputs, tmp_path_factory) -> tuple[Path, str]:
    """A run without a break: its folder, and what it printed."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    return workdir, run(config(inputs, workdir))


def test_held_out_bits_are_of_bytes(inputs, straight):
    workdir, output = straight
    corpus = load_corpus(inputs / "data")
    (line,) = read_lines(workdir / "evaluation.jsonl")
    size = bytes_per_target(corpus.held_out, batch=4, length=32, count=2)
    assert 1.5 < size < 5
    assert line["bits_per_byte"] == pytest.approx(line["loss"] / math.log(2) / size, rel=1e-8)
    first = read_lines(workdir / "metrics.jsonl")[0]["loss"] / math.log(2) / corpus.bytes_per_token
    assert f"{first:.3f} bits/byte" in output
    assert corpus.describe() in output


def test_a_shard_lost_on_the_way_stops_the_run_at_a_boundary(inputs, straight, tmp_path):
    """Nothing is lost: with the shard back, the run ends as the one without a break."""
    shutil.copytree(inputs / "data", tmp_path / "data")
    options = config(inputs, tmp_path / "run", data=tmp_path / "data")
    corpus = load_corpus(tmp_path / "data")
    read, shards = corpus.train.read, sorted((tmp_path / "data").glob("train-*.npy"))

    def losing(start, stop):  # on the way to the third batch of four rows
        calls.append(start)
        if len(calls) == 9:
            for shard in shards:
                shard.rename(shard.with_suffix(".gone"))
        return read(start, stop)

    calls: list[int] = []
    corpus.train.read = losing
    with pytest.raises(StorageError, match=r"cannot read .*data/train-0000\d.npy: No such file"):
        run(options, corpus)
    assert [line["step"] for line in read_lines(tmp_path / "run" / "metrics.jsonl")] == [1, 2]
    for shard in shards:
        shard.with_suffix(".gone").rename(shard)
    assert "continuing from step 2" in run(options)
    for name in ("metrics.jsonl", "evaluation.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (straight[0] / name).read_bytes()
    ours, theirs = (read_parameters(folder) for folder in (tmp_path / "run", straight[0]))
    assert all((ours[path] == theirs[path]).all() for path in theirs)


def test_other_shards_are_another_text(inputs, straight, tmp_path):
    source = write_folder(tmp_path / "text", 41)
    prepared(tmp_path / "data", source, vocabulary=VOCABULARY, shard_tokens=500)
    shutil.copytree(straight[0], tmp_path / "run")
    options = config(inputs, tmp_path / "run", data=tmp_path / "data")
    with pytest.raises(UsageError, match=r"the text has changed since the run began: .* \(.*npy"):
        run(options)


def test_a_model_with_fewer_tokens_is_refused(inputs, tmp_path):
    (tmp_path / "model.json").write_text(json.dumps(MODEL | {"vocabulary": 256}))
    options = config(inputs, tmp_path / "run", model=str(tmp_path / "model.json"))
    with pytest.raises(UsageError, match="vocabulary = 256, but the tokens of text are 300; give"):
        run(options)
    assert not (tmp_path / "run").exists()
