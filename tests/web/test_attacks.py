"""What other users, other sites and hostile files may try: refused, and the server goes on."""

from __future__ import annotations

import io
import socket
import tarfile
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
    head = {"Transfer_Encoding": "chunked"}
    answer = server.ask("/upload?path=large.bin", "PUT", chunk * 3 + b"0\r\n\r\n", Content_Length=None, **head)
    assert answer.status == 413
    assert not list(server.root.glob("*large.bin*")) and not list(server.root.glob(".*.part"))
    assert is_alive(server)


UPLOADS = ["../secret.bin", "/etc/x", "away/x.bin", "a/../../x.bin", ".hidden", "a/.hidden/x", "a\\b", "a//b", "", "a/"]


@pytest.mark.parametrize("path", UPLOADS)
def test_an_upload_to_a_path_outside_the_root_is_refused(server: Server, path: str):
    before = {p: p.stat().st_mtime_ns for p in server.root.parent.rglob("*")}
    answer = server.ask(f"/upload?path={quote(path, safe='')}", "PUT", b"x")
    assert answer.status == 409
    assert {p: p.stat().st_mtime_ns for p in server.root.parent.rglob("*") if p in before} == before
    assert not list(server.root.parent.rglob("*.part"))
    assert is_alive(server)


@pytest.mark.parametrize("wrong", [{"Origin": "http://evil.example"}, {"Cookie": None}, {"Host": "evil.example"}])
@pytest.mark.parametrize(
    ("path", "method"), [("/upload?path=x.bin", "PUT"), ("/complete/x", "POST"), ("/report/x", "GET")]
)
def test_the_routes_of_the_page_are_guarded(server: Server, path: str, method: str, wrong: dict[str, str | None]):
    assert server.ask(path, method, b"x", **wrong).status in (401, 403)
    assert not (server.root / "x.bin").exists()


def test_an_upload_replaces_nothing_and_leaves_no_part(server: Server):
    before = (server.root / "model.safetensors").read_bytes()
    answer = server.ask("/upload?path=model.safetensors", "PUT", b"x")
    assert (answer.status, (server.root / "model.safetensors").read_bytes()) == (409, before)
    assert b"exists already" in answer.body


def test_a_folder_is_downloaded_as_an_archive(server: Server):
    (server.root / "folder" / "inner").mkdir(parents=True)
    (server.root / "folder" / "a.bin").write_bytes(b"a" * 700)
    (server.root / "folder" / "inner" / "b.txt").write_bytes(b"")
    answer = server.ask("/download?path=folder")
    assert len(answer.body) == int(answer.headers["content-length"])
    with tarfile.open(fileobj=io.BytesIO(answer.body)) as archive:
        found = {one.name: one.size for one in archive}
        held = archive.extractfile("folder/a.bin")
        assert held is not None and held.read() == b"a" * 700
    assert found == {"folder/a.bin": 700, "folder/inner/b.txt": 0}


@pytest.mark.parametrize("name", ["away", "linked"])
def test_an_archive_holds_nothing_from_outside(server: Server, name: str):
    (folder := server.root / f"links-{name}").mkdir()
    target = server.root.parent if name == "away" else server.root.parent / "secret.safetensors"
    (folder / name).symlink_to(target)
    answer = server.ask(f"/download?path={folder.name}")
    assert answer.status == 403 and b"lies outside" in answer.body
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
    (root / "inner.yaml").write_text("transforms: [{execute: {path: ../secret.yaml}}]\n")
    inner = "{transforms: [{execute: {path: '${vars.up}/secret.yaml'}}]}"
    nested = f"vars: {{up: '..'}}\ntransforms: [{{execute: {{plan: {inner}}}}}]\n"
    (root / "templated.yaml").write_text(nested)
    (root / "linked").mkdir()
    (root / "linked" / "model.safetensors").symlink_to(tmp_path / "secret.safetensors")
    monkeypatch.chdir(root)
    return Workbench(Root(str(root)))


@pytest.mark.parametrize("path", ["../secret.safetensors", "link.safetensors", "linked", "/etc/passwd", "~/x"])
def test_a_checkpoint_outside_the_root_is_not_opened(bench: Workbench, path: str):
    with pytest.raises(StoreError, match="lies outside"):
        bench.open(path)


@pytest.mark.parametrize("plan", ["inputs: [{}]", "transforms: [{{load: '{}'}}]"])
def test_a_plan_of_the_browser_connects_to_nobody(bench: Workbench, plan: str):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/model.safetensors"
        with pytest.raises(StoreError, match="is a remote place"):
            bench.open(address)
        bench.write(plan.format(address))
        assert any("is a remote place" in d.message for d in bench.check())
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.mark.parametrize(
    "plan",
    [
        "inputs: [../secret.safetensors]",
        "inputs: [model.safetensors]\ntransforms: [{delete: {target: wte.weight}}]\noutput: ../out.safetensors",
        "transforms: [{load: ../secret.safetensors}]",
        "inputs: [model.safetensors]\ntransforms: [{save: ../out.safetensors}]",
        "transforms: [{execute: {plan: ../secret.yaml}}]",
        "transforms: [{execute: {plan-yaml: 'transforms: [{load: ../secret.safetensors}]'}}]",
        # a plan below the root that leads out of it, by a path that no text of the plan in the browser spells
        "transforms: [{execute: {path: inner.yaml}}]",
        "transforms: [{execute: {path: templated.yaml}}]",
    ],
)
def test_a_plan_that_reaches_out_of_the_root_is_refused_and_writes_nothing(bench: Workbench, plan: str, tmp_path: Path):
    bench.write(plan)
    assert any("lies outside" in d.message for d in bench.check())
    bench.run(overwrite=False)
    bench.wait()
    assert bench.progress.state == "failed" and not (tmp_path / "out.safetensors").exists()


def test_a_lock_is_not_written_through_a_link_that_leads_out_of_the_root(bench: Workbench, tmp_path: Path):
    plan = "inputs: [model.safetensors]\ntransforms: []\noutput: out.safetensors\n"
    bench.write(plan)
    bench.run(overwrite=False, lock=True)
    bench.wait()
    lock = Path("out.safetensors.lock.json").rename(tmp_path / "secret.lock.json")
    Path("out.safetensors.lock.json").symlink_to(lock)
    kept = lock.read_bytes()
    bench.write(plan.replace("[]", "[{scale_: {target: wte.weight, by: 2}}]"))
    bench.run(overwrite=True, lock=True)
    bench.wait()
    assert any("lies outside" in d.message for d in bench.progress.problems) and lock.read_bytes() == kept


def test_a_plan_below_the_root_reads_no_environment_either(bench: Workbench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SECRET", "s3cret")
    Path("inner.yaml").write_text("transforms: [{assert: {exists: '${env.SECRET}'}}]\n")
    bench.write("inputs: [model.safetensors]\ntransforms: [{execute: {path: inner.yaml}}]\n")
    told = " ".join(d.message for d in bench.check())
    assert "no variable 'SECRET'" in told and "s3cret" not in told


@pytest.mark.parametrize("typed", ["../", "/etc/pass", "away/sec", "~/", "'/etc/a b", "../secret"])
def test_completion_lists_no_file_outside_the_root(bench: Workbench, typed: str):
    Path("away").symlink_to("..")
    head = "inputs: [model.safetensors]\ntransforms:\n- load: "
    assert [c.text for c in bench.complete(head + "mod")] == ["model.safetensors"]
    assert bench.complete(head + typed) == []


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
