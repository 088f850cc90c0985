"""Which model: a preset by name, or a JSON file with the fields of a `HybridConfig`.

    {"pattern": "M-*-", "hidden": 64, "vocabulary": 256, "ffn": 128, ...}

Infinity, which JSON has no number for, is the string "inf".
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import msgspec

from nvfp4_jax import models
from nvfp4_jax.quantizer import nearest_spelling
from nvfp4_jax.training.corpus import AnyCorpus
from nvfp4_jax.training.errors import UsageError


def choose_model(name: str) -> models.HybridConfig:
    """The configuration that `--model NAME` asks for.

    Raises:
      UsageError: no such preset or file, or a file that does not describe a model.
    """
    if name in models.PRESETS:
        return models.preset(name)
    path = Path(name)
    if path.suffix != ".json" and not path.exists():
        near = nearest_spelling(name, tuple(models.PRESETS))
        raise UsageError(f"--model {name}: no preset of this name and no file; {near}")
    try:
        return _decode(path.read_bytes())
    except OSError as error:
        raise UsageError(f"--model {name}: cannot read the file: {error.strerror}") from None
    except (ValueError, TypeError) as error:
        raise UsageError(f"--model {name}: {error}") from None


def check_vocabulary(config: models.HybridConfig, name: str, corpus: AnyCorpus) -> None:
    """Raise a `UsageError` when the model has fewer tokens than the text."""
    if config.vocabulary < corpus.vocabulary:
        raise UsageError(
            f"--model {name}: vocabulary = {config.vocabulary}, but the tokens of {corpus.name} "
            f"are {corpus.vocabulary}; give it at least that many"
        )


def describe_model(config: models.HybridConfig) -> dict:
    """The configuration as JSON can hold it; `choose_model` reads it back from a file."""
    fields = dataclasses.asdict(config)
    fields["dt_limit"] = ["inf" if math.isinf(bound) else bound for bound in config.dt_limit]
    return fields


def _decode(data: bytes) -> models.HybridConfig:
    fields = json.loads(data)
    if not isinstance(fields, dict):
        raise ValueError("expected a JSON object with the fields of a HybridConfig")
    known = [field.name for field in dataclasses.fields(models.HybridConfig)]
    unknown = next((name for name in fields if name not in known), None)
    if unknown is not None:
        raise ValueError(f"unknown field {unknown!r}: {nearest_spelling(unknown, known)}")
    if isinstance(fields.get("dt_limit"), list):
        fields["dt_limit"] = [math.inf if b == "inf" else b for b in fields["dt_limit"]]
    return msgspec.convert(fields, models.HybridConfig)
