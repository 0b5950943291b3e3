"""The user and the server change the plan at the same time: nothing that either writes is lost or misplaced.

The test holds the messages of each direction back and lets them go, so that every order of events comes up.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from tests.web.conftest import Server, turn_to

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route, WebSocketRoute

pytest.importorskip("playwright", reason="NO BROWSER TEST: Playwright is not installed (make venv installs it)")

_TEXT = """async () => (await import('nicegui-codemirror')).EditorView.findFromDOM(
    document.querySelector('.cm-editor')).state.doc.toString()"""
_TYPE = """async ([at, text]) => {
    const view = (await import('nicegui-codemirror')).EditorView.findFromDOM(document.querySelector('.cm-editor'));
    const from = Math.round(at * view.state.doc.length);
    view.dispatch({changes: {from, insert: text}, userEvent: 'input.type'});
}"""


class Wire:
    """The websocket of a page, whose messages can be held back in each direction."""

    def __init__(self, page: Page):
        self.held = {"up": False, "down": False}
        self.gone = False
        """Whether nobody answers."""
        self._waiting: dict[str, list[str | bytes]] = {"up": [], "down": []}
        page.route_web_socket(lambda url: "socket.io" in url, self._connect)
        page.route(
            lambda url: "transport=polling" in url, lambda route: route.abort() if self.gone else route.fallback()
        )

    def _connect(self, browser: WebSocketRoute) -> None:
        if self.gone:
            browser.close(code=1012)
            return
        server = browser.connect_to_server()
        self.held, self._waiting = {"up": False, "down": False}, {"up": [], "down": []}
        self._browser = browser
        self._send = {"up": server.send, "down": browser.send}
        browser.on_message(lambda message: self._pass("up", message))
        server.on_message(lambda message: self._pass("down", message))

    def _poll(self, route: Route) -> None:
        if self.gone:
            route.abort()
        else:
            route.fallback()

    def _pass(self, way: str, message: str | bytes) -> None:
        if self.held[way]:
            self._waiting[way].append(message)
        else:
            self._send[way](message)

    def cut(self, *, clicks: bool = False) -> None:
        """Break the connection: what is held is lost; what was clicked, which nobody sends again, with `clicks`."""
        self._waiting["down"].clear()
        kept = [] if clicks else [message for message in self._waiting["up"] if '"piece"' not in str(message)]
        self._waiting["up"] = kept
        self.release("up")
        self._browser.close(code=1012)

    def hold(self, way: str) -> None:
        self.held[way] = True

    def release(self, way: str) -> None:
        self.held[way] = False
        while self._waiting[way]:
            self._send[way](self._waiting[way].pop(0))

    def holds(self, word: str) -> bool:
        """Whether a message of the server with this word is held back."""
        return any(word in str(message) for message in self._waiting["down"])


def open_plan(page: Page, server: Server) -> None:
    page.goto(server.url)
    page.get_by_role("heading", name="model.safetensors").wait_for()
    turn_to(page, "Plan")
    page.locator(".cm-content").wait_for()


def write(page: Page, text: str, at: float = 1.0) -> None:
    """Write into the editor, at a share of its length, as by the keyboard."""
    page.evaluate(_TYPE, [at, text])


def add_line(page: Page, line: str) -> None:
    page.locator("#not-connected").wait_for(state="hidden")  # clicks are blocked until then
    page.get_by_label("A step on one line").fill(line)
    page.get_by_role("button", name="Add line").click()


def wait_for(page: Page, condition: Callable[[], bool]) -> None:
    for _ in range(9000):
        if condition():
            return
        page.wait_for_timeout(20)  # messages pass meanwhile
    pytest.fail("what the test waits for does not come")


def agreed(page: Page, server: Server, *words: str) -> str:
    """The text of the editor, once the server has the same, with some words: what the server adds takes a while."""
    path = urlsplit(page.url).path.replace("/bench/", "/plan/")
    text = ""

    def agree() -> bool:
        nonlocal text
        text = page.evaluate(_TEXT)
        return server.ask(path).body.decode() == text and all(word in text for word in words)

    wait_for(page, agree)
    return text


def test_what_is_typed_while_a_mistake_is_marked_stays(page: Page, server: Server):
    wire = Wire(page)
    open_plan(page, server)
    wire.hold("down")
    write(page, "transforms:\n  - nonsense: {}\n")
    wait_for(page, lambda: wire.holds("unknown op"))
    write(page, "# typed meanwhile\n")
    wire.release("down")
    page.get_by_text("unknown op 'nonsense'").first.wait_for()
    write(page, "# and afterwards\n")
    assert agreed(page, server) == "transforms:\n  - nonsense: {}\n# typed meanwhile\n# and afterwards\n"
    assert page.locator(".bs-line-error").inner_text().strip() == "- nonsense: {}"


def test_a_step_of_the_form_and_what_is_typed_meanwhile_are_both_kept(page: Page, server: Server):
    wire = Wire(page)
    open_plan(page, server)
    write(page, "# first\n# last\n")
    assert agreed(page, server) == "# first\n# last\n"
    wire.hold("down")
    add_line(page, "help")
    wait_for(page, lambda: wire.holds("- help: {}"))
    write(page, "# typed ", at=0.5)
    wire.release("down")
    assert agreed(page, server) == "# first\n# typed # last\ntransforms:\n  - help: {}\n"


def test_an_undo_of_the_server_keeps_what_is_typed_meanwhile(page: Page, server: Server):
    wire = Wire(page)
    open_plan(page, server)
    add_line(page, "help")
    page.get_by_text("1. help").wait_for()
    wire.hold("down")
    page.get_by_role("button", name="Undo").click()
    wait_for(page, lambda: wire.holds('"text":""'))
    write(page, "# typed\n")
    wire.release("down")
    assert agreed(page, server) == "# typed\n"


def test_two_windows_of_a_session_write_one_text(page: Page, server: Server):
    wire = Wire(page)
    open_plan(page, server)
    other = page.context.new_page()
    other.goto(page.url)
    turn_to(other, "Plan")
    other.locator(".cm-content").wait_for()
    write(other, "# of the other window\n")
    assert agreed(page, server) == agreed(other, server) == "# of the other window\n"
    wire.hold("up")
    write(page, "# of this window\n", at=0)
    write(other, "# again\n")
    agreed(other, server)
    wire.release("up")
    assert (
        agreed(page, server, "# of this window\n", "# again\n") == "# of this window\n# of the other window\n# again\n"
    )
    wait_for(other, lambda: other.evaluate(_TEXT) == page.evaluate(_TEXT))
    other.close()


@pytest.mark.parametrize("seed", range(3))
def test_no_order_of_events_loses_a_word_or_writes_it_twice(page: Page, server: Server, seed: int):
    rng = random.Random(seed)
    wire = Wire(page)
    open_plan(page, server)
    words: list[str] = []
    for number in range(40):
        match rng.randrange(16):
            case 0:
                wire.cut()
            case 1 | 2 | 3:
                wire.hold(rng.choice(("up", "down")))
            case 4 | 5 | 6:
                wire.release(rng.choice(("up", "down")))
            case 7 | 8 | 9:
                words.append(f"added{number}.")
                add_line(page, f"delete: {{target: {words[-1]}}}")
            case _:
                words.append(f"typed{number}.")
                write(page, f"# {words[-1]}\n", at=0 if rng.random() < 0.5 else 1)
    wire.release("up")
    wire.release("down")
    text = agreed(page, server, *words)
    assert {word: text.count(word) for word in words} == dict.fromkeys(words, 1)


def test_what_is_typed_while_the_connection_is_broken_goes_over_to_the_next_page(page: Page, server: Server):
    wire = Wire(page)
    open_plan(page, server)
    write(page, "# before\n")
    assert agreed(page, server) == "# before\n"
    wire.hold("up")
    write(page, "# unheard\n")
    page.reload()  # as the page does itself, once the server has forgotten it
    turn_to(page, "Plan")
    page.locator(".cm-content").wait_for()
    assert agreed(page, server, "# unheard") == "# before\n# unheard\n"


def test_nothing_but_the_plan_can_be_changed_until_the_connection_is_back(page: Page, server: Server):
    wire = Wire(page)
    open_plan(page, server)
    add_line(page, "help")
    page.get_by_text("1. help").wait_for()
    wire.gone = True
    wire.cut()
    page.get_by_role("alert").get_by_text("Not connected. Only the text of the plan can be changed").wait_for()
    page.get_by_role("button", name="Undo").click()
    page.get_by_role("button", name="Undo").press("Enter")
    page.get_by_label("A step on one line").press_sequentially("ops")
    assert not page.get_by_label("A step on one line").input_value()
    page.locator(".cm-content").press("Control+Home")
    page.keyboard.insert_text("# typed\n")
    wire.gone = False
    page.locator("#not-connected").wait_for(state="hidden")
    assert agreed(page, server, "# typed") == "# typed\ntransforms:\n  - help: {}\n"
    add_line(page, "help")
    assert agreed(page, server, "{}\n  - help") == "# typed\ntransforms:\n  - help: {}\n  - help: {}\n"


def test_a_click_that_was_on_its_way_when_the_connection_broke_is_told(page: Page, server: Server):
    wire = Wire(page)
    open_plan(page, server)
    add_line(page, "help")
    page.get_by_text("1. help").wait_for()
    wire.hold("up")
    page.get_by_role("button", name="Undo").click()
    wire.cut(clicks=True)
    page.get_by_text("What you did last may not have arrived: look before you repeat it.").wait_for()
    assert agreed(page, server) == "transforms:\n  - help: {}\n"
    page.get_by_role("button", name="Close").click()


def test_a_plan_that_is_longer_than_a_message_arrives(page: Page, server: Server):
    open_plan(page, server)
    line = f"# {'long ' * 40}\n"
    write(page, line * 6000)
    assert agreed(page, server, "long") == line * 6000
    write(page, "# last\n")
    assert agreed(page, server, "last") == line * 6000 + "# last\n"


def test_a_plan_that_is_too_long_is_refused(page: Page, server: Server):
    open_plan(page, server)
    write(page, "# short\n")
    write(page, "# long\n" * 300_000)
    page.get_by_text("A plan may have 2,000,000 characters here. Run a longer one on the command line.").wait_for()
    assert agreed(page, server) == "# short\n"
