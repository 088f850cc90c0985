"""What jax writes as it ends a process for a lost peer comes out as one line; all else as it is.

The texts are what jaxlib 0.11.2 wrote in such cases, shortened.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from nvfp4_jax.training import last_words

FATAL = (
    "F1122 10:54:24.197086   18573 client.h:86] Terminating process because the JAX distributed "
    "service detected fatal errors. This most likely indicates that another task died; see the "
    "other task logs for more details. absl::Status: "
)
TRACE = "*** Check failure stack trace: ***\n    @     0x7f85a3b3d7d4  absl::LogMessage()\n"
UNHEALTHY = (
    "UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):\n1\n3\n"
    "The tasks have crashed. Check the task logs for an earlier error.\n"
)
COMPLAINT = (
    "E1122 10:54:24.196323   18562 coordination_service.cc:1518] [118] Use error polling to "
    f"propagate the following error to all tasks: {UNHEALTHY}\n"
)
LEADER = (
    "UNAVAILABLE: Failed to send RPC to coordination service. Either the leader task was "
    "preempted/died/restarted unexpectedly or this task is experiencing network issues.\n"
)
NOT_ALL_CAME = "DEADLINE_EXCEEDED: Deadline Exceeded\n\nRPC: /xla.Service/RegisterTask\n"


def passed_on(text: str) -> str:
    """What comes out at the other end for `text`."""
    done = subprocess.run(
        [sys.executable, "-I", last_words.__file__, "me", "node1:5000"],
        input=text.encode(),
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == b""
    return done.stderr.decode()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (COMPLAINT + FATAL + UNHEALTHY + TRACE, "me: process 1, 3 was lost"),
        (FATAL + LEADER + TRACE, "me: process 0 was lost"),
        (FATAL + NOT_ALL_CAME + TRACE, "me: the processes did not all come to node1:5000"),
        (FATAL + "INTERNAL: Shutdown barrier has failed.\n" + TRACE, "me: another process ended"),
    ],
)
def test_an_end_for_a_lost_peer_is_one_line(text, words):
    out = passed_on(f"a warning\n{text}")
    warning, message = out.splitlines()
    assert warning == "a warning"
    assert message.startswith(words)


@pytest.mark.parametrize(
    "text",
    ["", "no line end", "Traceback ...\nValueError: x\n", COMPLAINT + "Traceback ...\n"],
)
def test_what_is_no_such_end_is_passed_on(text):
    assert passed_on(text) == text


PARTING = (
    "W1122 14:39:06.572414   17468 pjrt_client.cc:1605] WatchTasksAsync failed for task 0: "
    "CANCELLED: CANCELLED\nAdditional GRPC error information from remote target coordination:\n"
    ":CANCELLED:CANCELLED [type.googleapis.com/tensorflow.DerivedStatus='']\n"
    "=== Source Location Trace: === \nexternal/xla+/xla/tsl/distributed_runtime/rpc/grpc_util.h:89"
    "\n\n"
)


def test_what_jax_says_of_an_orderly_end_on_gpus_is_dropped():
    assert passed_on(f"before\n{PARTING}{PARTING}after\n") == "before\nafter\n"
