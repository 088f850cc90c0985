"""Documentation as text, from each format that Debian keeps it in."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile

import pytest

from nvfp4_jax.data.decode import decode, decode_all
from nvfp4_jax.data.find import LISTS
from nvfp4_jax.data.packages import Package, fetch, package_reader, read_list
from nvfp4_jax.data.source import Tally
from nvfp4_jax.training import UsageError

PAGE = """<!doctype html><html><head><title>no</title><style>no</style></head><body>
<nav>no</nav><div role="main"><h1>A  title<a class="headerlink" href="#">no</a></h1>
<p>One <b>bold</b>
 line &amp; more.<br>Next&nbsp;line</p><!-- no --><script>no</script>
<pre>  code:
    <span>kept</span>  as

  it is</pre><table><tr><td>a</td><td>b</td></tr></table><ul><li>x<li>y</ul></div>
<div>no</div></body></html>"""
PAGE_TEXT = """A title
One bold line & more.
Next line
  code:
    kept  as

  it is
a b
x
y"""

MANUAL = r"""'\" t
.\" a comment
.de IX
hidden
..
.if \nF \{\
.  hidden too
.\}
.TH NAME 1 "2026-01-01"
.SH "NAME"
name \- does \fBthings\fR \(em well
.PP
.BR open (2)
says \*(C`hello\*(C' and \e\|n
.IP "first" 4
an item"""
MANUAL_TEXT = """NAME 1 2026-01-01

NAME
name - does things -- well

open(2)
says "hello" and \\n

first
an item"""

INFO = (
    "This is a.info\n\x1f\nFile: a.info,  Node: Top,  Next: B,  Up: (dir)\n\nThe *note top: B.\n"
    "\x1f\nFile: a.info,  Node: B,  Prev: Top\n\nThe second.\n\x1f\nTag Table:\nNode: Top\x7f12\n"
)


def test_html():
    (page,) = decode("a/page.html", PAGE.encode())
    assert page.data.decode() == PAGE_TEXT
    assert [d.data for d in decode("empty.html", b" <!-- only this --> ")] == [b""]


def test_manual_pages():
    (page,) = decode("usr/share/man/man1/name.1.gz", gzip.compress(MANUAL.encode()))
    assert page.path == "usr/share/man/man1/name.1"
    assert page.data.decode() == MANUAL_TEXT


def test_info_manuals_are_cut_at_their_nodes():
    found = [(d.path, d.data) for d in decode("a.info.gz", gzip.compress(INFO.encode()))]
    assert found == [("a.info#Top", b"The top B."), ("a.info#B", b"The second.")]


def test_dictionaries_are_read_by_their_index():
    """Offsets and lengths in base 64: B is 1, BA is 64."""
    text = b"about" + b"apple: fruit" + b"apply: do" + b"zebra: horse"
    index = "00-database-info\tA\tF\napple\tF\tM\nappled\tF\tM\napply\tR\tJ\nzebra\ta\tM\n"
    files = [("d/x.dict.dz", gzip.compress(text)), ("d/x.index", index.encode()), ("d/y", b"y")]
    for order in (files, files[::-1]):
        found = {d.path: d.data for d in decode_all(order)}
        assert found == {
            "d/x.dict.dz#app": b"apple: fruit\napply: do",
            "d/x.dict.dz#zeb": b"zebra: horse",
            "d/y": b"y",
        }


def test_what_is_not_gzip_is_named():
    with pytest.raises(UsageError, match=r"cannot decompress a/b\.txt\.gz: "):
        list(decode("a/b.txt.gz", b"plain"))


def archive(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


CONTENT = archive(**{"doc/a.html": b"<p>text", "doc/b.png": b"\x89PNG", "doc/c.txt": b"more"})


@pytest.fixture
def debian(tmp_path, monkeypatch):
    """Stand-ins for apt-get and dpkg-deb, whose packages are plain tar files."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "content.tar").write_bytes(CONTENT)
    scripts = {
        "apt-get": f"case $2 in some-doc|some-doc=1) cp {tools}/content.tar some-doc_1_all.deb ;;\n"
        '*) echo "W: noise" >&2; echo "E: Version not found" >&2; exit 100 ;; esac',
        "dpkg-deb": 'case $1 in --field) echo 1 ;; *) cat "$2" ;; esac',
    }
    for name, script in scripts.items():
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=":")
    folder = tmp_path / "packages"
    folder.mkdir()
    return folder


def package(version: str = "1", sha256: str | None = None) -> Package:
    digest = sha256 or hashlib.sha256(CONTENT).hexdigest()
    return Package("some-doc", version, digest, ("*.html", "*.txt"))


def test_a_package_is_fetched_once_and_read_by_its_patterns(debian):
    file = fetch(package(), debian, any_version=False)
    assert fetch(package(), debian, any_version=False) == file == debian / "some-doc_1_all.deb"
    reader, tally = package_reader(package(), file), Tally()
    found = {d.path: d.data for d in reader.read(tally)}
    assert found == {"some-doc/doc/a.html": b"text", "some-doc/doc/c.txt": b"more"}
    source = reader.note(tally)
    assert (source.version, source.sha256, source.documents) == ("1", package().sha256, 2)


def test_another_package_than_the_list_names_is_refused(debian):
    with pytest.raises(
        UsageError, match="apt-get download some-doc=2 failed: E: Version not found"
    ):
        fetch(package("2"), debian, any_version=False)
    with pytest.raises(UsageError, match=r"another sha256 than 00, .* --any-version takes it"):
        fetch(package(sha256="00"), debian, any_version=False)
    assert fetch(package("2", sha256="00"), debian, any_version=True).exists()


def test_a_machine_without_apt_says_so(debian, monkeypatch):
    monkeypatch.setenv("PATH", str(debian))
    with pytest.raises(
        UsageError, match=r"some-doc: this machine has no apt-get; on one with Debian"
    ):
        fetch(package(), debian, any_version=False)


def test_the_shipped_list_is_one():
    (packages,) = (read_list(path) for path in LISTS.values())
    assert len({p.name for p in packages}) == 9
    assert all(len(bytes.fromhex(p.sha256)) == 32 and p.files and p.version for p in packages)
