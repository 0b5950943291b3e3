"""The documentation is built as a site, without the network, and nothing that it shows comes from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import brainsurgery_jax as bs
from tools.site import docstrings, hooks

ROOT = Path(__file__).resolve().parents[2]
NOWHERE = "http://127.0.0.1:9"
LOADED = re.compile(r"""<(?:script|img|iframe)[^>]+src="([^"]*)"|<link[^>]+href="([^"]*)"|url\(["']?([^"')]*)""")


def build(config: Path, place: Path) -> subprocess.CompletedProcess[str]:
    """The site of a configuration, built as `make site` does, in an environment that reaches nothing."""
    line = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(config)]
    reach = {"http_proxy": NOWHERE, "https_proxy": NOWHERE, "NO_MKDOCS_2_WARNING": "1", "PATH": "/usr/bin:/bin"}
    return subprocess.run([*line, "--site-dir", str(place)], cwd=ROOT, env=reach, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("site")
    done = build(ROOT / "mkdocs.yml", place)
    assert done.returncode == 0, done.stderr
    return place


def test_every_page_and_notebook_is_built(site: Path):
    assert (site / "index.html").exists()
    named = [p.relative_to(ROOT / "docs") for kind in ("md", "ipynb") for p in (ROOT / "docs").rglob(f"*.{kind}")]
    assert [path for path in named if not (site / path.with_suffix(".html")).exists()] == []


def test_pages_load_nothing_from_elsewhere(site: Path):
    loaded = {
        address
        for page in [*site.rglob("*.html"), *site.rglob("*.css")]
        for found in LOADED.findall(page.read_text(encoding="utf-8"))
        for address in found
        if address.startswith(("http:", "https:", "//"))
    }
    assert loaded == set()


def test_the_reference_has_every_public_name(site: Path):
    text = (site / "api.html").read_text(encoding="utf-8")
    public = [name for name in bs.__all__ if name != "__version__"]
    assert [name for name in public if f'id="brainsurgery_jax.{name}"' not in text] == []


def test_the_index_of_the_search_holds_what_pages_say(site: Path):
    index = (site / "search" / "search_index.js").read_text(encoding="utf-8")
    assert index.startswith("var __index = ")
    assert all(f'"location":"{page}' in index for page in ("ops.html#phlora", "api.html", "notebooks/"))


def test_a_link_that_leads_nowhere_fails_the_build(tmp_path: Path):
    pages = tmp_path / "docs"
    pages.mkdir()
    (pages / "index.md").write_text("# Start\n\n[There](nowhere.md) and [there](#nowhere)\n", encoding="utf-8")
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    config = tmp_path / "mkdocs.yml"
    kept = {"strict: true", *text[text.index("validation:") : text.index("not_in_nav:")].strip().splitlines()}
    config.write_text(
        "\n".join(["site_name: s", *(line for line in text.splitlines() if line in kept)]), encoding="utf-8"
    )
    done = build(config, tmp_path / "site")
    assert done.returncode != 0
    assert "'nowhere.md'" in done.stderr and "'#nowhere'" in done.stderr


def test_a_notebook_is_shown_with_what_its_cells_gave():
    cell = {"cell_type": "code", "source": ["1 < x"], "outputs": [
        {"output_type": "stream", "text": ["\x1b[31ma < b\x1b[0m\n"]},
        {"output_type": "display_data", "data": {"text/html": ["<b>shown</b>"], "text/plain": ["not shown"]}},
        {"output_type": "display_data", "data": {"image/png": "aGk=\n"}},
    ]}  # fmt: skip
    text = hooks.as_markdown({"cells": [{"cell_type": "markdown", "source": ["# Title"]}, cell]}, "x.ipynb")
    assert text.split("\n\n") == [
        "# Title", "[The notebook](x.ipynb), to run it yourself.", "```python\n1 < x\n```",
        "<pre class='output'>a &lt; b\n</pre>", "<div class='output'>\n<b>shown</b>\n</div>",
        "![](data:image/png;base64,aGk=)",
    ]  # fmt: skip


def test_the_readme_is_a_page_of_the_site():
    text = (
        "[a](docs/ops.md#add), [b](CONTRIBUTING.md), [c](tests/x.py), [d](https://docs/), [e](docs/notebooks/n.ipynb)"
    )
    found = "[a](ops.md#add), [b](contributing.md), c, [d](https://docs/), [e](notebooks/n.md)"
    assert hooks.point_within(text) == found


def test_examples_of_docstrings_are_code():
    text = "Count.\n\n**Arguments**: x.\n**Returns** y.\n**Example**:\n\n>>> f(1)\n2\n>>> f(2)\n\nThe end."
    parts = ["Count.", "**Arguments**: x.", "**Returns** y.", "**Example**:", "```pycon\n>>> f(1)\n2\n>>> f(2)\n```"]
    assert docstrings.fence(text).strip().split("\n\n") == [*parts, "The end."]


def test_the_plan_on_the_page_of_editors_names_a_schema():
    text = (ROOT / "docs" / "editors.md").read_text(encoding="utf-8")
    plan = text.partition("```yaml\n")[2].partition("```")[0]
    assert bs.load(yaml.safe_load(plan)).errors == ()
