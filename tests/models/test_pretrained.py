"""Hugging Face folders: there and back, in every spelling, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from nvfp4_jax import models
from tests.models.small import build, run, tokens

GOLDEN = Path(__file__).parents[1] / "data" / "nemotron"
RELEASED = {
    "mlp_hidden_act": "relu2",
    "hybrid_override_pattern": "M*-",
    "hidden_size": 16,
    "vocab_size": 11,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "attention_head_dim": 6,
    "mamba_num_heads": 4,
    "mamba_head_dim": 6,
    "ssm_state_size": 5,
    "n_groups": 2,
    "conv_kernel": 4,
    "chunk_size": 8,
    "rms_norm_eps": 1e-5,
}


def equal(a: models.Hybrid, b: models.Hybrid) -> None:
    jax.tree.map(np.testing.assert_array_equal, nnx.state(a), nnx.state(b))


@pytest.mark.parametrize("shard_bytes", [10**9, 4000], ids=["one file", "sharded"])
def test_round_trip(tmp_path, shard_bytes):
    model = build()
    models.save_pretrained(model, tmp_path / "m", shard_bytes=shard_bytes)
    again = models.from_pretrained(tmp_path / "m")
    equal(model, again)
    np.testing.assert_array_equal(run(again, tokens(1, 9)), run(model, tokens(1, 9)))
    files = list((tmp_path / "m").glob("*.safetensors"))
    assert (len(files) > 1) == (shard_bytes == 4000)
    names = {name for file in files for name in load_file(file)}
    assert "backbone.layers.0.mixer.conv1d.weight" in names
    assert len(names) == len(nnx.to_flat_state(nnx.state(model)))


def test_a_sharded_folder_without_its_index(tmp_path):
    model = build()
    models.save_pretrained(model, tmp_path, shard_bytes=4000)
    (tmp_path / "model.safetensors.index.json").unlink()
    equal(model, models.from_pretrained(tmp_path))


def test_bfloat16_files_become_float32_masters(tmp_path):
    model = build()
    models.save_pretrained(model, tmp_path, dtype=jnp.bfloat16)
    again = models.from_pretrained(tmp_path, dtype=jnp.bfloat16)
    rounded = jax.tree.map(lambda a: a.astype(jnp.bfloat16).astype(jnp.float32), nnx.state(model))
    jax.tree.map(np.testing.assert_array_equal, rounded, nnx.state(again))
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(again))} == {jnp.dtype("float32")}
    assert again.embed(tokens(1, 2)).dtype == jnp.bfloat16
    assert run(again, tokens(1, 2)).dtype == jnp.float32


@pytest.mark.parametrize("prefix", ["model", "backbone"])
@pytest.mark.parametrize("spelling", ["letters", "words", "both"])
def test_spellings(tmp_path, prefix, spelling):
    model = build()
    models.save_pretrained(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    renamed = {name.replace("backbone.", f"{prefix}."): array for name, array in tensors.items()}
    save_file(renamed, tmp_path / "model.safetensors")
    config = dict(RELEASED)
    if spelling != "letters":
        config["layers_block_type"] = ["linear_attention", "full_attention", "mlp"]
    if spelling == "words":
        del config["hybrid_override_pattern"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    equal(model, models.from_pretrained(tmp_path))


def test_saved_configuration_is_read_back_whole(tmp_path):
    model = build()
    models.save_pretrained(model, tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["time_step_limit"] == [0.0, {"__float__": "Infinity"}]
    assert models.from_pretrained(tmp_path).config == model.config


def test_other_tensors_beside_the_model(tmp_path):
    """The golden folder holds activations and gradients too."""
    assert models.from_pretrained(GOLDEN).config.pattern == "M-M-*-MM*-"


BROKEN = [
    ({"tie_word_embeddings": True}, "tie_word_embeddings = True"),
    ({"mlp_hidden_act": "gelu"}, "mlp_hidden_act = 'gelu'"),
    ({"use_bias": True}, "use_bias"),
    ({"hidden_size": None}, "hidden_size is missing"),
    ({"rms_norm_eps": 1e-5, "layer_norm_epsilon": 1e-6}, "contradict"),
    ({"hybrid_override_pattern": "M*E"}, "mixture of experts"),
    ({"hybrid_override_pattern": None}, "is missing"),
    ({"layers_block_type": ["mlp"]}, "contradict"),
    ({"layers_block_type": ["mlp", "lstm"]}, "lstm"),
    ({"n_groups": 3}, "config.json: mamba_heads = 4 is not a multiple"),
]


@pytest.mark.parametrize(("changes", "message"), BROKEN)
def test_unsupported_configurations(tmp_path, changes, message):
    values = {key: value for key, value in (RELEASED | changes).items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=message):
        models.from_pretrained(tmp_path)


def damaged(tmp_path: Path, change) -> Path:
    shutil.copytree(GOLDEN, tmp_path / "m")
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "m" / "model.safetensors")
    return tmp_path / "m"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.norm_f.weight"), "1 tensors missing, first 'model.norm_f.weight'"),
        (lambda t: t.pop("model.embeddings.weight"), "not a Nemotron-H checkpoint"),
        (lambda t: t.update(extra=np.zeros(3)), "model.safetensors: 'extra' has no place"),
        (
            lambda t: t.update({"lm_head.weight": np.zeros((320, 63), np.float32)}),
            r"'lm_head.weight' has the shape \(320, 63\), expected \(320, 64\)",
        ),
    ],
    ids=["missing", "foreign", "extra", "shape"],
)
def test_damaged_tensors(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        models.from_pretrained(damaged(tmp_path, change))


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        models.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(RELEASED))
    with pytest.raises(FileNotFoundError, match="safetensors"):
        models.from_pretrained(tmp_path)
    index = {"weight_map": {"model.norm_f.weight": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FileNotFoundError, match="00001-of-00002"):
        models.from_pretrained(tmp_path)


def test_saving_what_nemotron_has_no_word_for(tmp_path):
    with pytest.raises(ValueError, match="positions = 'rope'"):
        models.save_pretrained(build(positions="rope"), tmp_path)


def test_saving_over_other_files(tmp_path):
    models.save_pretrained(build(), tmp_path)
    with pytest.raises(FileExistsError, match="already"):
        models.save_pretrained(build(), tmp_path)
