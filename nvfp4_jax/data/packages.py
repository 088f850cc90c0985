"""Debian packages as sources: fetched by apt-get, which checks who signed them, and read in place.

A corpus is a committed list (`debian_docs.toml`): names, versions and SHA-256 of packages, and
which of their files are text. The same list gives the same tokens. Debian keeps the newest version
of a package only, so that a list grows old when a package is mended; then `--any-version` takes
what there is, and the manifest says which versions that was.
"""

from __future__ import annotations

import subprocess
import tarfile
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import msgspec

from nvfp4_jax.data.decode import decode_all
from nvfp4_jax.data.source import Reader, Tally
from nvfp4_jax.training.corpus import Document
from nvfp4_jax.training.errors import UsageError
from nvfp4_jax.training.manifest import sha256


class Package(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A package of a list: its name, version and SHA-256, and the patterns of its texts."""

    name: str
    version: str
    sha256: str
    files: tuple[str, ...]


def read_list(path: Path) -> tuple[Package, ...]:
    """The packages of a list."""
    table = tomllib.loads(path.read_text())
    return msgspec.convert(table["package"], tuple[Package, ...])


def fetch(package: Package, folder: Path, any_version: bool) -> Path:
    """The package's file in `folder`, downloaded if it is not there.

    Raises:
      UsageError: apt-get is missing or has no such version, or the file is not the one of the list.
    """
    if found := _found(package, folder, any_version):
        return found
    wanted = package.name if any_version else f"{package.name}={package.version}"
    _run(package, "apt-get", "download", wanted, folder=folder)
    if found := _found(package, folder, any_version):
        return found
    raise UsageError(
        f"{package.name} {package.version} as downloaded to {folder} has another sha256 than "
        f"{package.sha256}, the one of the list; --any-version takes it all the same"
    )


def package_reader(package: Package, archive: Path) -> Reader:
    """The texts of a package, by their paths in it: `perl-doc/usr/share/perl/...`."""
    version = _run(package, "dpkg-deb", "--field", str(archive), "Version").strip()

    def read(tally: Tally) -> Iterator[Document]:
        with archive.open("rb") as file:
            tally.digest.update(file.read())
        for document in decode_all(_files(package, archive)):
            yield Document(f"{package.name}/{document.path}", document.data)

    return Reader(package.name, lambda tally: tally.texts(read(tally)), version)


def _files(package: Package, archive: Path) -> Iterator[tuple[str, bytes]]:
    """(path, content) of the files that the list calls text, in the order of the package."""
    command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
                for member in tar:
                    path = member.name.removeprefix("./")
                    if member.isfile() and any(fnmatchcase(path, p) for p in package.files):
                        content = tar.extractfile(member)
                        assert content is not None
                        yield path, content.read()
        except tarfile.TarError as error:
            raise UsageError(f"{archive}: no whole package: {error}; remove it") from None


def _found(package: Package, folder: Path, any_version: bool) -> Path | None:
    files = sorted(folder.glob(f"{package.name}_*.deb"))
    fit = [path for path in files if any_version or sha256(path) == package.sha256]
    return fit[-1] if fit else None


def _run(package: Package, *command: str, folder: Path | None = None) -> str:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UsageError(
            f"{package.name}: this machine has no {command[0]}; on one with Debian or Ubuntu it is "
            "there, and the corpus prepared there can be copied"
        ) from None
    if done.returncode:
        raise UsageError(
            f"{package.name}: {' '.join(command)} failed: {_last_line(done.stderr)}; run apt-get "
            "update, and if Debian has a newer version by now, --any-version takes that"
        )
    return done.stdout


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "no message")
