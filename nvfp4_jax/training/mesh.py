"""The mesh: how many ways each thing is cut over the devices.

    --mesh data=8,fsdp=8,tensor=2

| axis     | what is cut over it                        | what travels                             |
|----------|--------------------------------------------|------------------------------------------|
| data     | rows of the batch                          | gradients, added up once a step          |
| fsdp     | rows of the batch; weights and moments     | weights before use, gradients after      |
| sequence | tokens of a row; heads in scan, attention  | activations, from tokens to heads, back  |
| tensor   | features of a layer; tokens between layers | activations, twice a layer               |

An axis that is left out has size 1. The order is that of the table, and neighbours on the last
axis are neighbours in the machine: what talks most (tensor) stays within a host, what talks least
(data) goes between hosts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from nvfp4_jax.quantizer import nearest_spelling
from nvfp4_jax.training.errors import UsageError


@dataclass(frozen=True)
class MeshShape:
    """Sizes of the mesh's axes; see the module.

    Attributes:
      data: replicas, each with rows of its own.
      fsdp: devices that share one copy of weights and moments, each with rows of its own.
      sequence: parts of each row.
      tensor: parts of each layer.
    """

    data: int = 1
    fsdp: int = 1
    sequence: int = 1
    tensor: int = 1

    @property
    def sizes(self) -> dict[str, int]:
        """Size by axis, in the mesh's order."""
        return dataclasses.asdict(self)

    @property
    def size(self) -> int:
        """Devices."""
        return math.prod(self.sizes.values())

    @property
    def row_shards(self) -> int:
        """Parts that the rows of a batch are cut into."""
        return self.data * self.fsdp

    def __str__(self) -> str:
        words = [f"{name}={size}" for name, size in self.sizes.items() if size > 1]
        return ",".join(words) or "data=1"


AXES = tuple(MeshShape().sizes)


def parse_mesh(text: str | None) -> MeshShape:
    """`data=2,fsdp=4` as a `MeshShape`; None is one device.

    Raises:
      UsageError: no `axis=size`, an unknown or repeated axis, a size below 1.
    """
    sizes: dict[str, int] = {}
    for part in [] if text is None else text.split(","):
        name, size = _parse_axis(text or "", part)
        if name in sizes:
            raise UsageError(f"--mesh {text}: {name} is given twice; give each axis once")
        sizes[name] = size
    return MeshShape(**sizes)


def _parse_axis(text: str, part: str) -> tuple[str, int]:
    name, equals, number = (word.strip() for word in part.partition("="))
    if not equals:
        raise UsageError(f"--mesh {text}: {part!r} is no axis=size; write data=2,fsdp=4")
    if name not in AXES:
        raise UsageError(
            f"--mesh {text}: no axis is called {name!r}: {nearest_spelling(name, AXES)}"
        )
    if not number.isdecimal() or int(number) < 1:
        raise UsageError(f"--mesh {text}: {name}={number}: give a whole number of at least 1")
    return name, int(number)


def make_mesh(shape: MeshShape = MeshShape(), devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of `shape`, all axes automatic, over the first devices of all hosts.

    Raises:
      UsageError: there are fewer devices, or some host's would be idle.
    """
    devices = jax.devices() if devices is None else devices
    if shape.size > len(devices):
        simulated = f"XLA_FLAGS=--xla_force_host_platform_device_count={shape.size}"
        on_cpu = f"; {simulated} simulates as many" if devices[0].platform == "cpu" else ""
        raise UsageError(
            f"--mesh {shape} needs {shape.size} devices, and there are {len(devices)} "
            f"({devices[0].device_kind}){on_cpu}"
        )
    chosen = devices[: shape.size]
    hosts = {device.process_index for device in devices}
    if hosts != {device.process_index for device in chosen}:
        raise UsageError(
            f"--mesh {shape} has {shape.size} devices, and the {len(devices)} devices of "
            f"{len(hosts)} processes must all take part; give a mesh of {len(devices)}"
        )
    return _arranged(shape, chosen)


def _arranged(shape: MeshShape, devices: Sequence[Any]) -> Mesh:
    sizes = tuple(shape.sizes.values())
    array = np.asarray(devices, dtype=object).reshape(sizes)
    return Mesh(array, AXES, axis_types=(AxisType.Auto,) * len(AXES))
