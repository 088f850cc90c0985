"""What is written on the command line, judged: sizes, names, and which implementation.

Everything that a person may mistype raises a `UsageError` here, before anything is measured.
"""

from __future__ import annotations

from pathlib import Path

from nvfp4_jax.kernels.select import best, unsupported
from nvfp4_jax.quantizer import nearest_spelling
from nvfp4_jax.training.errors import UsageError


def sizes(flag: str, words: tuple[str, ...], names: str) -> list[tuple[int, ...]]:
    """`("4096x8192",)` as numbers; `names` says how one is written, such as ROWSxCOLUMNS.

    Raises:
      UsageError: a word of another form, or a size of zero.
    """
    return [_size(flag, word, names) for word in words]


def one_of(flag: str, word: str, allowed: tuple[str, ...]) -> str:
    """`word`, which must be one of `allowed`.

    Raises:
      UsageError: it is not; the message offers the nearest.
    """
    if word not in allowed:
        raise UsageError(f"{flag} {word}: {nearest_spelling(word, allowed)}")
    return word


def implementations(names: tuple[str, ...]) -> tuple[str, ...]:
    """The implementations to measure: those named, or the best available.

    Raises:
      UsageError: one that does not exist or cannot run here.
    """
    for name in names:
        if reason := unsupported(name):
            raise UsageError(f"--implementation {name}: {reason}")
    return tuple(dict.fromkeys(names)) or (best()[0],)


def at_least_one(flag: str, number: int | None) -> None:
    """Raise a `UsageError` for a count below 1."""
    if number is not None and number < 1:
        raise UsageError(f"{flag} {number}: give at least 1")


def writable(flag: str, path: Path | None) -> None:
    """Raise a `UsageError` for a path that no file can be written to."""
    if path is None:
        return
    if path.is_dir():
        raise UsageError(f"{flag} {path}: this is a folder; name a file")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{flag} {path}: its folder does not exist; make it first")


def _size(flag: str, word: str, names: str) -> tuple[int, ...]:
    parts, wanted = word.split("x"), names.count("x") + 1
    numbers = [int(part) for part in parts if part.isascii() and part.isdigit()]
    if not (len(parts) == len(numbers) == wanted) or not all(numbers):
        example = "x".join(["4096"] * wanted)
        raise UsageError(f"{flag} {word}: write {names}, such as {example}")
    return tuple(numbers)
