"""What jax's C++ layer says as it ends a process for a lost peer, told as one message.

A process of several that misses another is ended by jax itself, from a thread of C++, wherever it
hangs: some thirty lines on standard error, a stack trace among them. No handler of Python runs
then. So a second, small process reads the first one's standard error and passes it on; when the
end was of that kind, it says so in one line instead.

The second process runs this file by itself, which therefore imports nothing of the house.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import subprocess
import sys
from collections.abc import Iterator

# How a record of jax's C++ layer begins: severity, date, time, thread, file.
RECORD = re.compile(rb"([WEF])\d{4} [\d:.]+ +\d+ ([\w.]+):\d+\] ")
ABOUT_PEERS = (
    b"client.h",
    b"coordination_service.cc",
    b"coordination_service_agent.cc",
    b"pjrt_client.cc",
    b"preemption_sync_manager.cc",
)
FATAL = b"JAX distributed service detected fatal errors"
# What jax says of an orderly end, in which one process is gone before another.
PARTING = re.compile(
    rb"[WEF]\d{4} [^\n]*pjrt_client\.cc:\d+\] WatchTasksAsync failed[^\n]*\n"
    rb"(?:Additional GRPC error[^\n]*\n(?::[^\n]*\n)?)?"
    rb"(?:=== Source Location Trace: ===[^\n]*\n(?:external/[^\n]*\n)*\n?)?"
)
PATIENCE = 10.0  # seconds from a first complaint to the end; after them all is passed on


@contextlib.contextmanager
def read_by_another(who: str, address: str) -> Iterator[None]:
    """While open, what this process writes to standard error goes through a second one.

    Args:
      who: begins the message.
      address: where the processes meet.
    """
    before = os.dup(2)
    outlet, inlet = os.pipe()
    reader = subprocess.Popen(
        [sys.executable, "-I", __file__, who, address],
        stdin=outlet,
        start_new_session=True,  # Ctrl-C is not meant for it; it ends when this process does
    )
    os.close(outlet)
    os.dup2(inlet, 2)
    os.close(inlet)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(before, 2)
        os.close(before)
        with contextlib.suppress(subprocess.TimeoutExpired):
            reader.wait(PATIENCE)


def main(who: str, address: str) -> None:
    """Pass standard input on to standard error until it ends."""
    held, holding = b"", False
    while True:
        ready, _, _ = select.select([0], [], [], PATIENCE if holding else None)
        if not ready:
            held, holding = _pass_on(PARTING.sub(b"", held)), False
            continue
        data = os.read(0, 65536)
        if not data:
            break
        held += data
        if not holding:
            held, holding = _split(held)
    if FATAL in held:
        held = f"{who}: {explain(held.decode(errors='replace'), address)}\n".encode()
    _pass_on(PARTING.sub(b"", held))


def explain(text: str, address: str) -> str:
    """Why jax ended the process, by what it wrote."""
    if "RegisterTask" in text or "Wait_for_all_tasks_to_register" in text:
        return (
            f"the processes did not all come to {address} in time: start the same command once "
            "for each, give all the same address and number, and see that the port can be reached"
        )
    listed = re.search(r"stopped sending heartbeats\):\n((?:\d+\n)+)", text)
    if listed:
        lost = "process " + ", ".join(sorted(set(listed[1].split()), key=int))
        what = f"{lost} was lost: it does not answer any more"
    elif "leader task" in text:
        what = "process 0 was lost: it ended, or cannot be reached any more"
    else:
        what = "another process ended, or failed to end together with this one"
    return (
        f"{what}; what it printed last may say why. Nothing saved is lost: the same command on "
        "all processes continues from the last checkpoint"
    )


def _split(text: bytes) -> tuple[bytes, bool]:
    """Pass on what comes before a complaint about peers; (what is kept back, whether it is one)."""
    start = 0
    for line in text.splitlines(keepends=True):
        record = RECORD.match(line)
        if record and record[2] in ABOUT_PEERS:
            _pass_on(text[:start])
            return text[start:], True
        start += len(line)
    return _pass_on(text), False


def _pass_on(text: bytes) -> bytes:
    while text:
        text = text[os.write(2, text) :]
    return text


if __name__ == "__main__":
    main(*sys.argv[1:])
