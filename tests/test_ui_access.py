"""While shared, nobody comes in without a password, viewers change nothing, and no file outside is reached.

A real server on this machine; only the tunnel itself is left out, since it would need the internet.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

import app
from sdtrainer import config as configs
from sdtrainer.config import Config
from sdtrainer.section import UserError, override
from sdtrainer.ui import pulse
from sdtrainer.ui.access import Access, is_local_name, is_loopback
from sdtrainer.workspace import PROJECT, Workspace, create_run


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    home = Workspace(tmp_path_factory.mktemp("shared") / "workspace")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", "")
        app.prepare(home)
        from sdtrainer.ui import serve

        running = serve.serve(home, "127.0.0.1", None, lambda port: ("https://example.invalid", lambda: None))
        yield running
        running.close()


@pytest.fixture
def shared(served: Any) -> Iterator[Any]:
    served.sharing.start()
    yield served
    served.sharing.stop()


@contextmanager
def client(served: Any, role: str | None = None) -> Iterator[httpx.Client]:
    """A browser, logged in as `role` if given."""
    with httpx.Client(base_url=served.url, follow_redirects=False, timeout=30) as browser:
        if role:
            assert log_in(browser, role, served.access.passwords[role]).status_code == 303
        yield browser


def log_in(browser: httpx.Client, user: str, password: str) -> httpx.Response:
    return browser.post("/login", data={"user": user, "password": password})


def press(served: Any, browser: httpx.Client, component: Any, event: str = "click") -> str:
    """Cause a component's event as the page would, with every input empty; return what the server answers."""
    index, function = next(
        (i, f)
        for i, f in served.blocks.fns.items()
        if (component._id, event) in [tuple(t) for t in f.targets]
    )
    data = [c.value if hasattr(c, "value") else None for c in function.inputs]
    body = {"data": data, "fn_index": index, "session_hash": f"test{index}", "trigger_id": component._id}
    joined = browser.post("/gradio_api/queue/join", json=body)
    if joined.status_code != 200:
        return f"refused {joined.status_code}"
    with browser.stream(
        "GET", "/gradio_api/queue/data", params={"session_hash": body["session_hash"]}
    ) as lines:
        said = []
        for line in lines.iter_lines():
            said.append(line)
            if "process_completed" in line or "close_stream" in line:
                return "\n".join(said)
    return "\n".join(said)


def test_alone_on_this_machine_nobody_logs_in(served: Any) -> None:
    with client(served) as browser:
        page = browser.get("/")
        assert page.status_code == 200 and "gradio_config" in page.text
        assert browser.get("/config").status_code == 200


def test_what_an_event_shows_is_not_told_that_it_is_under_way(served: Any) -> None:
    """The page would look for each part among all parts, several times an event: seconds for a letter."""
    events = [e for e in served.blocks.config["dependencies"] if e["backend_fn"] and e["targets"]]
    told = {e["id"] for e in events if e["show_progress_on"] != []}
    assert len(events) > 50 and told == {e["id"] for e in events if e["show_progress"] != "hidden"}
    assert len(told) <= 1


def test_the_clock_of_a_page_causes_no_event_on_the_server(served: Any) -> None:
    """Each event costs a page that was used for a while a tenth of a second of the processor."""
    ticks = [
        f for f in served.blocks.fns.values() if (served.page.timer._id, "tick") in map(tuple, f.targets)
    ]
    assert [(tick.fn, tick.js) for tick in ticks] == [(None, pulse.ASK)]


def test_the_pulse_of_a_page_changes_with_what_the_page_shows(served: Any) -> None:
    project = served.desk.project
    with client(served) as browser:
        before = {page: browser.get(f"/pulse/{page}").text for page in ("mine", "other")}
        assert before == {page: browser.get(f"/pulse/{page}").text for page in before}
        project.change(override(project.values, {"train.steps": "77"}), "mine")
        after = {page: browser.get(f"/pulse/{page}").text for page in before}
        assert after["mine"] == before["mine"] and after["other"] != before["other"]
        served.desk.tell()
        assert browser.get("/pulse/mine").text != before["mine"]


def test_a_viewers_pulse_tells_nothing_of_the_owners_settings(shared: Any) -> None:
    project = shared.desk.project
    with client(shared, "viewer") as browser:
        before = browser.get("/pulse/viewer").text
        project.change(override(project.values, {"train.steps": "78"}), "mine")
        assert browser.get("/pulse/viewer").text == before


def test_the_page_asks_the_browser_to_fetch_from_nowhere_else(served: Any) -> None:
    with client(served) as browser:
        page = browser.get("/")
        assert "default-src 'self'" in page.headers["content-security-policy"]
        assert "fonts.googleapis" not in page.text


@pytest.mark.parametrize("name", ["evil.example", "evil.example:7860", "10.0.0.1"])
def test_a_foreign_page_cannot_speak_for_this_machine(served: Any, name: str) -> None:
    with client(served) as browser:
        assert browser.get("/", headers={"host": name}).status_code == 403
        assert browser.post("/gradio_api/queue/join", headers={"origin": f"http://{name}"}).status_code == 403


@pytest.mark.parametrize(
    "path",
    ["/config", "/gradio_api/info", "/gradio_api/queue/data", "/download/a/b", "/pulse/a", "/theme.css"],
)
def test_shared_nothing_is_served_without_a_login(shared: Any, path: str) -> None:
    with client(shared) as browser:
        assert browser.get(path).status_code == 401
        assert browser.get("/").headers["location"] == "login"
        assert "Log in" in browser.get("/login").text


@pytest.mark.parametrize("user", ["owner", "viewer", "admin", ""])
def test_a_wrong_password_is_refused(shared: Any, user: str) -> None:
    with client(shared) as browser:
        assert log_in(browser, user, "guess").status_code == 403
        assert browser.get("/config").status_code == 401


def test_each_password_opens_only_its_own_role(shared: Any) -> None:
    with client(shared) as browser:
        assert log_in(browser, "owner", shared.access.passwords["viewer"]).status_code == 403
    for role in ("owner", "viewer"):
        with client(shared, role) as browser:
            assert browser.get("/gradio_api/user").json() == role


def test_a_page_opened_here_before_sharing_stays_the_owners(served: Any) -> None:
    with client(served) as browser:
        browser.get("/")
        served.sharing.start()
        assert browser.get("/gradio_api/user").json() == "owner"
        served.sharing.stop()


def test_logins_end_with_the_sharing(served: Any) -> None:
    served.sharing.start()
    with client(served, "viewer") as browser:
        served.sharing.stop()
        served.sharing.start()
        assert browser.get("/config").status_code == 401
    served.sharing.stop()


def test_a_viewer_changes_nothing_in_any_handler(shared: Any) -> None:
    page, desk = shared.page, shared.desk
    before = desk.project.version, desk.jobs.state(), [r.name for r in desk.runs()]
    buttons = [
        page.panel.train,
        page.train.pause,
        page.train.stop,
        page.train.sample,
        page.train.save,
        page.runs.resume,
        page.runs.go_on,
        page.runs.delete,
        page.runs.reuse,
        page.dataset.browse.changes.undo,
        page.dataset.browse.changes.yes,
        page.dataset.browse.bulk.apply,
        page.header.share.go,
        page.header.share.stop,
    ]
    with client(shared, "viewer") as browser:
        for button in buttons:
            assert "for looking only" in press(shared, browser, button), button.value
        files = {"files": ("a.png", b"x")}
        assert browser.post("/gradio_api/upload", files=files).status_code == 403
    assert (desk.project.version, desk.jobs.state(), [r.name for r in desk.runs()]) == before
    assert shared.access.is_shared


def test_only_looking_is_open_to_viewers(served: Any) -> None:
    """Every handler but these refuses viewers: a new one must be considered here."""
    page = served.page
    wanted = {
        (page.gallery.run._id, "input"),
        (page.gallery.prompt._id, "input"),
        (page.gallery.before._id, "input"),
        (page.gallery.after._id, "input"),
        (page.gallery.grid._id, "click"),
        (page.runs.cards._id, "click"),
        (page.runs.back._id, "click"),
        (page.runs.forth._id, "click"),
        (page.pulse._id, "change"),
        (served.blocks._id, "load"),
    }
    opened = {
        tuple(target)
        for function in served.blocks.fns.values()
        for target in function.targets
        if function.fn and _admits_viewers(function.fn)
    }
    assert opened == wanted


def _admits_viewers(function: Any) -> bool:
    run = next(c.cell_contents for c in function.__closure__ if callable(c.cell_contents))
    names = dict(zip(run.__code__.co_freevars, (c.cell_contents for c in run.__closure__), strict=True))
    return names["looks_only"]


@pytest.mark.parametrize("path", ["data.folder", "data.validation_folder", "base.path"])
def test_shared_a_path_outside_the_workspace_is_refused(shared: Any, path: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="outside the workspace") as caught:
        shared.access.check(configs.build(override(Config().values(), {path: str(tmp_path)})))
    assert caught.value.path == path


def test_shared_a_link_that_leads_outside_is_refused(shared: Any, tmp_path: Path) -> None:
    link = shared.desk.workspace.uploads / "innocent"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(tmp_path)
    for text in (str(link), f"{link}/..", f"{shared.desk.workspace.root}/../elsewhere", "../elsewhere", "~"):
        with pytest.raises(UserError, match="outside the workspace"):
            shared.access.check(configs.build({"data": {"folder": text}}))


def test_inside_the_workspace_and_the_starter_are_allowed(shared: Any) -> None:
    inside = shared.desk.workspace.uploads / "mine"
    for text in (str(inside), "starter", "starter-held-out", ""):
        shared.access.check(configs.build({"data": {"folder": text}}))


def test_shared_a_model_may_be_named_by_its_hub_id_and_nothing_else_may(shared: Any) -> None:
    shared.access.check(configs.build({"base": {"path": "someone/some-model"}}))
    for section, name, path in (("base", "path", "assets/.."), ("data", "folder", "someone/some-model")):
        with pytest.raises(UserError, match="outside the workspace"):
            shared.access.check(configs.build({section: {name: path}}))


def test_shared_a_run_with_settings_from_outside_is_not_started_again(shared: Any, tmp_path: Path) -> None:
    run = create_run(shared.desk.workspace.runs, configs.build({"data": {"folder": str(tmp_path)}}))
    with pytest.raises(UserError, match="outside the workspace"):
        shared.desk.config_of(run)


@pytest.mark.parametrize(
    "where",
    [
        "/etc/passwd",
        str(PROJECT / "app.py"),
        str(PROJECT / ".git/config"),
        "app.py",
        "../../etc/passwd",
        "http://127.0.0.1/x",
    ],
)
def test_files_outside_are_not_served_to_anyone(served: Any, where: str) -> None:
    with client(served) as browser:
        assert browser.get(f"/gradio_api/file={where}").status_code in (403, 404)


def test_only_thumbnails_of_the_workspace_are_served(served: Any) -> None:
    home = served.desk.workspace
    picture = home.cache / "thumbnails" / "a.webp"
    picture.write_bytes(b"a picture")
    secret = home.root / "draft-secret.toml"
    secret.write_text("secret")
    with client(served) as browser:
        assert browser.get(f"/gradio_api/file={picture}").status_code == 200
        assert browser.get(f"/gradio_api/file={secret}").status_code in (403, 404)
        assert browser.get(f"/gradio_api/file={picture.parent}/../../draft-secret.toml").status_code in (
            403,
            404,
        )


def test_downloads_are_files_of_a_runs_output_and_nothing_else(served: Any) -> None:
    run = create_run(served.desk.workspace.runs, Config())
    (run.output / "robot.safetensors").write_bytes(b"weights")
    with client(served) as browser:
        assert browser.get(f"/download/{run.name}/robot.safetensors").content == b"weights"
        for path in (
            f"{run.name}/..%2Fconfig.toml",
            f"{run.name}/other",
            f"..%2F..%2F{run.name}/robot.safetensors",
        ):
            assert browser.get(f"/download/{path}").status_code == 404
    served.sharing.start()
    with client(served, "viewer") as browser:
        assert browser.get(f"/download/{run.name}/robot.safetensors").status_code == 403
    served.sharing.stop()


def test_without_a_tunnel_the_app_stays_local_and_says_so(served: Any) -> None:
    def no_internet(port: int) -> tuple[str, Any]:
        raise RuntimeError("Could not get share link from Gradio API Server.")

    from sdtrainer.ui.share import Sharing

    sharing = Sharing(served.access, no_internet)
    with pytest.raises(UserError, match="this computer only"):
        sharing.start()
    assert not served.access.needs_login


def test_other_hosts_than_this_machine_need_a_login(tmp_path: Path) -> None:
    assert [is_loopback(h) for h in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "192.168.1.2")] == [
        True
    ] * 3 + [False] * 2
    assert (
        is_local_name("localhost:7860")
        and is_local_name("[::1]:7860")
        and not is_local_name("localhost.evil")
    )
    public = Access(Workspace(tmp_path), is_public=True)
    assert public.role_of(None) is None and public.role_of("made up") is None
    public.unshare()
    assert public.needs_login


def test_passwords_are_new_each_time_and_hard_to_guess(tmp_path: Path) -> None:
    access = Access(Workspace(tmp_path))
    seen = []
    for _ in range(3):
        access.share()
        seen += access.passwords.values()
    assert len(set(seen)) == 6 and min(map(len, seen)) >= 12
    assert json.dumps(seen)


def test_a_proxy_is_not_asked_for_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody answers there
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "intranet")
    home = Workspace(tmp_path / "workspace")
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    app.prepare(home)
    from sdtrainer.ui import serve

    running = serve.serve(home, "127.0.0.1", None)
    try:
        assert httpx.get(running.url).status_code == 200
    finally:
        running.close()
    assert os.environ["NO_PROXY"].startswith("intranet,")


def test_where_another_program_takes_the_port_at_the_last_moment_the_next_is_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import gradio as gr

    from sdtrainer.ui import serve

    found, is_free = [], serve._is_free

    def and_quickly_taken(host: str, port: int) -> bool:
        is_ours = is_free(host, port)
        if is_ours and not found:
            found.append(socket.create_server((host, port)))
        return is_ours

    monkeypatch.setattr(serve, "_is_free", and_quickly_taken)
    with gr.Blocks(analytics_enabled=False) as blocks:
        gr.HTML("Here")
    port, url = serve.launch(blocks, "127.0.0.1", None, prevent_thread_lock=True, quiet=True, _frontend=False)
    try:
        assert port > found[0].getsockname()[1]
        assert httpx.get(url).status_code == 200
    finally:
        blocks.close(verbose=False)
        found[0].close()
