"""The comparison of one device's first loss and gradients with those of meshes, in small."""

from __future__ import annotations

import json

import numpy as np
import pytest

from experiments import same_bits
from nvfp4_jax.training.errors import UsageError
from nvfp4_jax.training.lone_step import LoneStep, compile_gradients, compile_loss


@pytest.fixture
def options(tmp_path) -> same_bits.Options:
    shape = {"pattern": "-", "hidden": 16, "vocabulary": 64, "ffn": 32}
    (tmp_path / "model.json").write_text(json.dumps(shape))
    chosen = {"recipes": ("bf16",), "meshes": ("data=2", "tensor=2"), "length": 8}
    return same_bits.Options(model=str(tmp_path / "model.json"), **chosen)


def test_sums_in_one_order_have_the_same_bits(options, capsys):
    same_bits.main(options)
    _, *meshes = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in meshes] == ["data=2:", "tensor=2:"]
    assert all("loss 0.0e+00; 0 of " in line for line in meshes)


def test_every_number_that_differs_is_counted():
    one = np.array([3.0, 0.0]), np.array([4.0])
    other = np.array([3.0, -0.0]), np.array([4.5])
    line = same_bits.told("data=2", (2.0, list(one)), (2.5, list(other)))
    assert line == "data=2: loss 2.5e-01; 1 of 3 gradients differ, 1.0e-01 by norm"


def test_parts_that_cannot_be_are_refused(options):
    step = same_bits.steps(options, "bf16")["data=2"]
    with pytest.raises(UsageError, match="--sum-parts 3"):
        compile_gradients(LoneStep(**vars(step) | {"sum_parts": 3}))
    with pytest.raises(UsageError, match="--sum-parts: a loss alone"):
        compile_loss(step)
