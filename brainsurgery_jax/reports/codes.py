"""What the code of a diagnostic means: its section of docs/diagnostics.md, which is installed with the package."""

from __future__ import annotations

import re
from functools import cache

from brainsurgery_jax.documents import Entry, Record, Text, show_only
from brainsurgery_jax.packaged import find_packaged_folder

_CODE = re.compile(r"[a-z]+(-[a-z]+)*")


def is_code(word: str) -> bool:
    """Whether a word is written like the code of a diagnostic: words of small letters, joined by dashes."""
    return _CODE.fullmatch(word) is not None


@cache
def code_pages() -> dict[str, str]:
    """The section of each code, in Markdown, by the code."""
    text = (find_packaged_folder("pages", "docs") / "diagnostics.md").read_text(encoding="utf-8")
    sections = re.split(r"^(?=###? )", re.sub(r"<!--.*?-->\n?", "", text, flags=re.DOTALL), flags=re.MULTILINE)
    cut = (section.removeprefix("### ").partition("\n") for section in sections)
    return {title.strip(): body.strip() for title, _, body in cut if is_code(title.strip())}


def report_code(code: str) -> Record:
    """The section of a code: what it means, an example, and how to mend it."""
    page = code_pages()[code]
    return Record((*show_only(Text(f"{code}\n\n{page}")), Entry("code", code), Entry("page", page)))
