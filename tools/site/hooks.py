"""Hooks of MkDocs: pages that are no Markdown files of `docs/`.

The README is the front page, and the guide for contributors, the changelog, the plans that pages link to and the
notebooks are pages, too. Nothing is copied into `docs/`: each text has one place.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
TEXTS = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
_COMMENT = re.compile(r"^<!--.*?-->\n", re.MULTILINE | re.DOTALL)
_ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made of files elsewhere."""
    for name, page in TEXTS.items():
        files.append(File.generated(config, page, content=point_within((ROOT / name).read_text(encoding="utf-8"))))
    for path in sorted((ROOT / "plans").glob("*.yaml")):
        files.append(File.generated(config, f"plans/{path.name}", abs_src_path=str(path)))
    for path in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        text = as_markdown(json.loads(path.read_text(encoding="utf-8")), path.name)
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=text))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """The comments that say how examples are run are for tests; the folder `plans/` lies within the site."""
    markdown = _COMMENT.sub("", markdown).replace("](../plans/", "](plans/")
    return re.sub(r"\]\((notebooks/[^)]*)\.ipynb\)", r"](\1.md)", markdown)


def point_within(text: str) -> str:
    """The links of a page above `docs/`, as seen from within; those to code lead nowhere here, and are plain."""
    for name, page in TEXTS.items():
        text = text.replace(f"]({name})", f"]({page})")
    text = re.sub(r"\]\(docs/([^)]*)\.ipynb\)", r"](\1.md)", text)
    text = text.replace("](docs/", "](").replace('src="docs/', 'src="')
    return re.sub(r"\[([^]]*)\]\((?:tests|benchmarks|tools|brainsurgery_jax|\.github)/[^)]*\)", r"\1", text)


def as_markdown(notebook: dict[str, Any], name: str) -> str:
    """A notebook as Markdown: its texts, its code, and what each cell gave."""
    pieces = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            pieces.append(text)
        else:
            pieces += [f"```python\n{text}\n```", *(_as_shown(one) for one in cell["outputs"])]
    title, *rest = pieces
    return "\n\n".join([title, f"[The notebook]({name}), to run it yourself.", *rest])


def _as_shown(output: dict[str, Any]) -> str:
    if output["output_type"] == "stream":
        return _as_text(output["text"])
    if output["output_type"] == "error":
        return _as_text(output["traceback"])
    data = output["data"]
    if "text/html" in data:
        return "<div class='output'>\n" + "".join(data["text/html"]) + "\n</div>"
    for kind in ("image/svg+xml", "image/png"):
        if kind in data:
            return f"![]({''.join(_as_url(kind, ''.join(data[kind])))})"
    return _as_text(data["text/plain"])


def _as_url(kind: str, text: str) -> Iterator[str]:
    yield f"data:{kind};base64,"
    yield b64encode(text.encode()).decode() if kind.endswith("xml") else text.replace("\n", "")


def _as_text(lines: list[str] | str) -> str:
    return f"<pre class='output'>{escape(_ESCAPE.sub('', ''.join(lines)))}</pre>"
