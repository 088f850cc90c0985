"""Which choices of `--sum-parts` and `--feature-parts` can be honoured (see `ordered`)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from nvfp4_jax.kernels.capability import capability
from nvfp4_jax.models import Hybrid, HybridConfig
from nvfp4_jax.operands import emulated
from nvfp4_jax.precision import GEMMS, LinearPrecision, rotation
from nvfp4_jax.training.binding import Table, linears
from nvfp4_jax.training.errors import UsageError
from nvfp4_jax.training.mesh import MeshShape
from nvfp4_jax.training.sharding import feature_axis


def check_parts(config: Any, mesh: MeshShape, model: Hybrid, tables: Iterable[Table]) -> None:
    """Raise a `UsageError` for a `sum_parts` that cannot be honoured; None always can.

    Args:
      config: has `sum_parts`, `feature_parts`, `batch`, `microbatches`, `length` and `gather`, as a
        `TrainConfig`.
      mesh: what rows and features are shared over.
      model: whose layers' features are cut in parts; shapes will do.
      tables: the precisions of the run's phases.
    """
    parts = config.sum_parts
    if parts is None:
        if config.feature_parts is not None:
            raise UsageError(
                f"--feature-parts {config.feature_parts} is for --sum-parts; give both"
            )
        return
    flag, rows = f"--sum-parts {parts}", config.batch // config.microbatches
    _check_pairs(flag, parts)
    if mesh.sequence > 1:
        raise UsageError(
            f"{flag}: --mesh {mesh} cuts sums over the tokens of a row, whose order depends on the "
            "mesh; leave out sequence, or --sum-parts"
        )
    _check_features(1 if config.feature_parts is None else config.feature_parts, mesh, model)
    if rows % parts or parts % mesh.row_shards:
        raise UsageError(
            f"{flag}: it must divide the {rows} rows of a microbatch (--batch / --microbatches) "
            f"and be a multiple of the {mesh.row_shards} devices that share them (--mesh {mesh})"
        )
    if config.gather == "packed":
        raise UsageError(f"{flag} gathers weights in FP32; leave out --gather packed")
    for path, precision in (entry for table in tables for entry in table):
        _check_precision(flag, path, precision, rows // parts * config.length)


def _check_pairs(flag: str, parts: int) -> None:
    if parts < 1 or parts & (parts - 1):
        raise UsageError(f"{flag}: give a power of two, the parts are added pair by pair")


def _check_precision(flag: str, path: str, precision: LinearPrecision, tokens: int) -> None:
    block = max(rotation(precision.wgrad.input)[0], 1)
    if tokens % block:
        raise UsageError(
            f"{flag}: {path} rotates blocks of {block} tokens (rht), and a part has {tokens}; give "
            "fewer parts, or another --length"
        )
    if precision.residuals == "packed":
        raise UsageError(
            f"{flag}: {path} keeps packed residuals, and parts are summed from the input itself; "
            "use a recipe without residuals = 'packed'"
        )
    if any(emulated(precision, gemm, None) is None for gemm in GEMMS):
        raise UsageError(f"{flag} emulates 4-bit products, and this GPU has them; leave it out")


def _check_features(parts: int, mesh: MeshShape, model: Hybrid) -> None:
    flag = f"--feature-parts {parts}"
    _check_pairs(flag, parts)
    if parts % mesh.tensor:
        raise UsageError(
            f"--sum-parts: --mesh {mesh} shares features; give --feature-parts, a multiple of "
            f"tensor={mesh.tensor} and the same on every mesh, or leave --sum-parts out"
        )
    for name, count in _indivisible(model.config):
        if count % mesh.tensor:
            raise UsageError(
                f"--sum-parts: the model has {name} = {count}, which tensor={mesh.tensor} does not "
                "divide: products inside one would be shared; use a smaller tensor"
            )
        if count % parts and capability() is not None:
            raise UsageError(
                f"{flag}: GPUs compute one part of the features at a time, and the model has "
                f"{name} = {count}, which it does not divide; give fewer"
            )
    for path, linear in linears(model):
        axis, shape = feature_axis(f"{path}/kernel"), linear.kernel.shape
        if axis is not None and shape[axis] % parts:
            layer, way = path.replace("blocks/", "blocks_"), ("in", "out")[axis]
            raise UsageError(
                f"{flag}: {layer} has {shape[axis]} features {way}, which it does not divide"
            )


def _indivisible(config: HybridConfig) -> list[tuple[str, int]]:
    """What each device must have whole ones of: groups of the scan, heads that queries share."""
    letters = "".join(config.blocks)
    counts = {"M": ("groups", config.groups), "*": ("kv_heads", config.kv_heads)}
    return [named for letter, named in counts.items() if letter in letters]
