"""Where arrays live, said once: logical axes on one side, the mesh on the other.

Nothing in the step knows how many devices there are. It is traced over whole arrays; this table
says over which axis of the mesh each logical axis is cut, and the compiler inserts the
communication. Today's mesh has one device; a larger one changes `make_mesh` and rows of the table.
"""

from __future__ import annotations

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

# logical axis -> axis of the mesh, or None for not cut
AXES: dict[str, str | None] = {
    "microbatch": None,
    "batch": "data",
    "length": None,
}


def make_mesh() -> Mesh:
    """A mesh of one device with the axis `data`."""
    return jax.make_mesh((1,), ("data",), (AxisType.Auto,), devices=jax.devices()[:1])


def sharding(mesh: Mesh, *logical: str) -> NamedSharding:
    """How an array with these logical axes is laid out; none of them: replicated."""
    return NamedSharding(mesh, PartitionSpec(*(AXES[axis] for axis in logical)))
