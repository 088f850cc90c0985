"""How close could the native NVFP4 product come to the peak of a B200, by its machine code?

Claim: at 8192 cubed the main loop keeps the tensor cores at work for at least 80% of its time, and
so does the whole product, if L2 gives each SM 63 bytes a clock and shared memory serves reads and
writes side by side.
Command: JAX_PLATFORMS=cpu python -m experiments.blackwell_roofline
Cost: half a minute of a CPU. Nothing is executed on a GPU; no Blackwell was at hand.
Method: sizes, bytes, instructions and stages are counted in the SASS and PTX that the compiler
makes for sm_100a. A unit's time for one step of the main loop is what it has to do, counted, over
its rate. Rates are constants of others, named at `Rates`; where none is published, an assumption,
and the result is given for each. What is latency (barriers, first loads, last stores) is assumed.
Found: see BENCHMARKS.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from nvfp4_jax.gpus import Gpu, find_gpu
from nvfp4_jax.kernels.blackwell_gemm_tiling import STRIPE
from tests.kernels import tcgen05_ptx
from tests.kernels.blackwell_gemm_programs import VARIANTS, Compiled, compiled
from tests.kernels.blackwell_machine import snake

SIZE = 8192


@dataclass(frozen=True)
class Rates:
    """What one SM does in a clock, and latencies in clocks.

    Attributes:
      products: multiply-adds of E2M1, dense. CUTLASS, blackwell_functionality.md: kind::mxf4nvf4
        has 4 times the throughput of Hopper's FP8 (1979 TFLOP/s dense on 132 SMs at 1.83 GHz by
        NVIDIA's H100 data sheet: 4096). It agrees with 9 PFLOP/s of a B200 at 1.86 GHz.
      shared: bytes of shared memory. FlashAttention-4 (2026): 128, as on Hopper; SemiAnalysis
        (Dissecting Nvidia Blackwell, 2026) measured products of small shapes bound at it.
      l2: bytes from L2. Assumed: nothing is published for Blackwell. (NVIDIA's A100 white paper
        has 5120 a clock for 108 SMs, 47 each.) `l2_needed` says how many the bar takes.
      first, drain, last: assumed. From launch to the first product; from the end of a tile until
        its shared columns are read and the next may start; from the last product to the last store.
    """

    products: int = 16384
    shared: int = 128
    l2: int = 64
    first: int = 2500
    drain: int = 600
    last: int = 4000


RATES = Rates()


@dataclass(frozen=True)
class Counted:
    """What the compiled program does in one step of the main loop, of one SM, and for one tile.

    Attributes:
      ctas, m, n: of an instruction, hence of a tile.
      products, scale_copies, instructions: of the loop around the products.
      k: elements of the contraction of a step.
      operand_bytes: that the products of a step read from shared memory.
      scale_bytes: that are copied from shared to tensor memory.
      loaded_bytes: that arrive in shared memory.
      stages: of the ring.
      stored_bytes: of a tile, through shared memory.
      store_instructions: of one warp, for one tile.
    """

    ctas: int
    m: int
    n: int
    products: int
    scale_copies: int
    instructions: int
    k: int
    operand_bytes: int
    scale_bytes: int
    loaded_bytes: int
    stages: int
    stored_bytes: int
    store_instructions: int

    def tensor(self, rates: Rates = RATES) -> float:
        """Clocks that the tensor core needs for one step."""
        return self.m * self.n * self.k / self.ctas / rates.products


LANES, ROW = 128, 128  # rows and bytes of a row that one store covers
SCALE_COPY = 32 * 16  # bytes that one 32x128b copy moves
FULL_ARRIVALS = 512  # of a barrier that waits for four copies of 128 arrivals


def count(made: Compiled) -> Counted:
    """Read a compiled program."""
    step, store = made.program.loop("UTCOMMA"), made.program.loop("LDTM")
    products = tcgen05_ptx.products(made.ptx)
    ctas = 2 if step.count("UTCOMMA", "2CTA") else 1
    m, n = 128 * products[0].instruction["m_by_128"], 8 * products[0].instruction["n_eighths"]
    k = 64 * step.count("UTCOMMA")  # bit 31 of the instruction descriptor is 0: 64
    return Counted(
        ctas=ctas,
        m=m,
        n=n,
        products=step.count("UTCOMMA"),
        scale_copies=step.count("UTCCP"),
        instructions=len(step.instructions),
        k=k,
        operand_bytes=(m + n) // ctas * k // 2,
        scale_bytes=step.count("UTCCP") * SCALE_COPY,
        loaded_bytes=sum(tcgen05_ptx.expected_bytes(made.ptx)) // ctas,
        stages=tcgen05_ptx.arrivals(made.ptx).count(FULL_ARRIVALS),
        stored_bytes=made.program.count("UTMASTG") * LANES * ROW,
        store_instructions=len(store.instructions),
    )


@dataclass(frozen=True)
class Roof:
    """An assumption about what runs beside what, and the clocks of one step under it."""

    name: str
    step: float


def roofs(counted: Counted, rates: Rates = RATES) -> list[Roof]:
    """From the mildest assumption to the harshest."""
    tensor = counted.tensor(rates)
    scales = counted.scale_bytes / rates.shared
    reads = counted.operand_bytes / rates.shared + scales
    writes = counted.loaded_bytes / rates.shared
    stores = 2 * counted.stored_bytes / rates.shared / (SIZE / counted.k)
    l2 = counted.loaded_bytes / rates.l2
    return [
        Roof("published rates: tensor core, shared memory's reads", max(tensor, reads)),
        Roof("and scales are copied while nothing is multiplied", max(tensor + scales, reads)),
        Roof("and L2 gives an SM 64 bytes a clock", max(tensor + scales, reads, l2)),
        Roof("and reads and writes of shared memory share 128", max(l2, reads + writes + stores)),
    ]


def main_loop_share(counted: Counted, roof: Roof, rates: Rates = RATES) -> float:
    """Of the peak of the tensor cores, while the main loop runs."""
    return counted.tensor(rates) / roof.step


def waves(counted: Counted, multiprocessors: int) -> int:
    """Tiles that the busiest pair computes."""
    tiles = -(-SIZE // counted.m) * -(-SIZE // counted.n)
    return -(-tiles // (multiprocessors // counted.ctas))


def whole_share(
    counted: Counted,
    roof: Roof,
    multiprocessors: int,
    rates: Rates = RATES,
) -> float:
    """Of the peak, for all of 8192 cubed: the last wave, and latencies that nothing hides.

    The ring fills while a tile drains, so a loop that waits for memory makes up for it.
    """
    steps = SIZE // counted.k
    tensor = counted.tensor(rates)
    tile = max(steps * roof.step, steps * tensor + rates.drain)
    total = rates.first + waves(counted, multiprocessors) * tile + rates.last
    return SIZE**3 / rates.products / multiprocessors / total


def l2_needed(counted: Counted, multiprocessors: int, share: float, rates: Rates = RATES) -> float:
    """Bytes a clock that L2 must give each SM for this share of the peak, for all of 8192 cubed."""
    total = SIZE**3 / rates.products / multiprocessors / share
    tile = (total - rates.first - rates.last) / waves(counted, multiprocessors)
    return counted.loaded_bytes * (SIZE // counted.k) / tile


def hidden_latency(counted: Counted, rates: Rates = RATES) -> float:
    """Clocks between the moment a stage is free and the one its next content is needed."""
    tensor = counted.tensor(rates)
    return (counted.stages - 1) * tensor


def memory_share(counted: Counted, gpu: Gpu, rates: Rates = RATES) -> float:
    """Of HBM's bandwidth, at the tensor cores' pace, if L2 keeps nothing from wave to wave.

    Within a wave each row of tiles and each column is read once.
    """
    grid = -(-SIZE // counted.m), -(-SIZE // counted.n)
    order, pairs = snake(grid, 1, STRIPE), gpu.multiprocessors // counted.ctas
    starts = range(0, len(order), pairs)
    sides = [[set(side) for side in zip(*order[i : i + pairs], strict=True)] for i in starts]
    elements = max(len(rows) * counted.m + len(columns) * counted.n for rows, columns in sides)
    step_bytes = elements * counted.k * 9 // 16  # 4 bits, and 8 of scale for 16
    return step_bytes / counted.tensor(rates) * gpu.clock_ghz * 1e9 / gpu.bandwidth


def main() -> None:
    """Print what was counted, and what follows for the widest tile with a bfloat16 result."""
    gpu = find_gpu("b200")
    multiprocessors = gpu.multiprocessors
    variants = {variant: count(made) for variant, made in compiled("b200").items()}
    for (tiling, dtype), counted in variants.items():
        print(f"{tiling.ctas} x {tiling.n}, {dtype}: {counted}")
    widest = variants[VARIANTS[0]]
    print(
        f"{waves(widest, multiprocessors)} waves; a stage hides {hidden_latency(widest):.0f} clocks"
    )
    print(f"bytes a clock from L2 for 80%: {l2_needed(widest, multiprocessors, 0.8):.0f}")
    print(f"of HBM's bandwidth {memory_share(widest, gpu):.0%}")
    for roof in roofs(widest):
        loop, whole = main_loop_share(widest, roof), whole_share(widest, roof, multiprocessors)
        print(f"| {roof.name} | {roof.step:.0f} | {loop:.1%} | {whole:.1%} |")


if __name__ == "__main__":
    main()
