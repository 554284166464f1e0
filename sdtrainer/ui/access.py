"""Who may look and who may change: the gate before the whole page, its passwords, and the paths it allows.

On this machine alone, without sharing, nobody logs in. While the page is shared, or served to other machines,
every request needs a login, the owner's or that of a viewer who only looks, and no setting may name a file
outside the workspace. Owns these rules; knows nothing of tunnels or of what the page shows.
"""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response

from ..config import Config, flatten, knobs
from ..families import STARTER
from ..families.remote import is_id
from ..section import Knob, Section, UserError, fields
from ..workspace import Workspace

Role = Literal["owner", "viewer"]
ROLES: tuple[Role, ...] = ("owner", "viewer")
SHIPPED = ("", STARTER, "starter-held-out")
OPEN_PATH = "/gradio_api/startup-events"  # the server asks itself for it once
OWNER_PATHS = ("/gradio_api/upload", "/download/", "/made/", "/thumbnail/")
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'"
WRONG_PASSWORD_SECONDS = 1.0

Scope = MutableMapping[str, Any]
Asgi = Callable[[Scope, Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]


@dataclass
class Access:
    """The rules as they are now. `is_public`: served to other machines from the start."""

    workspace: Workspace
    is_public: bool = False
    is_shared: bool = False
    passwords: dict[Role, str] = field(
        default_factory=lambda: {role: secrets.token_urlsafe(9) for role in ROLES}
    )
    _sessions: dict[str, tuple[Role, bool]] = field(default_factory=dict)  # token: role, by password?

    @property
    def needs_login(self) -> bool:
        return self.is_public or self.is_shared

    def share(self) -> None:
        """Require logins from now on, with fresh passwords. Pages open on this machine stay the owner's."""
        self.passwords = {role: secrets.token_urlsafe(9) for role in ROLES}
        self._end_logins()
        self.is_shared = True

    def unshare(self) -> None:
        self.is_shared = False
        self._end_logins()

    def log_in(self, user: str, password: str) -> str | None:
        """Return a session's token, or None if user and password do not belong together."""
        for role in ROLES:
            if role == user and secrets.compare_digest(password.encode(), self.passwords[role].encode()):
                return self._open(role, by_password=True)
        return None

    def open_local(self) -> str:
        """Return the token of a page opened on this machine while no login is needed."""
        assert not self.needs_login
        return self._open("owner", by_password=False)

    def role_of(self, token: str | None) -> Role | None:
        if token in self._sessions:
            return self._sessions[token][0]
        return None if self.needs_login else "owner"

    def is_known(self, token: str | None) -> bool:
        return token in self._sessions

    def check(self, config: Config) -> None:
        """Refuse paths outside the workspace while others may come in.

        Raises:
            UserError: names the setting.
        """
        values = flatten(config.values())
        self._confine((knob, values.get(knob.path)) for knob in knobs())

    def check_section(self, settings: Section) -> None:
        """The same for one section. Raises UserError."""
        self._confine((knob, getattr(settings, name)) for name, knob in fields(type(settings)).items())

    def _confine(self, found: Iterable[tuple[Knob, Any]]) -> None:
        for knob, value in found if self.needs_login else ():
            for path in value if isinstance(value, list) else [value]:
                if not knob.is_path or path is None or path in SHIPPED:
                    continue
                if not (self.workspace.contains(path) or (knob.is_hub_id and is_id(path))):
                    raise UserError(
                        f"{knob.title}: '{path}' lies outside the workspace, and this page is shared.",
                        f"Choose a place inside {self.workspace.root}, upload the files, or stop sharing.",
                        knob.path,
                    )

    def _open(self, role: Role, by_password: bool) -> str:
        token = secrets.token_urlsafe(24)
        self._sessions[token] = (role, by_password)
        return token

    def _end_logins(self) -> None:
        self._sessions = {t: s for t, s in self._sessions.items() if not s[1]}


class Gate:
    """The gate itself: middleware around every route of the server, files and uploads included."""

    def __init__(self, app: Asgi, access: Access) -> None:
        self.app, self.access = app, access

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":  # the page uses none
            return None
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers, path = Headers(scope=scope), scope["path"]
        cookie_name = f"sdtrainer-{scope['server'][1]}"  # browsers share cookies between ports
        token = Request(scope).cookies.get(cookie_name)
        role = self.access.role_of(token)
        scope["sdtrainer_role"] = role
        refusal = self._refusal(scope, headers, path, role)
        if path.rstrip("/") == "/login" and self.access.needs_login:
            refusal = await self._login(Request(scope, receive), cookie_name)
        if refusal is not None:
            return await refusal(scope, receive, self._guarded(send))
        cookie = f"{cookie_name}={self.access.open_local()}" if self._greets(scope, token) else ""
        await self.app(scope, receive, self._guarded(send, cookie))

    def _refusal(self, scope: Scope, headers: Headers, path: str, role: Role | None) -> Response | None:
        if path.startswith("/gradio_api/file=http"):  # the server fetches nothing for anyone
            return PlainTextResponse("Not found", 404)
        if not self.access.needs_login:
            is_ours = is_local_name(headers.get("host", "")) and _same_origin(headers)
            return None if is_ours else PlainTextResponse("Open the page as http://127.0.0.1", 403)
        if role is None and path != OPEN_PATH:
            if scope["method"] == "GET" and path == "/":
                return RedirectResponse("login", 303)
            return PlainTextResponse("Log in first", 401)
        if role == "viewer" and path.startswith(OWNER_PATHS):
            return PlainTextResponse("This login is for looking only", 403)
        return None

    async def _login(self, request: Request, cookie_name: str) -> Response:
        if request.method != "POST":
            return HTMLResponse(login_page(""))
        form = await request.form()
        token = self.access.log_in(str(form.get("user", "")).strip(), str(form.get("password", "")))
        if token is None:
            await asyncio.sleep(WRONG_PASSWORD_SECONDS)
            return HTMLResponse(
                login_page("User or password is wrong. Both are shown where the page was shared."), 403
            )
        answer = RedirectResponse("./", 303)
        answer.set_cookie(cookie_name, token, httponly=True, samesite="lax")
        return answer

    def _greets(self, scope: Scope, token: str | None) -> bool:
        return not self.access.needs_login and scope["path"] == "/" and not self.access.is_known(token)

    def _guarded(self, send: Any, cookie: str = "") -> Any:
        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["content-security-policy"] = POLICY
                headers["referrer-policy"] = "no-referrer"
                headers["x-content-type-options"] = "nosniff"
                if cookie:
                    headers.append("set-cookie", f"{cookie}; HttpOnly; Path=/; SameSite=lax")
            await send(message)

        return guarded


def is_loopback(host: str) -> bool:
    """Whether a server bound to `host` is reached from this machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def is_local_name(host: str) -> bool:
    """Whether a Host header names this machine itself: another name there is a foreign page calling."""
    return is_loopback(urlsplit(f"//{host}").hostname or "")


def _same_origin(headers: Headers) -> bool:
    origin = headers.get("origin")
    return origin is None or urlsplit(origin).netloc == headers.get("host")


def login_page(problem: str) -> str:
    return _LOGIN.replace("{problem}", problem)


_LOGIN = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>sdtrainer: log in</title><style>
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; display: grid; place-items: center;
min-height: 90vh; margin: 1rem }
form { display: grid; gap: .75rem; width: min(20rem, 100%) } h1 { font-size: 1.25rem; margin: 0 }
input, button { font: inherit; padding: .5rem .75rem; border-radius: .5rem; border: 1px solid #8888;
width: 100%; box-sizing: border-box }
button { background: #0f766e; color: #fff; border: 0; cursor: pointer } p { margin: 0 }
</style><form method="post" action="login"><h1>sdtrainer</h1>
<p>This page is shared. Log in with the user and password you were given.</p>
<label>User<input name="user" autocomplete="username" required autofocus></label>
<label>Password<input name="password" type="password" autocomplete="current-password" required></label>
<p role="alert">{problem}</p><button>Log in</button></form></html>"""
