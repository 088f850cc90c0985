"""A page of HTML as text: what a reader would read, without what surrounds it.

Kept is the element that the page itself calls its main one, if it does, and from it the text,
with lines where a browser would break them and `pre` as it is. Left out are scripts, styles,
navigation, and the bars that documentation generators put around every page: a model would learn
them by heart before anything else.
"""

from __future__ import annotations

import re
from typing import Any

from nvfp4_jax.data.extra import library

BLOCKS = (
    *("address", "article", "aside", "blockquote", "br", "caption", "center", "dd", "div", "dl"),
    *("dt", "fieldset", "figcaption", "figure", "form", "h1", "h2", "h3", "h4", "h5", "h6", "hr"),
    *("li", "main", "ol", "p", "pre", "section", "table", "tbody", "tfoot", "thead", "tr", "ul"),
)
CELLS = ("td", "th")
SKIPPED = (
    *("script", "style", "head", "nav", "header", "footer", "noscript", "template", "svg"),
    "button",
)
# Classes and ids of what Sphinx, Scribble, DocBook and Erlang's generator put around a page.
CHROME = (
    *("headerlink", "sphinxsidebar", "related", "navheader", "navfooter", "topbar", "leftnav"),
    *("tocset", "navsettop", "navsetbottom", "versionbox"),
)
# Code points that are no characters, and so in no text: what folding blanks must not fold.
LINE, CODE_LINE, SPACE = "\ufdd0", "\ufdd1", "\ufdd2"
_MARKS = {LINE: "\n", CODE_LINE: "\n", SPACE: " ", "\xa0": " "}
_BLANKS = re.compile(r"[ \t\r\n\f]+")
_LINES = re.compile(f" ?{LINE}[{LINE} ]*")
_CHROME = f"//*[{' or '.join(f"@class='{name}' or @id='{name}'" for name in CHROME)}]"


def html_text(page: bytes) -> str:
    """The text of a page; empty if there is none."""
    html, etree = library("lxml.html"), library("lxml.etree")
    try:
        tree = html.document_fromstring(page, parser=html.HTMLParser(encoding="utf-8"))
    except etree.ParserError:  # no element at all
        return ""
    etree.strip_elements(tree, *SKIPPED, etree.Comment, with_tail=False)
    for element in tree.xpath(_CHROME):
        element.drop_tree()
    found = tree.xpath("//main | //*[@role='main']")
    return _text(found[0] if found else tree)


def _text(root: Any) -> str:
    """Marks where lines end, and what is preformatted; then blanks are folded all at once."""
    for element in root.iter("pre"):
        code = element.text_content()
        for child in list(element):
            element.remove(child)
        element.text = code.replace("\r", "").replace("\n", CODE_LINE).replace(" ", SPACE)
    for element in root.iter(*BLOCKS):
        element.text = LINE + (element.text or "")
        element.tail = LINE + (element.tail or "")
    for element in root.iter(*CELLS):
        element.tail = " " + (element.tail or "")
    folded = _LINES.sub(LINE, _BLANKS.sub(" ", root.text_content()))
    for mark, meant in _MARKS.items():
        folded = folded.replace(mark, meant)
    return folded.strip()
