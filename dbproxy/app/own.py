"""Our own HTTP endpoints: health, metrics, status, reset, and the way in for a browser.

Owns what they answer and who may ask; what was captured is read next door, in ``api``. Must never touch upstreams.
Invariants: ``/health`` and ``/metrics`` hold no content and no secret; everything that reads content or changes state
needs the control token, or the cookie that a browser got for it by a link that works once.
"""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import trio

from dbproxy import __version__
from dbproxy.app import guard, respond
from dbproxy.app.api import CaptureEndpoints
from dbproxy.app.counters import samples
from dbproxy.app.crash import describe_crash
from dbproxy.app.routes import POST, BadQuestion, OwnRequest, Route, Routes
from dbproxy.exchange import Fields, LocalResponse
from dbproxy.hooks.metrics import CONTENT_TYPE, Sample, render

if TYPE_CHECKING:
    from collections.abc import Collection

    from dbproxy.app.pipeline import Pipeline
    from dbproxy.app.proxy import Proxy
    from dbproxy.exchange import RequestHead

#: A request body of ours is never larger (bytes).
BODY_LIMIT = 65536
#: Seconds for which a link that lets a browser in is good, and how many may be open at once.
CODE_LIFE = 60.0
_MOST_CODES = 16


class OwnEndpoints:
    """The endpoints on the proxy's own port."""

    def __init__(self, proxy: Proxy, pipeline: Pipeline) -> None:
        self._proxy = proxy
        self._pipeline = pipeline
        self._codes: dict[str, float] = {}  # of links that work once -> until when, on the loop's clock
        self._capture = CaptureEndpoints(proxy)
        self._routes = Routes(
            [
                Route("/health", self._health, guarded=False),
                Route("/metrics", self._metrics, guarded=False),
                Route("/api/status", self._status),
                Route("/v1/_reset", self._reset, POST),
                Route("/api/login-code", self._login_code, POST),
                Route("/dashboard/login", self._login, frozenset({b"GET"}), guarded=False),
                *self._capture.routes(),
            ]
        )

    def owns(self, path: str) -> bool:
        """Whether a path outside a tunnel is ours; every other one is forwarded."""
        return path == "/dashboard" or path.startswith("/dashboard/") or self._routes.find(path) is not None

    async def answer(
        self, head: RequestHead, path: str, body: bytes, *, names: Collection[str], loopback: bool
    ) -> LocalResponse:
        """The answer to a request for one of our paths; ``names`` are further names of this machine."""
        if not guard.host_is_ours(head.fields, names):
            return respond.error_response(
                421, "this address answers only under its own name; use http://127.0.0.1 and the port"
            )
        if guard.is_foreign_origin(head.fields):
            return respond.error_response(403, "a page of another origin may not use this address")
        found = self._routes.find(path)
        if found is None:
            return respond.error_response(404, "there is no web page in this version; see /health and /metrics")
        route, parts = found
        if head.method not in route.methods:
            allowed = b", ".join(sorted(route.methods))
            return respond.error_response(405, f"use {allowed.decode()}", extra=[(b"allow", allowed)])
        if route.guarded and not self._may_read(head.fields):
            return _unknown_asker()
        try:
            return await route.handler(OwnRequest(head, path, body, parts))
        except BadQuestion as error:
            return respond.error_response(error.status, str(error))
        except Exception as error:
            self._proxy.counters.crashes_total += 1
            self._proxy.journal.emit("endpoint_crashed", level="error", path=path, error=describe_crash(error))
            return respond.error_response(500, "this failed by an error of ours; the log says where")

    def _may_read(self, fields: Fields) -> bool:
        token = self._proxy.token
        return guard.has_token(fields, token) or guard.has_cookie(fields, token, time.time())

    async def _health(self, request: OwnRequest) -> LocalResponse:
        proxy = self._proxy
        problems = {}
        if proxy.journal.degraded:
            problems["journal"] = proxy.journal.degraded
        if proxy.archive.state:
            problems["capture"] = proxy.archive.state
        if proxy.degraded:
            problems["worker"] = f"every host is tunnelled blindly after {proxy.degraded}"
        if proxy.alone:
            problems["supervisor"] = "it was killed, so nobody replaces this worker if it fails"
        facts: dict[str, object] = {
            "status": "degraded" if problems else "ok",
            "conversations": len(proxy.sessions),
            "passthrough": proxy.settings.passthrough,
            "version": __version__,
            "uptime_s": round(time.time() - proxy.started, 1),
            "instance": proxy.instance,
            "draining": proxy.draining,
            "plugins": await self._plugins(),
        }
        if problems:
            facts["problems"] = problems
        return respond.json_response(200, facts)

    async def _plugins(self) -> dict[str, dict[str, object]]:
        dispatch = self._proxy.dispatch
        facts: dict[str, dict[str, object]] = {
            row.name: {"state": row.state, "version": row.version, **({"error": row.error} if row.error else {})}
            for row in dispatch.manager.rows()
        }
        for name, report in dispatch.report().items():
            facts.setdefault(name, {}).update(report)
        for name, own in await dispatch.collect("health"):
            facts.setdefault(name, {})["health"] = own
        return facts

    async def _metrics(self, request: OwnRequest) -> LocalResponse:
        proxy = self._proxy
        gauges = [
            ("uptime_seconds", "Seconds since start.", time.time() - proxy.started),
            ("sessions", "Client sessions seen within their time to live.", len(proxy.sessions)),
            ("pool_idle_connections", "Idle upstream connections.", proxy.egresses.idle_connections()),
            ("journal_dropped", "Log events lost.", proxy.journal.dropped),
            ("tasks", "Tasks of the event loop.", trio.lowlevel.current_statistics().tasks_living),
        ]
        found = samples(proxy.counters)
        found += [Sample(f"dbproxy_{name}", value, kind="gauge", help=text) for name, text, value in gauges]
        found += proxy.dispatch.samples()
        found += proxy.taps.samples()
        found += proxy.archive.samples()
        found += proxy.routing.samples()
        for _, given in await proxy.dispatch.collect("metrics"):
            found += given
        return respond.text_response(200, render(found), CONTENT_TYPE.encode())

    async def _status(self, request: OwnRequest) -> LocalResponse:
        proxy = self._proxy
        flights = self._pipeline.flights.values()
        return respond.json_response(
            200,
            {
                "version": __version__,
                "listen": [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in proxy.listening],
                "intercept": sorted(proxy.intercepted),
                "upstream_url": proxy.settings.upstream_url,
                "sessions": [
                    {"id": s.id, "scope": s.scope, "requests": s.requests, "last_seen": s.last_seen}
                    for s in proxy.sessions.all()
                ],
                "exchanges": [
                    {"id": f.exchange.id, "host": f.exchange.host, "path": f.exchange.path, "scope": f.exchange.scope}
                    for f in flights
                ],
                "rejections": [asdict(rejection) for rejection in proxy.rejections.snapshot()],
                "roots": [root.fingerprint for root in proxy.authority.roots],
                "plugins": await self._plugins(),
                "log": {"file": str(proxy.paths.log_file), "dropped": proxy.journal.dropped},
            },
        )

    async def _reset(self, request: OwnRequest) -> LocalResponse:
        try:
            wanted = json.loads(request.body or b"{}")
            prefix = wanted.get("conv_id")
            if prefix is not None and not (isinstance(prefix, str) and prefix):
                raise ValueError
        except (ValueError, AttributeError, RecursionError):
            return respond.error_response(400, 'send {} to reset all, or {"conv_id": "prefix"}')
        gone = dict.fromkeys(self._proxy.sessions.reset(prefix))
        self._proxy.archive.forget(prefix)
        for _, ids in await self._proxy.dispatch.collect("conversation_reset", prefix=prefix):
            gone |= dict.fromkeys(ids)
        if prefix is None:
            return respond.json_response(200, {"status": "reset_all", "count": len(gone)})
        if not gone:
            return respond.error_response(404, f"no conversation begins with {prefix[:64]!r}")
        return respond.json_response(200, {"status": "reset", "conv_id": next(iter(gone))})

    async def _login_code(self, request: OwnRequest) -> LocalResponse:
        """A link that lets one browser in, once. For who holds the token: a cookie must not prolong itself."""
        if not guard.has_token(request.fields, self._proxy.token):
            return _unknown_asker()
        now = trio.current_time()
        self._codes = {code: until for code, until in self._codes.items() if until > now}
        while len(self._codes) >= _MOST_CODES:
            del self._codes[next(iter(self._codes))]
        code = secrets.token_urlsafe(24)
        self._codes[code] = now + CODE_LIFE
        return respond.json_response(
            200, {"code": code, "path": f"/dashboard/login?code={code}", "expires_s": int(CODE_LIFE)}
        )

    async def _login(self, request: OwnRequest) -> LocalResponse:
        code = request.query("code").get("code", "")
        until = self._codes.pop(code, 0.0)
        if until <= trio.current_time():
            raise BadQuestion(
                "this link is used up or older than a minute", status=403, hint="Ask for a new one: `dbproxy dashboard`"
            )
        cookie = guard.make_cookie(self._proxy.token, time.time())
        pairs = [
            (b"location", b"/dashboard"),
            (b"set-cookie", cookie),
            (b"cache-control", b"no-store"),
            (b"referrer-policy", b"no-referrer"),
        ]
        return LocalResponse(303, Fields.of(pairs))


def _unknown_asker() -> LocalResponse:
    return respond.error_response(
        401,
        "this needs the control token: send Authorization: Bearer with the content of run/control-token",
        extra=[(b"www-authenticate", b"Bearer")],
    )
