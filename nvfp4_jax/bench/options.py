"""What a person can choose about `nvfp4 bench`; without JAX, so that help comes at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Remat = Literal["none", "linear_inputs", "block"]
Scan = Literal["auto", "on", "off"]
Part = Literal["all", "fprop", "dgrad", "wgrad"]
PARTS: tuple[Part, ...] = ("all", "fprop", "dgrad", "wgrad")


@dataclass(frozen=True, kw_only=True)
class Timed:
    """How times are taken, and where figures go.

    Attributes:
      rounds: Timings of each variant, in turns with the others; the median counts.
      calls: Calls behind one another in a timing; as many as last 10 ms if left out.
      json: File to write the figures to, besides the table.
    """

    rounds: int = 15
    calls: int | None = None
    json: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Quantizers(Timed):
    """Time the quantizers, as shares of the bandwidth of a copy.

    Attributes:
      sizes: ROWSxCOLUMNS of bf16 tensors; 8192x8192 on a GPU and 512x512 on a CPU if left out.
      cases: Which to measure; all if left out.
      implementation: Which to measure beside each other; the best available if left out.
    """

    sizes: tuple[str, ...] = ()
    cases: tuple[str, ...] = ()
    implementation: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Linear(Timed):
    """Time Fprop, Dgrad and Wgrad of one linear layer, as a ratio to BF16.

    Attributes:
      shapes: TOKENSxINxOUT; left out, 4096 and 8192 cubed and a 12B's rectangles, or something
        small on a CPU.
      recipe: A recipe's name or the path of a TOML file.
      precision: Which of the recipe's precisions, if it has several.
      implementation: Which to measure beside each other; the best available if left out.
      parts: all is the three GEMMs in one program, as in training.
    """

    shapes: tuple[str, ...] = ()
    recipe: str = "nvfp4"
    precision: str | None = None
    implementation: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ("all",)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Measure the memory of a training step and what a linear keeps, as ratios to BF16.

    Attributes:
      model: A preset or a JSON file; 1b on a GPU and tiny on a CPU if left out.
      batch: Rows a step.
      length: Tokens a row; 4096 on a GPU and 256 on a CPU if left out.
      recipe: Recipes to compare with bf16.
      remat: What to keep for the backward pass, as in training.
      scan: Whether to trace repeated blocks once, as in training.
      json: File to write the figures to, besides the table.
    """

    model: str | None = None
    batch: int = 8
    length: int | None = None
    recipe: tuple[str, ...] = ("nvfp4-packed",)
    remat: Remat = "linear_inputs"
    scan: Scan = "auto"
    json: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Step:
    """Time whole training steps, as ratios to BF16, with MFU by Megatron's formula.

    Attributes:
      rounds: Steps timed of each variant, in turns with the others; the median counts.
      json: File to write the figures to, besides the table.
      models: Presets or JSON files; 150m and 1b on a GPU and tiny on a CPU if left out.
      batch: Rows a step, of all devices together.
      length: Tokens a row; 4096 on a GPU and 256 on a CPU if left out.
      documents: Documents packed into a row, of equal length.
      recipe: Recipes to compare with bf16.
      remat: What to keep for the backward pass, as in training.
      scan: Whether to trace repeated blocks once, as in training.
      mesh: Devices and what is cut over them, as in training: data=2,fsdp=4.
    """

    rounds: int = 15
    json: Path | None = None
    models: tuple[str, ...] = ()
    batch: int = 4
    length: int | None = None
    documents: int = 2
    recipe: tuple[str, ...] = ("nvfp4",)
    remat: Remat = "none"
    scan: Scan = "auto"
    mesh: str | None = None


@dataclass(frozen=True, kw_only=True)
class All:
    """Run every benchmark, and write one file of all figures.

    Attributes:
      json: The file.
      rounds: Timings of each variant, in turns with the others; the median counts.
      calls: Calls behind one another in a timing; as many as last 10 ms if left out.
      implementation: Which to measure beside each other; the best available if left out.
      sizes: Of the quantizers, as ROWSxCOLUMNS.
      shapes: Of the linear layer, as TOKENSxINxOUT.
      recipe: Of the linear layer and the step.
      packed: The recipe whose memory is compared with that of bf16.
      models: Of the step; the memory is that of the last.
      batch: Rows a step; what each benchmark has by itself if left out.
      length: Tokens a row.
    """

    json: Path
    rounds: int = 15
    calls: int | None = None
    implementation: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()
    shapes: tuple[str, ...] = ()
    recipe: str = "nvfp4"
    packed: str = "nvfp4-packed"
    models: tuple[str, ...] = ()
    batch: int | None = None
    length: int | None = None

    def each(self) -> tuple[Quantizers, Linear, Memory, Step]:
        """The options of every benchmark."""
        return (
            Quantizers(
                rounds=self.rounds,
                calls=self.calls,
                sizes=self.sizes,
                implementation=self.implementation,
            ),
            Linear(
                rounds=self.rounds,
                calls=self.calls,
                shapes=self.shapes,
                recipe=self.recipe,
                implementation=self.implementation,
            ),
            Memory(
                model=self.models[-1] if self.models else None,
                batch=self.batch or Memory.batch,
                length=self.length,
                recipe=(self.packed,),
            ),
            Step(
                rounds=self.rounds,
                models=self.models,
                batch=self.batch or Step.batch,
                length=self.length,
                recipe=(self.recipe,),
            ),
        )
