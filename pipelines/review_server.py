"""The review's server: a page and its few requests, for this machine's browser alone.

Every request: Host must be ours, Origin ours or absent (present where something is written), a body at most 64 KiB.
A one-time token in the URL becomes a session's cookie (HttpOnly, SameSite=Strict) and is dead; what is written needs
the session's own header besides, which no other site can send. No script or style but our own two files; no request
leaves the page. A decision is on disk before it is answered.
"""

import hmac
import json
import logging
import secrets
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines import review_items
from pipelines.review_decisions import Refused, decisions
from pipelines.review_items import Case
from schemas.errors import ArtifactMismatch
from schemas.ledger import HEAD, LEDGER, Entry, append_with, read_ledger

log = logging.getLogger(__name__)
HERE = Path(__file__).parent
MESSAGES = HERE / "messages"
STATIC = {"review.css": "text/css", "review.js": "text/javascript", "review.svg": "image/svg+xml"}
CSRF_HEADER = "x-review-session"
MOST_BYTES = 64 * 1024
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def load_messages(language: str = "en") -> dict[str, str]:
    """Every word of the page, by name."""
    return json.loads((MESSAGES / f"review.{language}.json").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Session:
    reviewer: str
    csrf: str


@dataclass
class Sessions:
    """Who may come in: tokens that were not used yet, and the sessions that were made of the others."""

    unused: dict[str, str] = field(default_factory=dict)
    open: dict[str, Session] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def invite(self, reviewer: str) -> str:
        """A token that lets the reviewer in once."""
        token = secrets.token_urlsafe(32)
        self.unused[token] = reviewer
        return token

    def exchange(self, token: str) -> str | None:
        """The new session's key for a token that was not used before, else None."""
        with self.lock:
            for known in list(self.unused):
                if hmac.compare_digest(known.encode(), token.encode("utf-8", "surrogatepass")):
                    key = secrets.token_urlsafe(32)
                    self.open[key] = Session(self.unused.pop(known), secrets.token_urlsafe(32))
                    return key
        return None

    def of(self, key: str) -> Session | None:
        given = key.encode("utf-8", "surrogatepass")
        return next((s for known, s in self.open.items() if hmac.compare_digest(known.encode(), given)), None)


class LedgerView:
    """The run's ledger as it is on disk now, read and checked again where its files have changed."""

    def __init__(self, folder: str):
        self.folder, self._seen, self._entries = Path(folder), None, []
        self._lock = threading.Lock()

    def entries(self) -> list[Entry]:
        with self._lock:
            seen = tuple(self._version(name) for name in (LEDGER, HEAD))
            if seen != self._seen:
                self._entries, self._seen = read_ledger(self.folder), seen
            return self._entries

    def _version(self, name: str) -> tuple[int, int, int] | None:
        try:
            told = (self.folder / name).stat()
        except FileNotFoundError:
            return None
        return told.st_ino, told.st_size, told.st_mtime_ns


class Guard:
    """What holds for every request, whatever it asks for: Host, Origin, size, and the headers of every answer."""

    def __init__(self, app: ASGIApp, origin: str):
        self.app, self.origin, self.host = app, origin, origin.split("://")[1]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        refusal = self._refusal(scope)
        if refusal:
            await plain(refusal[1], refusal[0])(scope, receive, self._with_headers(send))
            return
        await self.app(scope, receive, self._with_headers(send))

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        sent: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            sent.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        writes = scope["method"] not in ("GET", "HEAD")
        if sent.get("host") != [self.host]:
            return 403, f"expected the host {self.host}"
        if sent.get("origin", [] if writes else [self.origin]) != [self.origin]:
            return 403, f"expected the origin {self.origin}"
        if writes and sent.get("sec-fetch-site", ["same-origin"]) != ["same-origin"]:
            return 403, "expected a request of the page itself"
        length = sent.get("content-length", ["0"])[0]
        if not length.isdecimal() or int(length) > MOST_BYTES:
            return 413, f"expected a body of at most {MOST_BYTES} bytes"
        return None

    def _with_headers(self, send: Send) -> Send:
        async def wrapped(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message = message | {"headers": [*message.get("headers", ()), *extra]}
            await send(message)

        return wrapped


def plain(text: str, status: int = 200) -> Response:
    return Response(text + "\n", status, media_type="text/plain")


def as_json(content: Any, status: int = 200) -> Response:
    # ASCII: a lone surrogate of a corpus has no UTF-8.
    return Response(json.dumps(content, allow_nan=False), status, media_type="application/json")


async def limited_body(request: Request) -> bytes:
    """The body, which may come in chunks of unknown number."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BYTES:
            raise HTTPException(413, f"expected a body of at most {MOST_BYTES} bytes")
    return bytes(body)


class ReviewApp:
    """The routes. Each but `enter` and the static files answers a session alone."""

    def __init__(self, case: Case, sessions: Sessions, origin: str, language: str = "en"):
        self.case, self.sessions, self.language = case, sessions, language
        self.ledger = LedgerView(case.folder)
        self.messages = load_messages(language)
        self.cookie = f"proponent-review-{origin.rsplit(':', 1)[1]}"  # cookies of one host know no ports
        env = Environment(loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined)
        self.template = env.get_template("review.html.j2")

    def routes(self) -> list[Route]:
        return [
            Route("/enter/{token}", self.enter, methods=["GET"]),
            Route("/", self._for_session(self.page), methods=["GET"]),
            *(Route(f"/static/{name}", self.static, methods=["GET"]) for name in STATIC),
            Route("/api/messages", self._for_session(self.get_messages), methods=["GET"]),
            Route("/api/queue", self._for_session(self.queue), methods=["GET"]),
            Route("/api/items/{number:int}", self._for_session(self.item), methods=["GET"]),
            Route("/api/states", self._for_session(self.states), methods=["GET"]),
            Route("/api/search", self._for_session(self.search), methods=["GET"]),
            Route("/api/decisions", self.decide, methods=["POST"]),
        ]

    def _session(self, request: Request) -> Session:
        session = self.sessions.of(request.cookies.get(self.cookie, ""))
        if session is None:
            raise HTTPException(403, self.messages["no_session"])
        return session

    def _for_session(self, answer: Callable[[Request, Session], Response]) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            session = self._session(request)
            try:
                return await run_in_threadpool(answer, request, session)
            except ArtifactMismatch as error:
                return as_json({"error": "ledger", "detail": str(error)}, 409)

        return endpoint

    async def enter(self, request: Request) -> Response:
        if request.method != "GET":  # a look at the head must not use the token up
            raise HTTPException(405)
        key = self.sessions.exchange(request.path_params["token"])
        if key is None:
            raise HTTPException(403, self.messages["token_used"])
        # A page that goes on by itself, and no redirection: a Strict cookie is not sent along one that began elsewhere.
        env_page = self.template.environment.get_template("review_enter.html.j2")
        response = Response(env_page.render(text=self.messages, language=self.language), media_type="text/html")
        response.set_cookie(self.cookie, key, httponly=True, samesite="strict", path="/")
        return response

    def static(self, request: Request) -> Response:
        name = request.url.path.rsplit("/", 1)[1]
        return Response((HERE / "static" / name).read_bytes(), media_type=STATIC[name])

    def page(self, request: Request, session: Session) -> Response:
        html = self.template.render(
            text=self.messages,
            language=self.language,
            run=review_items.shown(Path(self.case.folder).name),
            reviewer=review_items.shown(session.reviewer),
            csrf=session.csrf,
        )
        return Response(html.encode("utf-8"), media_type="text/html")

    def get_messages(self, request: Request, session: Session) -> Response:
        return as_json(self.messages)

    def queue(self, request: Request, session: Session) -> Response:
        entries = self.ledger.entries()
        return as_json({
            "items": review_items.queue_rows(self.case),
            "requests": [review_items.request_row(row) for row in self.case.requests.values()],
            "seq": len(entries),
            "states": review_items.states(self.case, entries),
        })  # fmt: skip

    def item(self, request: Request, session: Session) -> Response:
        number = request.path_params["number"]
        if number >= len(self.case.items):
            raise HTTPException(404)
        whole = request.query_params.get("whole") == "1"
        return as_json(review_items.item_row(self.case, number, self.ledger.entries(), whole))

    def states(self, request: Request, session: Session) -> Response:
        since = request.query_params.get("since", "0")
        if not since.isdecimal() or len(since) > 12:
            raise HTTPException(400)
        entries = self.ledger.entries()
        if int(since) >= len(entries) > 0:
            return as_json({"seq": len(entries), "states": {}, "by": []})
        by = [
            {"seq": e.seq, "reviewer": review_items.shown(e.reviewer), "mine": e.reviewer == session.reviewer}
            for e in entries[int(since) :]
        ]
        return as_json({"seq": len(entries), "states": review_items.states(self.case, entries, int(since)), "by": by})

    def search(self, request: Request, session: Session) -> Response:
        return as_json({"items": review_items.search(self.case, request.query_params.get("q", ""))})

    async def decide(self, request: Request) -> Response:
        session = self._session(request)
        if not hmac.compare_digest(request.headers.get(CSRF_HEADER, "").encode("latin-1"), session.csrf.encode()):
            raise HTTPException(403, self.messages["no_session"])
        if request.headers.get("content-type", "").split(";")[0].strip() != "application/json":
            raise HTTPException(415)
        body = await limited_body(request)
        try:
            asked = json.loads(body)
            return await run_in_threadpool(self._decide, asked, session)
        except Refused as refusal:
            return as_json({"error": refusal.message, "values": refusal.values}, 409)
        except ArtifactMismatch as error:
            return as_json({"error": "ledger", "detail": str(error)}, 409)
        except (ValueError, RecursionError) as error:
            return as_json({"error": "malformed", "detail": str(error)}, 400)

    def _decide(self, asked: dict[str, Any], session: Session) -> Response:
        def made(entries: list[Entry]) -> list[Entry]:
            return decisions(self.case, asked, session.reviewer, entries)

        written = append_with(self.case.folder, made)
        log.debug("entries %d to %d by %s", written[0].seq, written[-1].seq, session.reviewer)
        entries = self.ledger.entries()
        rows = review_items.states(self.case, entries, written[0].seq - 1)
        return as_json({"seq": written[-1].seq, "first": written[0].seq, "states": rows})


async def refuse(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return plain(error.detail if isinstance(error, HTTPException) else "error", status)


def make_app(case: Case, sessions: Sessions, origin: str, language: str = "en") -> ASGIApp:
    """The server's application for one run; `origin` is where it is reached, http://127.0.0.1:PORT."""
    app = Starlette(
        routes=ReviewApp(case, sessions, origin, language).routes(), exception_handlers={HTTPException: refuse}
    )
    app.router.redirect_slashes = False
    return Guard(app, origin)
