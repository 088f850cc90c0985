"""Does it matter on how many devices a run is trained?

Claim: no more than the order of FP32 sums does. The first step's loss is that of one device to
1e-6, its gradients to 1e-5 of their norm; after 20 steps a run has drifted no farther from one
device's than that has from itself when every weight begins one FP32 unit in the last place off.
The same for a run that is saved on one mesh and continued on another. With its sums in one order
(--sum-parts, and --feature-parts for tensor) a run does not drift at all.
Command: python experiments/mesh_drift.py [--sum-parts 8 --feature-parts 2]
Cost: 25 to 35 minutes on two CPU cores, most of it compilation.
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
    meshes: tuple[str, ...] | None = None
    sum_parts: int | None = None
    feature_parts: int | None = None
    folder: Path | None = None


@dataclass(frozen=True)
class Setting:
    """What is the same on every mesh, and the folder of its runs."""

    folder: Path
    recipe: str
    sum_parts: int | None
    feature_parts: int | None

    @property
    def name(self) -> str:
        """The recipe, in few letters."""
        return Path(self.recipe).stem


def main(options: Options) -> None:
    """Train on every mesh, and print how far each is from one device."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    folder = options.folder or Path(tempfile.mkdtemp())
    folder.mkdir(exist_ok=True)
    (folder / "model.json").write_text(json.dumps(MODEL))
    (folder / "nvfp4.toml").write_text(RECIPE)
    settings = [
        Setting(folder, recipe, options.sum_parts, options.feature_parts)
        for recipe in ("bf16", str(folder / "nvfp4.toml"))
    ]
    meshes = options.meshes
    if meshes is None:
        ordered = MESHES if options.feature_parts else MESHES[:3]
        meshes = MESHES + MORE if options.sum_parts is None else ordered
    head = f"{'mesh':30} {'recipe':6} {'loss':>8} {'gradients':>10}"
    print(f"{head}   drift after {STEPS} steps, by seed")
    for mesh in meshes:
        for setting in settings:
            loss, gradients = first_step(setting, mesh)
            drifts = [drift(setting, mesh, seed) for seed in range(options.seeds)]
            after = " ".join(f"{value:.2e}" for value in drifts)
            print(f"{mesh:30} {setting.name:6} {loss:8.1e} {gradients:10.1e}   {after}", flush=True)
    last = meshes[-1] if options.feature_parts else MESHES[2]
    for setting in settings:
        drifts = [continued(setting, MESHES[1], last, seed) for seed in range(options.seeds)]
        after = " ".join(f"{value:.2e}" for value in drifts)
        print(f"{MESHES[1] + ', then ' + last:49} {setting.name:6}   {after}", flush=True)
    if options.sum_parts is None:
        print_control(settings, options.seeds)


def print_control(settings: list[Setting], seeds: int) -> None:
    """How far one device is from itself when it begins one unit in the last place off."""
    for setting in settings:
        loss, gradients = first_step(setting, None, nudge=True)
        after = " ".join(f"{one_ulp(setting, seed):.2e}" for seed in range(seeds))
        line = f"{'one device, one ulp':30} {setting.name:6} {loss:8.1e} {gradients:10.1e}"
        print(f"{line}   {after}", flush=True)


def choices(setting: Setting, mesh: str | None, seed: int) -> TrainConfig:
    """The run's choices; its workdir says them all."""
    folder = setting.folder
    return TrainConfig(
        workdir=folder / f"{setting.name}-{mesh}-{seed}",
        model=str(folder / "model.json"),
        recipe=setting.recipe,
        sum_parts=setting.sum_parts,
        feature_parts=setting.feature_parts,
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


def not_begun(setting: Setting, mesh: str | None, seed: int) -> TrainConfig:
    """The same in a folder without checkpoints."""
    return dataclasses.replace(choices(setting, mesh, seed), workdir=setting.folder / "none")


def first_step(setting: Setting, mesh: str | None, nudge: bool = False) -> tuple[float, float]:
    """(difference of the loss, of the gradients by norm) from one device, relative."""
    one_loss, one = loss_and_gradients(setting, None)
    loss, own = loss_and_gradients(setting, mesh, nudge)
    return abs(loss - one_loss) / one_loss, distance(own, one) / length(one)


def loss_and_gradients(
    setting: Setting, mesh: str | None, nudge: bool = False
) -> tuple[float, dict]:
    """Of the first step under seed 0; with `nudge`, every weight one unit in the last place off."""
    config = not_begun(setting, mesh, 0)
    run = prepare(config)
    state, _ = begin(run, print)
    if nudge:
        moved = nudged(jax.device_get(state.parameters), 0)
        state = dataclasses.replace(state, parameters=moved)
    batches = training_batches(run.corpus.train, batch=8, length=64, seed=0)
    loss, grads = Engine(run, []).gradients(state, 0, next(batches))
    return float(loss), jax.device_get(grads)


def trained(setting: Setting, mesh: str | None, seed: int) -> Path:
    """The folder of a finished run."""
    config = choices(setting, mesh, seed)
    if not (config.workdir / "parameters.safetensors").exists():
        train(config, Console(quiet=True))
    return config.workdir


def drift(setting: Setting, mesh: str, seed: int) -> float:
    """How far a mesh's run ended from one device's, over how far that one went."""
    one, own = (trained(setting, which, seed) for which in (None, mesh))
    return relative(setting, seed, own, one)


def continued(setting: Setting, first: str, then: str, seed: int) -> float:
    """The same for a run that is saved on one mesh and goes on on another."""
    begun = trained(setting, first, seed)
    config = dataclasses.replace(choices(setting, then, seed), workdir=setting.folder / "continued")
    shutil.rmtree(config.workdir, ignore_errors=True)
    shutil.copytree(begun, config.workdir)
    for path in (config.workdir / "checkpoints").glob(f"*{STEPS}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    train(config, Console(quiet=True))
    return relative(setting, seed, config.workdir, trained(setting, None, seed))


def one_ulp(setting: Setting, seed: int) -> float:
    """The same for one device whose weights begin one unit in the last place off."""
    config = not_begun(setting, None, seed)
    run = prepare(config)
    begun, _ = begin(run, print)
    before = jax.device_get(begun.parameters)
    state = dataclasses.replace(begun, parameters=nudged(before, seed))
    batches = training_batches(run.corpus.train, batch=8, length=64, seed=seed)
    engine = Engine(run, [])
    with compilation_cache(setting.folder / "compilation-cache"):
        for step in range(STEPS):
            state, _ = engine.step(state, step, next(batches))
    end = read_parameters(trained(setting, None, seed))
    return distance(jax.device_get(state.parameters), end) / distance(end, before)


def nudged(parameters: dict, seed: int) -> dict:
    """Every number moved to its neighbour above or below."""
    draw = np.random.default_rng(seed)
    far = np.array([-np.inf, np.inf], np.float32)
    ends = {path: draw.choice(far, part.shape) for path, part in parameters.items()}
    return {path: jnp.asarray(np.nextafter(parameters[path], end)) for path, end in ends.items()}


def relative(setting: Setting, seed: int, own: Path, one: Path) -> float:
    """Distance of two runs' parameters, over the distance of the second from its beginning."""
    config = not_begun(setting, None, seed)
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
