"""What a person can choose about `nvfp4 plan`; without JAX, so that help comes at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Foresee a run on a cluster that need not be there: memory, communication, time.

    Compiles the real training step for those GPUs, on this machine's CPU. Takes a minute or two.

    Attributes:
      model: A preset (nano-12b-v2, 1b, ...) or a JSON file with the fields of a HybridConfig.
      recipe: A recipe's name (nvfp4, nvfp4-12b, bf16, ...) or the path of a TOML file.
      gpu: Which GPUs (a100, h100, h200, b200, gb200, gb300).
      gpus: How many, to find the best mesh for; a mesh says it otherwise.
      mesh: Devices and what is cut over them, data=8,fsdp=8; searched for if left out.
      batch: Rows a step, of all GPUs together.
      length: Tokens a row.
      microbatches: Parts a batch is computed in; searched for if left out.
      remat: As of train; searched for if left out.
      scan: As of train.
      gather: As of train.
      documents: Packed into a row, of equal length; attention does not look across them.
      tokens: Of the whole run, for its time.
      tries: How many to compile at most, the best first, until one fits.
      json: Print JSON.
    """

    model: str = "nano-12b-v2"
    recipe: str = "nvfp4"
    gpu: str = "b200"
    gpus: int | None = None
    mesh: str | None = None
    batch: int = 768
    length: int = 8192
    microbatches: int | None = None
    remat: Literal["none", "linear_inputs", "block"] | None = None
    scan: Literal["auto", "on", "off"] = "auto"
    gather: Literal["auto", "packed", "bf16"] = "auto"
    documents: int = 1
    tokens: float = 1e12
    tries: int = 3
    json: bool = False
