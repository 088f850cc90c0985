"""ruff and pyright have nothing to say, experiments say theirs, and links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "command",
    [("ruff", "check", "."), ("ruff", "format", "--check", "."), ("pyright",)],
    ids=" ".join,
)
def test_nothing_to_say(command):
    program, *arguments = command
    done = subprocess.run(
        [sys.executable, "-m", program, *arguments], cwd=CHECKOUT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_experiment_says_what_it_claims_and_is_in_the_index():
    folder = CHECKOUT / "experiments"
    told = {p.name: p.read_text() for p in folder.glob("*.py") if not p.match("*_worker.py")}
    index = (folder / "README.md").read_text()
    assert sorted(re.findall(r"\[(\w+\.py)\]", index)) == sorted(told)
    for name, text in told.items():
        words = re.findall(r"^(\w+)(?:, .*)?:", text.split('"""')[1], flags=re.MULTILINE)
        assert {"Claim", "Command", "Cost", "Method", "Found"} <= set(words), name


def test_links_from_document_to_document_lead_somewhere():
    links = [
        (document, *link)
        for document in [*CHECKOUT.glob("*.md"), *CHECKOUT.glob("experiments/**/*.md")]
        for link in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", document.read_text())
    ]
    assert len(links) > 20
    for document, path, anchor in links:
        target = document.parent / path if path else document
        assert target.exists(), (document, path)
        assert not anchor or anchor in anchors(target), (document, path, anchor)


def anchors(document: Path) -> set[str]:
    """What its headings are called in links."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
