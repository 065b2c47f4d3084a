"""Who may ask what: the Host header, other sites, the token, and what browsers are told."""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.web.metrics import Metrics
from pipeline.web.models import Problem, ProblemAnswer
from pipeline.web.refusals import Refusal

__all__ = ["AUTHENTICATED", "COOKIE", "REPORT_POLICY", "Gate", "Guard", "refusal_response"]

# Only files of our own; NiiVue draws pictures that it makes itself (data:, blob:), and may start a worker from one.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self' data: blob:; worker-src 'self' blob:; frame-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
DATA_POLICY = "default-src 'none'; frame-ancestors 'none'"
# A report is shown as if it came from elsewhere: it cannot act for the user, nor run anything.
REPORT_POLICY = "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'; frame-ancestors 'self'"
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
PAGES = ("/static/", "/jobs/")
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
HOST = re.compile(r"(\[(?P<address>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9._-]+))(:[0-9]*)?")
COOKIE = "ar2unet_session"
SESSION_SECONDS = 12 * 3600
AUTHENTICATED = "ar2unet.authenticated"  # key of the ASGI scope


class Gate:
    """Tells who has the token.

    Args:
        token: None where nobody needs one.
    """

    def __init__(self, token: str | None) -> None:
        self.token = token

    def knows(self, token: str) -> bool:
        """Return whether this is the token, in a time that does not tell how much of it is right."""
        return self.token is not None and hmac.compare_digest(_digest(token), _digest(self.token))

    def open_session(self, now: float | None = None) -> str:
        """Return a cookie that is good for twelve hours, here and after a restart, and does not give the token away."""
        expires = str(int((time.time() if now is None else now) + SESSION_SECONDS))
        return f"{expires}.{self._sign(expires)}"

    def admits(self, headers: Headers) -> bool:
        """Return whether a request shows the token, or a session's cookie."""
        if self.token is None:
            return True
        scheme, _, credentials = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self.knows(credentials.strip())
        expires, _, signature = cookie_parser(headers.get("cookie", "")).get(COOKIE, "").partition(".")
        genuine = hmac.compare_digest(_digest(signature), _digest(self._sign(expires)))
        return genuine and expires.isdecimal() and int(expires) > time.time()

    def _sign(self, expires: str) -> str:
        return hmac.new((self.token or "").encode(), f"session {expires}".encode(), hashlib.sha256).hexdigest()


class Guard:
    """Stands before the application: refuses wrong hosts and other sites, and gives every answer its headers.

    Args:
        app: What it protects.
        gate: Tells who has the token.
        hosts: Names under which the server is reached, besides those of loopback.
        metrics: Counts the answers.
    """

    def __init__(self, app: ASGIApp, *, gate: Gate, hosts: Iterable[str], metrics: Metrics) -> None:
        self.app, self.gate, self.metrics = app, gate, metrics
        self.hosts = {host.lower() for host in (*LOOPBACK_NAMES, *hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or have it answered."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers, path, method = Headers(scope=scope), scope["path"], scope["method"]

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._complete(MutableHeaders(scope=message), path)
                self.metrics.answers.labels(_known_method(method), message["status"]).inc()
            await send(message)

        refusal = self._judge(headers, method)
        scope[AUTHENTICATED] = self.gate.admits(headers)
        app = self.app if refusal is None else refusal_response(refusal)
        await app(scope, receive, send_guarded)

    def _judge(self, headers: Headers, method: str) -> Refusal | None:
        hosts = headers.getlist("host")
        name = _host_name(hosts[0]) if len(hosts) == 1 else None
        if name not in self.hosts:
            # Else any site could have its own name point here, and read what a browser is shown.
            return Refusal("wrong_host", "expected the address of this server in the Host header, got another")
        if method in SAFE_METHODS:
            return None
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        foreign = origin is not None and urlsplit(origin).netloc.lower() != hosts[0].lower()
        if (site is not None and site != "same-origin") or foreign:
            return Refusal("cross_origin", "expected a request from this server's own page, got one from another site")
        return None

    @staticmethod
    def _complete(headers: MutableHeaders, path: str) -> None:
        for name, value in HEADERS.items():
            headers.setdefault(name, value)
        page = path == "/" or path.startswith(PAGES)
        headers.setdefault("Content-Security-Policy", PAGE_POLICY if page else DATA_POLICY)
        headers.setdefault("Cache-Control", "no-cache" if page else "no-store")


def refusal_response(refusal: Refusal) -> JSONResponse:
    """Return what a refused request is answered with."""
    answer = ProblemAnswer(error=Problem.of(refusal.code, refusal.message))
    headers = dict(refusal.headers or {})
    if refusal.status == 401:
        headers.setdefault("WWW-Authenticate", "Bearer")
    return JSONResponse(answer.model_dump(), refusal.status, headers)


def _host_name(host: str) -> str | None:
    found = HOST.fullmatch(host)
    return None if found is None else (found["address"] or found["name"]).lower()


def _known_method(method: str) -> str:
    """Keep what strangers make up out of the metrics."""
    return method if method in (*SAFE_METHODS, "POST", "PUT", "DELETE", "PATCH") else "other"


def _digest(text: str) -> bytes:
    # Of equal lengths, whatever was sent, and of any characters.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
