"""The two sides of the shared text, each as it runs, on a wire that the test holds: in no order of events, and with no
break of the connection, is a word lost, written twice, or in one text alone."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import brainsurgery_jax

pytest.importorskip("playwright", reason="NO BROWSER TEST: Playwright is not installed (make venv installs it)")
nicegui = pytest.importorskip("nicegui", reason="NiceGUI is not installed: pip install 'brainsurgery-jax[web]'")

from brainsurgery_jax.web.shared_text import Message, SharedText  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

SITE = "http://parts.test"
_PARTS = {
    "shared": Path(brainsurgery_jax.__file__).parent / "web/static/shared_text",
    "codemirror": Path(nicegui.__file__).parent / "elements/codemirror/dist",
}
_PAGE = f"""<script type=importmap>{{"imports": {{"nicegui-codemirror": "{SITE}/codemirror/index.js"}}}}</script>
<script type=module>
import {{ SharedText, read }} from "{SITE}/shared/index.js";
import {{ ChangeSet }} from "nicegui-codemirror";
let [windows, views] = [[], []];  // a view is what an editor shows
window.open_windows = (told, n) => {{
    windows = Array.from({{length: n}}, () => new SharedText(told, null));
    views = windows.map((one) => one.text);
}};
window.messages = (at) => windows[at].pending.length ? windows[at].messages() : [];
window.write_line = (at, line, text, removed) => {{
    const [one, before] = [windows[at], windows[at].text];
    const number = Math.min(line, before.lines - 1) + 1;
    const from = before.line(number).from;
    const to = removed && number < before.lines ? before.line(number + 1).from : from;
    const changes = ChangeSet.of({{from, to, insert: read(text)}}, before.length);
    views[at] = changes.apply(views[at]);
    one.note(changes);
    return one.messages();
}};
window.hear = (at, told) => {{
    const {{ theirs, again }} = windows[at].hear(told);
    if (theirs) views[at] = theirs.apply(views[at]);
    return again ? windows[at].messages() : [];
}};
window.reload = (at, told) => {{
    windows[at] = new SharedText(told, JSON.parse(JSON.stringify(windows[at].leave())));
    views[at] = windows[at].text;
    return [...window.hear(at, told), ...window.messages(at)];
}};
window.texts = () => [...windows.map((one) => one.text), ...views].map(String);
</script>"""


def answer(route: Route) -> None:
    part, _, name = route.request.url.removeprefix(f"{SITE}/").partition("/")
    if part in _PARTS:
        route.fulfill(path=_PARTS[part] / name, content_type="text/javascript")
    else:
        route.fulfill(body=_PAGE, content_type="text/html")


@pytest.fixture(scope="module")
def parts(browser: Browser) -> Iterator[Page]:
    """A page with nothing but the browser's side."""
    page = browser.new_page()
    page.route("**/*", answer)
    page.goto(SITE)
    page.wait_for_function("() => window.texts !== undefined")
    yield page
    page.close()


class World:
    """A server, windows of one session, and the messages on their way."""

    def __init__(self, page: Page, windows: int):
        self.page, self.text = page, ""
        self.shared = SharedText(lambda: self.text, lambda text: setattr(self, "text", text))
        self.up: list[list[dict[str, Any]]] = [[] for _ in range(windows)]
        self.down: list[list[dict[str, object]]] = [[] for _ in range(windows)]
        self.late: list[dict[str, Any]] = []
        self.known = [0] * windows
        told = self.shared.tell()
        self.ask("open_windows", told, windows)

    def ask(self, function: str, *values: object) -> Any:
        return self.page.evaluate(f"(values) => window.{function}(...values)", list(values))

    def write(self, at: int, line: int, text: str, *, removed: bool = False) -> None:
        """The user of a window writes above a line, or in its place."""
        self.up[at] += self.ask("write_line", at, line, text, removed)

    def tell(self, at: int) -> None:
        if self.known[at] != self.shared.revision:
            self.known[at] = self.shared.revision
            self.down[at].append(self.shared.tell())

    def remind(self, at: int) -> None:
        """Tell again what is known, as with marks of lines."""
        self.tell(at)
        self.down[at].append(self.shared.tell())

    def send_up(self, at: int) -> None:
        """The next message of a window arrives."""
        if not self.up[at]:
            return
        self.tell(at)
        if self.shared.take(Message(**self.up[at].pop(0))):
            self.known[at] = self.shared.revision

    def send_down(self, at: int) -> None:
        if self.down[at]:
            told = self.down[at].pop(0)
            self.up[at] += self.ask("hear", at, told)

    def resend(self, at: int) -> None:
        """A connection broke: some of what went up is lost, and all that is not heard of comes again."""
        del self.up[at][len(self.up[at]) // 2 :]
        self.up[at] += self.ask("messages", at)

    def reload(self, at: int) -> None:
        """A window is loaded anew; what it had sent arrives later, or never."""
        self.late += self.up[at]
        self.up[at], self.down[at], self.known[at] = [], [], self.shared.revision
        self.up[at] += self.ask("reload", at, self.shared.tell())

    def send_late(self) -> None:
        """The server takes a message of a page that is gone."""
        if self.late:
            self.shared.take(Message(**self.late.pop(0)))

    def settle(self) -> None:
        """Let all messages arrive."""
        for _ in range(10_000):
            for at in range(len(self.up)):
                self.tell(at)
            busy = [at for at in range(len(self.up)) if self.up[at] or self.down[at]]
            if not busy and not self.late:
                return
            self.send_late()
            for at in busy:
                self.send_up(at)
                self.send_down(at)
        pytest.fail("the messages never end")

    def texts(self) -> list[str]:
        return self.ask("texts")


def play(world: World, rng: random.Random, events: int) -> list[str]:
    """Some events; the words that must then stand in the text."""
    words: list[str] = []
    for number in range(events):
        at, word = rng.randrange(len(world.up)), f"word{number}."
        match rng.randrange(12):
            case 0 | 1 | 2:
                words.append(word)
                world.write(at, rng.randrange(100), f"{word}\n")
            case 3:
                words.append(word)
                lines = world.text.splitlines()
                lines.insert(rng.randrange(len(lines) + 1), word)
                world.text = "\n".join(lines) + "\n"
            case 4:  # the server changes the text, and takes that back before anyone looks
                before, world.text = world.text, world.text + "gone\n"
                assert world.shared.revision
                world.text = before
            case 5 | 6:
                world.send_up(at)
            case 7:
                world.send_down(at)
            case 8:
                world.remind(at)
            case 9:
                world.resend(at)
            case 10:
                world.reload(at)
            case _:
                world.send_late()
    return words


@pytest.mark.parametrize("windows", [1, 2, 3])
def test_every_word_is_written_once_in_all_texts(parts: Page, windows: int):
    for seed in range(40):
        world = World(parts, windows)
        words = play(world, random.Random(seed), 60)
        world.settle()
        assert set(world.texts()) == {world.text}, seed
        assert sorted(world.text.split()) == sorted(words), seed


def test_a_change_made_while_the_server_changes_its_mind_arrives(parts: Page):
    world = World(parts, 1)
    world.write(0, 0, "typed\n")
    world.text = "added\n"
    assert world.shared.revision == 1
    world.text = ""
    world.send_up(0)  # made on a text that is no longer the last
    assert world.text == ""
    world.settle()
    assert world.text == "typed\n"


def test_what_an_earlier_page_sent_does_not_take_back_what_the_next_one_wrote(parts: Page):
    world = World(parts, 1)
    world.write(0, 0, "first\n")
    world.reload(0)
    world.write(0, 1, "second\n")
    world.send_up(0)
    world.send_up(0)
    assert world.text == "first\nsecond\n"
    world.send_late()
    world.settle()
    assert world.text == "first\nsecond\n"


def test_a_line_that_the_server_adds_beside_a_removed_one_stays_whole(parts: Page):
    world = World(parts, 1)
    world.text = "x\nadded29\n"
    world.settle()
    world.text = "x\nadded24\nadded29\n"
    world.write(0, 1, "", removed=True)
    world.settle()
    assert world.text == "x\nadded24\n"


def test_a_long_text_goes_in_messages_that_the_socket_takes(parts: Page):
    world = World(parts, 1)
    text = "\N{GRINNING FACE}a\n" * 100_001 + "\x00" * 200_000
    world.write(0, 0, text)
    assert len(world.up[0]) > 5
    assert max(len(json.dumps(message, ensure_ascii=False)) for message in world.up[0]) < 900_000
    world.resend(0)  # the connection broke in the midst
    world.settle()
    assert world.text == text
