"""What other users, other sites and hostile files may try: refused, and the server goes on."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pytest

pytest.importorskip("nicegui", reason="NiceGUI is not installed: pip install 'brainsurgery-jax[web]'")

from brainsurgery_jax.errors import PlanError, StoreError
from brainsurgery_jax.web.confined import Root
from brainsurgery_jax.web.guard import is_loopback
from brainsurgery_jax.web.workbench import Workbench
from tests.web.conftest import HOSTILE, Server, write_model

WEBSOCKET = {
    "Connection": "Upgrade", "Upgrade": "websocket", "Sec_WebSocket_Version": "13",
    "Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ==",
}  # fmt: skip
SOCKET = "/_nicegui_ws/socket.io/?EIO=4&transport=websocket"


def is_alive(server: Server) -> bool:
    return server.process.poll() is None and server.ask("/").status == 303


def test_the_holder_of_the_cookie_gets_a_page(server: Server):
    assert "brainsurgery-jax" in server.open_page()


@pytest.mark.parametrize("path", ["/", "/bench/x", "/download?path=model.safetensors", "/plan/x", "/_nicegui/x.js"])
@pytest.mark.parametrize("cookie", [None, "brainsurgery_jax_{port}=wrong", "other=1", '=;;"\\'])
def test_nothing_is_told_without_the_token(server: Server, path: str, cookie: str | None):
    answer = server.ask(path, Cookie=None if cookie is None else cookie.replace("{port}", str(server.port)))
    assert answer.status == 401
    assert is_alive(server)


def test_a_wrong_token_in_the_url_gets_no_cookie(server: Server):
    answer = server.ask("/?token=wrong", Cookie=None)
    assert (answer.status, answer.headers.get("set-cookie")) == (401, None)


def test_the_token_is_exchanged_for_a_cookie_and_leaves_the_url(server: Server):
    answer = server.ask(f"/?token={server.token}", Cookie=None)
    assert (answer.status, answer.headers["location"]) == (303, "/")
    assert "HttpOnly" in answer.headers["set-cookie"] and "SameSite=Strict" in answer.headers["set-cookie"]


def test_the_exchange_leads_to_no_other_site(server: Server):
    answer = server.ask(f"//evil.example/?token={server.token}", Cookie=None)
    assert answer.headers["location"].startswith("/") and not answer.headers["location"].startswith("//")


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1", "localhost:1", "", None])
def test_another_host_name_is_refused_although_the_cookie_is_right(server: Server, host: str | None):
    answer = server.ask("/", Host=None if host is None else host.replace("{port}", str(server.port)))
    assert answer.status in (400, 403)
    assert is_alive(server)


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "https://127.0.0.1:{port}"])
def test_a_plan_that_another_site_posts_is_refused(server: Server, origin: str):
    plan = b"{transforms: [{save: stolen.safetensors}]}"
    for path in ("/", "/bench/x", "/_nicegui/client/x/upload/1"):
        answer = server.ask(path, "POST", plan, Origin=origin.replace("{port}", str(server.port)))
        assert answer.status == 403
    assert not (server.root / "stolen.safetensors").exists()
    assert is_alive(server)


def test_a_request_that_the_browser_marks_as_cross_site_is_refused(server: Server):
    assert server.ask("/", "POST", b"", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors").status == 403


@pytest.mark.parametrize("wrong", [{"Origin": "http://evil.example"}, {"Cookie": None}, {"Host": "evil.example"}])
def test_a_websocket_is_guarded_like_a_request(server: Server, wrong: dict[str, str | None]):
    origin = {"Origin": f"http://127.0.0.1:{server.port}"}
    assert server.ask(SOCKET, "GET", None, **(WEBSOCKET | origin | wrong)).status == 403
    assert is_alive(server)


@pytest.mark.parametrize(
    "path",
    [
        "../secret.safetensors",
        "/etc/passwd",
        "link.safetensors",
        "away/secret.safetensors",
        "a/../../secret.safetensors",
    ],
)
def test_a_path_outside_the_root_is_not_downloaded(server: Server, path: str):
    answer = server.ask(f"/download?path={quote(path)}")
    assert answer.status == 403 and b"lies outside" in answer.body
    assert is_alive(server)


def test_a_file_below_the_root_is_downloaded_as_it_is(server: Server):
    assert server.ask("/download?path=model.safetensors").body == (server.root / "model.safetensors").read_bytes()


def test_an_oversized_upload_is_refused_by_its_length(server: Server):
    answer = server.ask("/_nicegui/client/x/upload/1", "POST", b"x", Content_Length=str(2 << 20))
    assert answer.status == 413
    assert is_alive(server)


def test_an_oversized_upload_without_a_length_is_refused_as_it_comes(server: Server):
    chunk = b"%x\r\n" % (1 << 20) + bytes(1 << 20) + b"\r\n"
    head = {"Transfer_Encoding": "chunked", "Content_Type": "multipart/form-data; boundary=b"}
    page = server.ask("/").headers["location"]
    answer = server.ask(page, "POST", chunk * 3 + b"0\r\n\r\n", Content_Length=None, **head)
    assert answer.status in (405, 413)
    assert is_alive(server)


def test_the_name_of_a_tensor_is_text_in_the_page(server: Server):
    assert HOSTILE not in server.open_page()


def test_every_answer_forbids_frames_and_foreign_scripts(server: Server):
    for answer in (server.ask("/"), server.ask("/", Cookie=None)):
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


def test_the_token_is_in_no_log(server: Server):
    server.ask(f"/?token={server.token}", Cookie=None)
    assert server.token not in (server.root.parent / "log").read_text()


def test_loopback_is_told_from_other_addresses():
    assert all(map(is_loopback, ("127.0.0.1", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "192.168.0.1", "example.org")))


# --- plans and files, without a server


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workbench:
    root = tmp_path / "root"
    root.mkdir()
    write_model(root / "model.safetensors")
    write_model(tmp_path / "secret.safetensors")
    (tmp_path / "secret.yaml").write_text("transforms: []\n")
    (root / "link.safetensors").symlink_to(tmp_path / "secret.safetensors")
    (root / "linked").mkdir()
    (root / "linked" / "model.safetensors").symlink_to(tmp_path / "secret.safetensors")
    monkeypatch.chdir(root)
    return Workbench(Root(str(root)))


@pytest.mark.parametrize("path", ["../secret.safetensors", "link.safetensors", "linked", "/etc/passwd", "~/x"])
def test_a_checkpoint_outside_the_root_is_not_opened(bench: Workbench, path: str):
    with pytest.raises(StoreError, match="lies outside"):
        bench.open(path)


@pytest.mark.parametrize(
    "plan",
    [
        "inputs: [../secret.safetensors]",
        "inputs: [model.safetensors]\ntransforms: [{delete: {target: wte.weight}}]\noutput: ../out.safetensors",
        "transforms: [{load: ../secret.safetensors}]",
        "inputs: [model.safetensors]\ntransforms: [{save: ../out.safetensors}]",
        "transforms: [{execute: {plan: ../secret.yaml}}]",
        "transforms: [{execute: {plan-yaml: 'transforms: [{load: ../secret.safetensors}]'}}]",
    ],
)
def test_a_plan_that_reaches_out_of_the_root_is_refused_and_writes_nothing(bench: Workbench, plan: str, tmp_path: Path):
    bench.write(plan)
    assert any("lies outside" in d.message for d in bench.check())
    bench.run(overwrite=False)
    bench.wait()
    assert bench.progress.state == "failed" and not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("reference", ["${env.HOME}", "${oc.env:HOME}", r"\x24{env.HOME}"])
def test_a_plan_in_the_browser_reads_no_environment(bench: Workbench, reference: str):
    bench.write(f'transforms: [{{help: "{reference}"}}]')
    assert [d.code for d in bench.check()] == ["io"]


def test_a_torch_file_is_opened_only_where_that_is_allowed(bench: Workbench):
    torch = pytest.importorskip("torch")
    torch.save({"w": torch.ones(2)}, "model.pt")
    with pytest.raises(StoreError, match="pickles are not opened here"):
        bench.open("model.pt")
    assert list(Workbench(Root(".", allow_torch=True)).open("model.pt").avals) == ["w"]


def test_a_pickle_below_another_suffix_is_not_unpickled(bench: Workbench):
    Path("model.safetensors.copy").write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises((StoreError, PlanError)):
        bench.open("model.safetensors.copy")
