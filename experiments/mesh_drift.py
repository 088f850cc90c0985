"""Does it matter on how many devices a run is trained?

Claim: no more than the order of FP32 sums does. The first step's loss is that of one device to
1e-6, its gradients to 1e-5 of their norm; after 20 steps a run has drifted no farther from one
device's than that has from itself when every weight begins one FP32 unit in the last place off.
The same for a run that is saved on one mesh and continued on another.
Command: python experiments/mesh_drift.py
Cost: 25 minutes on two CPU cores, most of it compilation.
Method: eight simulated CPU devices; a hybrid of 0.1 M parameters with a Mamba, an MLP and an
attention block, NVFP4 as in the paper in every linear of the blocks, all of whose codes depend on
global maxima and whose gradients are rounded stochastically. Drift is the distance of the final
parameters from those of one device, by norm, over the distance that training moved them. Meshes
save at step 10 and are continued on another (`then`). The control (`one ulp`) is one device, every
weight moved up or down by one unit in its last place at random before the first step.
Found: see BENCHMARKS.md.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console

from nvfp4_jax.training import TrainConfig, train
from nvfp4_jax.training.compilation import compilation_cache
from nvfp4_jax.training.data import training_batches
from nvfp4_jax.training.engine import Engine
from nvfp4_jax.training.prepare import prepare
from nvfp4_jax.training.resume import begin
from nvfp4_jax.training.workdir import read_parameters

MESHES = ("data=8", "data=4,fsdp=2", "data=2,fsdp=4", "data=2,fsdp=2,tensor=2")
MORE = ("data=4,tensor=2", "data=2,tensor=4", "data=2,sequence=2,tensor=2")
STEPS, HALF = 20, 10
MODEL = {
    "pattern": "M-*-",
    "hidden": 64,
    "vocabulary": 256,
    "ffn": 128,
    "attention_heads": 4,
    "kv_heads": 4,
    "head_dim": 16,
    "mamba_heads": 8,
    "mamba_head_dim": 16,
    "state": 16,
    "groups": 4,
    "chunk": 16,
}
RECIPE = """\
[precision.nvfp4.fprop]
input  = { format = "nvfp4" }
weight = { format = "nvfp4", granularity = "16x16" }
[precision.nvfp4.dgrad]
grad   = { format = "nvfp4", rounding = "stochastic" }
weight = { format = "nvfp4", granularity = "16x16" }
[precision.nvfp4.wgrad]
input  = { format = "nvfp4", rht = 16 }
grad   = { format = "nvfp4", rht = 16, rounding = "stochastic" }
[[rule]]
match = "blocks_*/**"
precision = "nvfp4"
[[rule]]
match = "**"
precision = "bf16"
"""


@dataclass(frozen=True)
class Options:
    """What to compare; the defaults are the experiment."""

    seeds: int = 5
    meshes: tuple[str, ...] = MESHES + MORE
    folder: Path | None = None


def main(options: Options) -> None:
    """Train on every mesh, and print how far each is from one device."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    folder = options.folder or Path(tempfile.mkdtemp())
    folder.mkdir(exist_ok=True)
    (folder / "model.json").write_text(json.dumps(MODEL))
    (folder / "nvfp4.toml").write_text(RECIPE)
    head = f"{'mesh':30} {'recipe':6} {'loss':>8} {'gradients':>10}"
    print(f"{head}   drift after {STEPS} steps, by seed")
    for mesh in options.meshes:
        for recipe in ("bf16", str(folder / "nvfp4.toml")):
            loss, gradients = first_step(folder, recipe, mesh)
            drifts = [drift(folder, recipe, mesh, seed) for seed in range(options.seeds)]
            after = " ".join(f"{value:.2e}" for value in drifts)
            name = Path(recipe).stem
            print(f"{mesh:30} {name:6} {loss:8.1e} {gradients:10.1e}   {after}", flush=True)
    for recipe in ("bf16", str(folder / "nvfp4.toml")):
        loss, gradients = first_step(folder, recipe, None, nudge=True)
        after = " ".join(f"{one_ulp(folder, recipe, seed):.2e}" for seed in range(options.seeds))
        name = Path(recipe).stem
        print(
            f"{'one device, one ulp':30} {name:6} {loss:8.1e} {gradients:10.1e}   {after}",
            flush=True,
        )
    if len(options.meshes) < 2:
        return
    for recipe in ("bf16", str(folder / "nvfp4.toml")):
        drifts = [continued(folder, recipe, *MESHES[1:3], seed) for seed in range(options.seeds)]
        after = " ".join(f"{value:.2e}" for value in drifts)
        print(f"{MESHES[1] + ', then ' + MESHES[2]:49} {Path(recipe).stem:6}   {after}", flush=True)


def choices(folder: Path, recipe: str, mesh: str | None, seed: int) -> TrainConfig:
    """The run's choices; its workdir says them all."""
    return TrainConfig(
        workdir=folder / f"{Path(recipe).stem}-{mesh}-{seed}",
        model=str(folder / "model.json"),
        recipe=recipe,
        seed=seed,
        mesh=mesh,
        steps=STEPS,
        batch=8,
        length=64,
        save_every=HALF,
        keep=3,
        eval_every=STEPS,
        eval_batches=1,
        compilation_cache=folder / "compilation-cache",
    )


def not_begun(folder: Path, recipe: str, mesh: str | None, seed: int) -> TrainConfig:
    """The same in a folder without checkpoints."""
    return dataclasses.replace(choices(folder, recipe, mesh, seed), workdir=folder / "none")


def first_step(
    folder: Path, recipe: str, mesh: str | None, nudge: bool = False
) -> tuple[float, float]:
    """(difference of the loss, of the gradients by norm) from one device, relative."""
    one_loss, one = loss_and_gradients(folder, recipe, None)
    loss, own = loss_and_gradients(folder, recipe, mesh, nudge)
    return abs(loss - one_loss) / one_loss, distance(own, one) / length(one)


def loss_and_gradients(
    folder: Path, recipe: str, mesh: str | None, nudge: bool = False
) -> tuple[float, dict]:
    """Of the first step under seed 0; with `nudge`, every weight one unit in the last place off."""
    config = not_begun(folder, recipe, mesh, 0)
    run = prepare(config)
    state, _ = begin(run, print)
    if nudge:
        moved = nudged(jax.device_get(state.parameters), 0)
        state = dataclasses.replace(state, parameters=moved)
    batches = training_batches(run.corpus.train, batch=8, length=64, seed=0)
    loss, grads = Engine(run, []).gradients(state, 0, next(batches))
    return float(loss), jax.device_get(grads)


def trained(folder: Path, recipe: str, mesh: str | None, seed: int) -> Path:
    """The folder of a finished run."""
    config = choices(folder, recipe, mesh, seed)
    if not (config.workdir / "parameters.safetensors").exists():
        train(config, Console(quiet=True))
    return config.workdir


def drift(folder: Path, recipe: str, mesh: str, seed: int) -> float:
    """How far a mesh's run ended from one device's, over how far that one went."""
    one, own = (trained(folder, recipe, which, seed) for which in (None, mesh))
    return relative(folder, recipe, seed, own, one)


def continued(folder: Path, recipe: str, first: str, then: str, seed: int) -> float:
    """The same for a run that is saved on one mesh and goes on on another."""
    begun = trained(folder, recipe, first, seed)
    config = dataclasses.replace(choices(folder, recipe, then, seed), workdir=folder / "continued")
    shutil.rmtree(config.workdir, ignore_errors=True)
    shutil.copytree(begun, config.workdir)
    for path in (config.workdir / "checkpoints").glob(f"*{STEPS}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    train(config, Console(quiet=True))
    return relative(folder, recipe, seed, config.workdir, trained(folder, recipe, None, seed))


def one_ulp(folder: Path, recipe: str, seed: int) -> float:
    """The same for one device whose weights begin one unit in the last place off."""
    config = not_begun(folder, recipe, None, seed)
    run = prepare(config)
    begun, _ = begin(run, print)
    before = jax.device_get(begun.parameters)
    state = dataclasses.replace(begun, parameters=nudged(before, seed))
    batches = training_batches(run.corpus.train, batch=8, length=64, seed=seed)
    engine = Engine(run, [])
    with compilation_cache(folder / "compilation-cache"):
        for step in range(STEPS):
            state, _ = engine.step(state, step, next(batches))
    end = read_parameters(trained(folder, recipe, None, seed))
    return distance(jax.device_get(state.parameters), end) / distance(end, before)


def nudged(parameters: dict, seed: int) -> dict:
    """Every number moved to its neighbour above or below."""
    draw = np.random.default_rng(seed)
    far = np.array([-np.inf, np.inf], np.float32)
    ends = {path: draw.choice(far, part.shape) for path, part in parameters.items()}
    return {path: jnp.asarray(np.nextafter(parameters[path], end)) for path, end in ends.items()}


def relative(folder: Path, recipe: str, seed: int, own: Path, one: Path) -> float:
    """Distance of two runs' parameters, over the distance of the second from its beginning."""
    config = not_begun(folder, recipe, None, seed)
    begin_at = jax.device_get(begin(prepare(config), print)[0].parameters)
    end = read_parameters(one)
    return distance(read_parameters(own), end) / distance(end, begin_at)


def distance(a: dict, b: dict) -> float:
    """The norm of the difference, over all parameters."""
    return length({path: a[path].astype(np.float64) - b[path] for path in a})


def length(a: dict) -> float:
    """The norm, over all parameters."""
    return float(np.sqrt(sum(np.square(part.astype(np.float64)).sum() for part in a.values())))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
