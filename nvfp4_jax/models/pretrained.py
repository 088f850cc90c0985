"""Checkpoints of others: Hugging Face Nemotron-H folders, read and written.

A folder holds `config.json` and one or more `*.safetensors`; with several, an index
(`model.safetensors.index.json`) says which file has which tensor. Files are read one tensor at a
time, so a 24 GB checkpoint needs little memory beyond its own parameters.

The parameters are FP32 whatever the file holds: a bfloat16 checkpoint becomes a master copy that
can be trained.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from safetensors import safe_open
from safetensors.numpy import save_file

from nvfp4_jax.models import hf_config
from nvfp4_jax.models.hf_names import PREFIXES, Theirs, theirs
from nvfp4_jax.models.hybrid import Hybrid

INDEX = "model.safetensors.index.json"


def from_pretrained(
    directory: str | Path,
    dtype: DTypeLike = jnp.float32,
    dt_limit: tuple[float, float] = (0, math.inf),
) -> Hybrid:
    """Read a Nemotron-H folder into a model.

    Args:
      directory: holds config.json and *.safetensors, sharded or not, names beginning with
        `backbone.` or `model.`.
      dtype: compute dtype of the model; parameters are FP32.
      dt_limit: bounds of dt; the released models and Megatron have none, transformers 5 has
        (1e-3, inf).

    Returns:
      A module for which model(tokens) gives FP32 logits (batch, length, vocabulary).

    Raises:
      FileNotFoundError: config.json, a safetensors file or a shard the index names is missing.
      ValueError: the configuration is not supported, or a tensor is missing, unknown or of another
        shape; the message names the file, the key and the shapes.
    """
    directory = Path(directory)
    config = hf_config.read(_present(directory / "config.json"), dt_limit)
    model = nnx.eval_shape(lambda: Hybrid(config, rngs=nnx.Rngs(0), dtype=dtype))
    graph, abstract = nnx.split(model)
    where = _locate(directory)
    wanted = {
        path: theirs(path, _prefix(directory, where)) for path, _ in nnx.to_flat_state(abstract)
    }
    _check_names(directory, where, {entry.name for entry in wanted.values()})
    loaded = [
        (path, variable.replace(_load(where[wanted[path].name], wanted[path], variable)))
        for path, variable in nnx.to_flat_state(abstract)
    ]
    return nnx.merge(graph, nnx.from_flat_state(loaded))


def _present(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected a Hugging Face model folder")
    return path


def _locate(directory: Path) -> dict[str, Path]:
    """Which file holds which tensor: as the index says; else in model*.safetensors; else in all.

    A folder may hold other tensors beside a model (activations, optimizer states).
    """
    index = directory / INDEX
    if index.is_file():
        names = json.loads(index.read_text())["weight_map"]
        return {key: _present(directory / name) for key, name in names.items()}
    files = sorted(directory.glob("model*.safetensors")) or sorted(directory.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{directory} holds no *.safetensors")
    return {key: file for file in files for key in _keys(file)}


def _keys(file: Path) -> list[str]:
    with safe_open(file, framework="numpy") as tensors:
        return list(tensors.keys())


def _prefix(directory: Path, where: dict[str, Path]) -> str:
    for prefix in PREFIXES:
        if f"{prefix}.embeddings.weight" in where:
            return prefix
    tried = ", ".join(f"{prefix}.embeddings.weight" for prefix in PREFIXES)
    raise ValueError(f"{directory}: no tensor is called {tried}; not a Nemotron-H checkpoint")


def _check_names(directory: Path, where: dict[str, Path], wanted: set[str]) -> None:
    missing, unknown = sorted(wanted - set(where)), sorted(set(where) - wanted)
    if missing:
        raise ValueError(f"{directory}: {len(missing)} tensors missing, first {missing[0]!r}")
    if unknown:
        raise ValueError(
            f"{where[unknown[0]]}: {unknown[0]!r} has no place in this model "
            f"({len(unknown)} such tensors); is the pattern in config.json right?"
        )


def _load(file: Path, entry: Theirs, variable: nnx.Variable) -> jnp.ndarray:
    with safe_open(file, framework="flax") as tensors:
        stored = tensors.get_tensor(entry.name)
    shape = variable.shape
    if stored.shape != entry.shape(shape):
        raise ValueError(
            f"{file}: {entry.name!r} has the shape {stored.shape}, "
            f"expected {entry.shape(shape)} from config.json"
        )
    return jnp.asarray(entry.decode(stored), variable.dtype)


def save_pretrained(
    model: Hybrid,
    directory: str | Path,
    *,
    dtype: DTypeLike = jnp.float32,
    shard_bytes: int = 5 * 10**9,
) -> None:
    """Write a model as a Nemotron-H folder, which `from_pretrained` and transformers read.

    Args:
      model: its parameters are written, with the names of the released files.
      directory: made if need be.
      dtype: of the tensors in the files; bfloat16 halves them.
      shard_bytes: start a new file before one grows beyond this.

    Raises:
      ValueError: the model has an option that Nemotron-H has no word for.
      FileExistsError: the folder holds safetensors already, which would mix with these.
    """
    directory = Path(directory)
    if any(directory.glob("*.safetensors")):
        raise FileExistsError(f"{directory} holds *.safetensors already; choose another folder")
    directory.mkdir(parents=True, exist_ok=True)
    hf_config.write(model.config, directory / "config.json")
    shards = list(_shards(model, np.dtype(dtype), shard_bytes))
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        name = "model.safetensors" if len(shards) == 1 else name
        save_file(shard, directory / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, name)
    if len(shards) > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _shards(model: Hybrid, dtype: np.dtype, limit: int) -> Iterator[dict[str, np.ndarray]]:
    """Tensors by their names in the file, in groups of at most `limit` bytes."""
    shard: dict[str, np.ndarray] = {}
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        entry = theirs(path, PREFIXES[0])
        array = entry.encode(np.asarray(variable[...]).astype(dtype))
        if shard and sum(a.nbytes for a in shard.values()) + array.nbytes > limit:
            yield shard
            shard = {}
        shard[entry.name] = array
    yield shard
