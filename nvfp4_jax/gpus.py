"""GPUs by name, as the compiler needs to know them to compile for one that is not here.

XLA compiles for any GPU whose figures it is given, in the text form of its GpuTargetConfigProto.
Those figures are here as data, for the parts that training runs on.

Sources: NVIDIA's data sheets and architecture white papers (compute capability, multiprocessors,
shared memory, bandwidth of A100 SXM, H100 SXM, H200 SXM, HGX B200, GB200 NVL72 and GB300 NVL72),
and for what data sheets leave out (exact clock, L2 and usable memory) what the CUDA driver of such
a GPU reports, as OpenXLA publishes it in xla/backends/gpu/target_config/specs.
"""

from __future__ import annotations

from dataclasses import dataclass

from nvfp4_jax.quantizer import nearest_spelling


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU.

    Attributes:
      name: how it is asked for, `b200`.
      kind: how the driver names it, by which kernels are chosen.
      capability: (major, minor) of its compute capability.
      multiprocessors: of the whole GPU.
      fp32_lanes: FP32 units of a multiprocessor.
      clock_ghz: the highest.
      memory_bytes: usable, of the GPU's own memory.
      bandwidth: of that memory, bytes a second.
      l2_bytes: of its last cache.
      shared_bytes: shared memory of a multiprocessor; a block gets 1024 bytes less.
      per_host: GPUs that one host usually holds.
      nvlinks: of a GPU, as XLA is told; with none it takes a host's GPUs for joined by PCIe alone.
    """

    name: str
    kind: str
    capability: tuple[int, int]
    multiprocessors: int
    fp32_lanes: int
    clock_ghz: float
    memory_bytes: int
    bandwidth: int
    l2_bytes: int
    shared_bytes: int
    per_host: int = 8
    nvlinks: int = 0

    @property
    def target_config(self) -> str:
        """XLA's GpuTargetConfigProto in text form."""
        return _TEXT.format(
            gpu=self,
            major=self.capability[0],
            minor=self.capability[1],
            # wgmma is in sm_90a, tcgen05 and the casts to E2M1 in sm_100a, not in sm_90 or sm_100
            extension="ACCELERATED_FEATURES" if self.capability >= (9, 0) else "NONE",
            block_bytes=self.shared_bytes - 1024,
        )


_TEXT = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {gpu.shared_bytes}
  threads_per_core_limit: 2048
  core_count: {gpu.multiprocessors}
  fpus_per_core: {gpu.fp32_lanes}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {gpu.bandwidth}
  l2_cache_size: {gpu.l2_bytes}
  clock_rate_ghz: {gpu.clock_ghz}
  device_memory_size: {gpu.memory_bytes}
  shared_memory_per_block_optin: {block_bytes}
  cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {extension} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  device_interconnect_info {{ active_links: {gpu.nvlinks} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
device_description_str: "{gpu.kind}"
"""

_HOPPER_SHARED = 233_472  # bytes; Blackwell's as well
_ALL = (
    Gpu("a100", "NVIDIA A100-SXM4-80GB", (8, 0), 108, 64, 1.41, 85_100_068_864,
        2_039_040_000_000, 41_943_040, 167_936),
    Gpu("h100", "NVIDIA H100 80GB HBM3", (9, 0), 132, 128, 1.98, 85_029_158_912,
        3_352_320_000_000, 52_428_800, _HOPPER_SHARED),
    Gpu("h200", "NVIDIA H200 141GB HBM3e", (9, 0), 132, 128, 1.98, 151_397_597_184,
        4_800_000_000_000, 52_428_800, _HOPPER_SHARED),
    Gpu("b200", "NVIDIA B200", (10, 0), 148, 128, 1.965, 191_514_411_008,
        7_672_320_000_000, 132_644_864, _HOPPER_SHARED),
    Gpu("gb200", "NVIDIA GB200", (10, 0), 152, 128, 2.062, 197_897_748_480,
        7_928_064_000_000, 135_528_448, _HOPPER_SHARED, per_host=4),
    Gpu("gb300", "NVIDIA GB300", (10, 3), 152, 128, 2.07, 297_021_079_552,
        7_928_064_000_000, 135_528_448, _HOPPER_SHARED, per_host=4),
)  # fmt: skip
GPUS = {gpu.name: gpu for gpu in _ALL}


def find_gpu(name: str) -> Gpu:
    """The GPU called `name`, in any case of letters.

    Raises:
      ValueError: none is called so; the message offers the nearest and lists all.
    """
    if name.lower() not in GPUS:
        raise ValueError(f"no GPU is called {name!r}: {nearest_spelling(name, tuple(GPUS))}")
    return GPUS[name.lower()]
