"""What a cluster can do: the peaks of data sheets, and the shares of them that are reached.

| figure               | from                                                                |
|----------------------|---------------------------------------------------------------------|
| FLOP/s by format     | data sheets, dense (A100, H100, H200, HGX B200, GB200, GB300 NVL72) |
| HBM bandwidth        | `gpus`                                                              |
| NVLink, one way      | half of what data sheets give, which is both ways together          |
| network, one way     | one adapter a GPU, as in NVIDIA's own systems of these GPUs         |
| shares               | measured on Hopper (BENCHMARKS.md), the same for every GPU          |

The shares are physical: what a large product, a copy and a collective reach by themselves. They
are not fitted to steps, which are predicted from them. On Blackwell nothing was run: that it
reaches Hopper's shares, FP4 included, is an assumption, and a power limit may well keep it below.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from nvfp4_jax.gpus import Gpu
from nvfp4_jax.training.flops import peak_flops

# To the peak in bf16; a format that is not here is emulated, in products of bf16.
_FORMATS = {
    "a100": {"f32": 0.5},
    "h100": {"f32": 0.5, "fp8": 2.0},
    "h200": {"f32": 0.5, "fp8": 2.0},
    "b200": {"f32": 0.5, "fp8": 2.0, "nvfp4": 4.0},
    "gb200": {"f32": 0.5, "fp8": 2.0, "nvfp4": 4.0},
    "gb300": {"f32": 0.5, "fp8": 2.0, "nvfp4": 6.0},
}
_NVLINK = {"a100": 300e9, "h100": 450e9, "h200": 450e9}  # bytes a second, one way
_NVLINK_5 = 900e9
_LINKS = {"a100": 12}  # of a GPU; all others have 18
_NETWORK = {"a100": 25e9, "gb300": 100e9}
_400_GBIT = 50e9
_DOMAIN = {"gb200": 72, "gb300": 72}  # GPUs that NVLink joins, where they are not those of a host


@dataclass(frozen=True)
class Shares:
    """The share of a peak that is reached.

    Attributes:
      product: of FLOP/s, by matrix products: the linears of a step of `150m`, 743 of 989 TFLOP/s
        (767 at 8192 cubed).
      memory: of HBM's bandwidth, by what streams: a copy's 2,691 of 3,352 GB/s.
      scan: of HBM's bandwidth, by the kernels of the state-space scan, which also multiply: 3.7 GB
        in 2.06 ms at 8 x 4096 x 32 x 80.
      attention: of FLOP/s, by the attention kernels: 281 TFLOP/s in a step of `150m`.
      wire: of NVLink's and the network's, by a large collective; assumed.
      latency: seconds of a collective, however small: 212 of amaxes took 12 ms on two H200.
      launch: seconds that a kernel takes at least; assumed.
    """

    product: float = 0.75
    memory: float = 0.80
    scan: float = 0.53
    attention: float = 0.28
    wire: float = 0.8
    latency: float = 55e-6
    launch: float = 3e-6


@dataclass(frozen=True)
class Machine:
    """One GPU of a cluster, with its links.

    Attributes:
      gpu: which.
      flops: peak FLOP/s by format of a product's operands, dense.
      nvlink: bytes a second to the GPUs of its domain, one way.
      network: bytes a second to all others, one way.
      domain: GPUs that NVLink joins.
      shares: what of that is reached.
    """

    gpu: Gpu
    flops: dict[str, float]
    nvlink: float
    network: float
    domain: int
    shares: Shares

    @property
    def bandwidth(self) -> float:
        """Bytes a second that a stream reaches."""
        return self.gpu.bandwidth * self.shares.memory

    def rate(self, dtype: str) -> float:
        """FLOP/s that a product of operands of this dtype reaches."""
        return self.flops.get(dtype, self.flops["bf16"]) * self.shares.product

    def wire_rate(self, in_domain: int, group: int) -> float:
        """Bytes a second of a collective among `group` GPUs, `in_domain` of them in one domain.

        A ring that passes through hosts crosses each adapter once for every GPU it has there, so
        that the adapters of a host add up, to at most what NVLink carries.
        """
        network = min(self.nvlink, self.network * in_domain)
        return (self.nvlink if in_domain == group else network) * self.shares.wire


def linked(gpu: Gpu) -> Gpu:
    """The GPU with its NVLinks, over which XLA runs small all-reduces by kernels of its own."""
    return replace(gpu, nvlinks=_LINKS.get(gpu.name, 18))


def machine_of(gpu: Gpu, shares: Shares = Shares()) -> Machine:
    """The machine of `nvfp4 plan` for this GPU."""
    peak = peak_flops(gpu.kind)
    assert peak is not None  # a test holds the tables to each other
    return Machine(
        gpu=gpu,
        flops={"bf16": peak, **{name: peak * to for name, to in _FORMATS[gpu.name].items()}},
        nvlink=_NVLINK.get(gpu.name, _NVLINK_5),
        network=_NETWORK.get(gpu.name, _400_GBIT),
        domain=_DOMAIN.get(gpu.name, gpu.per_host),
        shares=shares,
    )
