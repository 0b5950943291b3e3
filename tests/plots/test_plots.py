"""Pictures and reports: what is in them, that names are text, and which files are written."""

from __future__ import annotations

import xml.dom.minidom
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

import brainsurgery_jax as bs
from brainsurgery_jax.cli.diff import Wishes
from brainsurgery_jax.cli.diff import diff as diff_command
from brainsurgery_jax.cli.inspect_ import Looks, inspect
from brainsurgery_jax.cli.plotting import PlotTo, wish_plot
from brainsurgery_jax.cli.report import ReportWishes
from brainsurgery_jax.cli.report import report as report_command
from brainsurgery_jax.cli.spectrum import spectrum
from brainsurgery_jax.plots import canvas
from tests.checkpoints import normal, write

HOSTILE = "<script>alert(1)</script>$x_1^$\n\x1b[31m&\"'\ufffe\x00.w"
PLAIN = Wishes()


@pytest.fixture
def sides(here: Path) -> tuple[str, str]:
    """Two checkpoints of three layers that differ, with a name that is an attack."""
    left = {f"h.{i}.{m}.w": normal((8, 6), seed=i) for i in range(3) for m in ("attn", "mlp")} | {
        HOSTILE: normal((4, 4))
    }
    right = {
        name: x + normal(x.shape, seed=5) * 0.1 if "mlp" in name or name == HOSTILE else x for name, x in left.items()
    }
    right["h.1.mlp.w"][0, 0] = np.nan
    right["new"] = np.zeros(3)
    return str(write(here / "left.safetensors", left)), str(write(here / "right.safetensors", right))


class Page(HTMLParser):
    """What a page holds: its tags, their attributes, and its text."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(Path(path).read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for key, value in attrs if key in ("src", "href", "xlink:href", "action")]
        assert not any(key.startswith("on") for key, _ in attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


def check_safe(page: Page) -> None:
    """Nothing runs, and nothing is loaded from elsewhere."""
    assert not {"script", "iframe", "object", "embed", "link", "form"} & set(page.tags)
    assert all(address.startswith(("#", "data:image/png")) for address in page.addresses)


def draw(command: str, sides: tuple[str, str], path: str, *, overwrite: bool = False) -> None:
    plot = PlotTo(path, overwrite)
    match command:
        case "inspect":
            assert inspect(sides[0], None, "compact", stats=False, looks=Looks(plot=plot)) == 0
        case "diff":
            assert diff_command(*sides, PLAIN, json=False, plot=plot) == 1
        case _:
            spectrum(sides, None, None, memory=None, json=False, plot=plot)


@pytest.mark.parametrize("command", ["inspect", "diff", "spectrum"])
def test_every_kind_of_file_is_written_and_names_are_text_in_it(command: str, sides: tuple[str, str]):
    for path in ("a.svg", "a.png", "a.html"):
        draw(command, sides, path)
    root = xml.dom.minidom.parse("a.svg").documentElement
    assert root is not None
    texts = [node.firstChild.nodeValue or "" for node in root.getElementsByTagName("text") if node.firstChild]
    assert any("$\\n\\x1b[31m&\"'\\ufffe\\x00.w" in text for text in texts)
    assert not root.getElementsByTagName("script")
    assert Path("a.png").read_bytes().startswith(b"\x89PNG")
    page = Page("a.html")
    check_safe(page)
    assert "\\x1b[31m&" in page.text


def test_a_picture_of_the_same_is_the_same_file(sides: tuple[str, str]):
    draw("diff", sides, "a.svg")
    draw("diff", sides, "b.svg")
    assert Path("a.svg").read_bytes() == Path("b.svg").read_bytes()


def test_a_heat_map_has_layers_across_and_modules_down(sides: tuple[str, str]):
    draw("diff", sides, "a.svg")
    text = Path("a.svg").read_text(encoding="utf-8")
    for label in ("h.*.mlp.w", "relative change", "none", "left: ", "right: "):
        assert label in text
    assert "h.*.attn.w" not in text  # which does not differ


def test_paths_are_text_in_a_picture_of_two_checkpoints(sides: tuple[str, str]):
    for path in sides:
        Path(path).rename(rf"{Path(path).stem}$\bad$.safetensors")  # a formula that matplotlib cannot read
    draw("diff", (r"left$\bad$.safetensors", r"right$\bad$.safetensors"), "a.svg")
    assert r"right: right$\bad$.safetensors" in Path("a.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", ["inspect", "spectrum"])
def test_an_existing_picture_is_kept_unless_it_may_be_replaced(command: str, sides: tuple[str, str]):
    Path("a.svg").write_bytes(b"keep")
    with pytest.raises(bs.StoreError, match=r"exists already\n.*`overwrite=True`"):
        draw(command, ("missing", "missing"), "a.svg")  # before anything is read
    assert Path("a.svg").read_bytes() == b"keep"
    draw(command, sides, "a.svg", overwrite=True)
    assert Path("a.svg").read_bytes().startswith(b"<?xml")
    assert sorted(path.name for path in Path().iterdir()) == ["a.svg", "left.safetensors", "right.safetensors"]


def test_diff_is_in_trouble_where_the_picture_exists(sides: tuple[str, str], capsys: pytest.CaptureFixture[str]):
    Path("a.svg").write_bytes(b"keep")
    assert diff_command(*sides, PLAIN, json=False, plot=PlotTo("a.svg")) == 2
    assert "exists already" in capsys.readouterr().err
    assert diff_command(*sides, PLAIN, json=False, plot=PlotTo("a.svg", overwrite=True)) == 1
    assert Path("a.svg").read_bytes().startswith(b"<?xml")


def test_a_picture_of_no_difference_is_not_written_and_that_is_told(
    sides: tuple[str, str], capsys: pytest.CaptureFixture[str]
):
    assert diff_command(sides[0], sides[0], PLAIN, json=False, plot=PlotTo("a.svg")) == 0
    assert "nothing differs, so a.svg was not written" in capsys.readouterr().err
    assert not Path("a.svg").exists()


def test_a_report_is_html_and_no_other_kind_of_file(sides: tuple[str, str]):
    with pytest.raises(typer.BadParameter, match=r"a report is a page of HTML, so its path ends in .html; got 'a.pdf'"):
        report_command((sides[0], None), "a.pdf", ReportWishes())
    assert not Path("a.pdf").exists()


def test_to_overwrite_nothing_is_a_mistake():
    assert wish_plot(None, overwrite=False) is None
    assert wish_plot("a.svg", overwrite=True) == ("a.svg", True)
    with pytest.raises(typer.BadParameter, match="without --plot FILE"):
        wish_plot(None, overwrite=True)


def test_a_picture_that_cannot_be_written_leaves_the_old_one(sides: tuple[str, str], monkeypatch: pytest.MonkeyPatch):
    def stopped(self: Path, data: bytes) -> int:
        with open(self, "wb") as file:
            file.write(data[: len(data) // 2])
        raise KeyboardInterrupt

    Path("a.svg").write_bytes(b"keep")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "write_bytes", stopped)
        draw("spectrum", sides, "a.svg", overwrite=True)
    assert Path("a.svg").read_bytes() == b"keep"
    assert len(list(Path().iterdir())) == 3


def test_equal_checkpoints_have_no_picture(sides: tuple[str, str]):
    assert diff_command(sides[0], sides[0], PLAIN, json=False, plot=PlotTo("a.svg")) == 0
    assert not Path("a.svg").exists()


def test_what_cannot_be_drawn_is_refused_before_anything_is_read(sides: tuple[str, str]):
    Path("model.safetensors").write_bytes(b"keep")
    with pytest.raises(typer.BadParameter, match=r"ends in \.svg, \.png, \.html"):
        draw("inspect", ("missing", "missing"), "model.safetensors")
    assert Path("model.safetensors").read_bytes() == b"keep"
    write("ids.safetensors", {"c": np.ones(2, np.complex64)})
    with pytest.raises(typer.BadParameter, match="nothing to draw"):
        draw("inspect", ("ids.safetensors", ""), "a.svg")
    write("zero.safetensors", {"w": np.zeros((3, 3))})
    with pytest.raises(typer.BadParameter, match="all matrices are zero"):
        spectrum(("zero.safetensors", None), None, None, memory=None, json=False, plot=PlotTo("a.svg"))


def test_many_modules_are_cut_to_the_largest(here: Path):
    tensors = {f"h.0.m{at}.w": np.full(2, at + 1.0) for at in range(70)}
    assert (
        inspect(str(write("m.safetensors", tensors)), None, "compact", stats=False, looks=Looks(plot=PlotTo("a.svg")))
        == 0
    )
    text = Path("a.svg").read_text(encoding="utf-8")
    assert "60 of 70 modules" in text
    assert "h.*.m69.w" in text


def test_without_matplotlib_the_remedy_is_named(sides: tuple[str, str], monkeypatch: pytest.MonkeyPatch):
    def absent(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(canvas, "import_module", absent)
    with pytest.raises(bs.StoreError, match=r"pip install 'brainsurgery-jax\[plot\]'"):
        draw("diff", sides, "a.svg")
    assert any(line.startswith("plot = ") for line in PYPROJECT.read_text(encoding="utf-8").splitlines())


PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def test_a_report_of_one_tells_its_health(sides: tuple[str, str]):
    bs.report(sides[1], to="page.html", spectra=True)
    page = Page("page.html")
    check_safe(page)
    for told in ("8 tensors", "1 NaN", "zero everywhere", "h.*.attn.w", "captured energy", "root mean square"):
        assert told in page.text
    assert "<script>alert(1)</script>$x_1^$\\n\\x1b[31m" in page.text


def test_a_report_of_two_tells_what_changed(sides: tuple[str, str]):
    bs.report(*sides, to="page.html", spectra=True)
    page = Page("page.html")
    check_safe(page)
    for told in ("3 equal, 4 differ, 1 only right", "By layer", "relative change", "new", "Spectra of the differences"):
        assert told in page.text


def test_a_report_of_folders_tells_what_configs_say(here: Path):
    for name, layers in (("a", 2), ("b", 3)):
        (here / name).mkdir()
        write(here / name / "model.safetensors", {"w": np.ones(2)})
        (here / name / "config.json").write_text(f'{{"n_layer": {layers}, "x": "<img src=y>"}}', encoding="utf-8")
    bs.report("a", "b", to="page.html")
    page = Page("page.html")
    assert "config.json: n_layer" in page.text
    assert "img" not in page.tags


def test_an_existing_page_is_kept(sides: tuple[str, str]):
    report_command((sides[0], None), "page.html", ReportWishes())
    with pytest.raises(bs.StoreError, match="exists already"):
        report_command((sides[0], None), "page.html", ReportWishes())
    report_command((sides[0], None), "page.html", ReportWishes(overwrite=True))
    report_command((sides[0], None), None, ReportWishes())
    assert Path("left.report.html").exists()
    with pytest.raises(typer.BadParameter, match="matches 'nothing'"):
        report_command((sides[0], None), "other.html", ReportWishes(target="nothing"))
