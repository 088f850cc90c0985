"""`nvfp4 data verify`: is a prepared folder what its manifest says, to the last bit?"""

from __future__ import annotations

from rich.console import Console

from nvfp4_jax.data.options import Verify
from nvfp4_jax.data.report import part
from nvfp4_jax.training.errors import UsageError
from nvfp4_jax.training.manifest import check_contents, is_prepared, read_manifest


def verify(options: Verify, console: Console | None = None) -> None:
    """Read every file of `options.folder` and compare it with the manifest.

    Raises:
      UsageError: no prepared folder, or one that is damaged; names the file.
    """
    if not is_prepared(options.folder):
        raise UsageError(f"{options.folder}: no prepared folder; nvfp4 data prepare makes one")
    manifest = read_manifest(options.folder)
    total, done = sum(stored.bytes for stored in manifest.stored), 0
    with part(console or Console(), "verifying", total) as show:
        for stored in manifest.stored:
            check_contents(options.folder, stored)
            done += stored.bytes
            show(done, f"{len(manifest.stored)} files, {done / 1e6:,.1f} MB, all as they should be")
