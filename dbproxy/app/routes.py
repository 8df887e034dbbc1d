"""Which of our own endpoints a path means, and what it was asked.

Owns the table of routes and the reading of paths and query strings. Knows no endpoint. Invariants: only a path that a
route names is ours, so that the client's own ``/api/...`` requests go on; what is wrong with a query is said with what
would be right.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import parse_qsl, unquote

from dbproxy.errors import DbproxyError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from dbproxy.exchange import Fields, LocalResponse, RequestHead

_NAME = re.compile(r"\{(\w+)\}")
_MOST_PARAMETERS = 32


class BadQuestion(DbproxyError):
    """The path, the query or the body cannot be understood, or asks for what is not there. ``status`` says which."""

    def __init__(self, message: str, *, status: int = 400, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status = status


@dataclass(frozen=True, slots=True)
class OwnRequest:
    """A request to one of our endpoints. ``parts`` are the named parts of its path, unquoted."""

    head: RequestHead
    path: str
    body: bytes = b""
    parts: Mapping[str, str] = field(default_factory=dict)

    @property
    def fields(self) -> Fields:
        """The request's fields."""
        return self.head.fields

    def query(self, *known: str) -> dict[str, str]:
        """The parameters; of all that are not given, none. Raises BadQuestion for others than ``known``, or twice."""
        raw = self.head.target.partition(b"?")[2].decode("latin-1")
        try:
            pairs = parse_qsl(raw, keep_blank_values=True, max_num_fields=_MOST_PARAMETERS, errors="strict")
        except ValueError:
            raise BadQuestion("the query is not readable", hint="Write ?name=value&name=value in UTF-8") from None
        found: dict[str, str] = {}
        for name, value in pairs:
            if name not in known:
                raise BadQuestion(f"unknown parameter {name[:64]!r}", hint=f"Known: {', '.join(known) or 'none'}")
            if name in found:
                raise BadQuestion(f"{name} stands twice in the query", hint="Give it once")
            if value:
                found[name] = value
        return found


Handler: TypeAlias = "Callable[[OwnRequest], Awaitable[LocalResponse]]"

#: What reading endpoints take.
READ = frozenset({b"GET", b"HEAD"})
POST = frozenset({b"POST"})


@dataclass(frozen=True, slots=True)
class Route:
    """One endpoint. ``path`` may hold named parts, ``/api/exchanges/{id}``; ``guarded`` ones need the control token."""

    path: str
    handler: Handler
    methods: frozenset[bytes] = READ
    guarded: bool = True


class Routes:
    """The table. The first route that matches wins."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._plain: dict[str, Route] = {}
        self._shaped: list[tuple[re.Pattern[str], Route]] = []
        for route in routes:
            if "{" in route.path:
                self._shaped.append((re.compile(_NAME.sub(r"(?P<\1>[^/]+)", route.path) + r"\Z"), route))
            else:
                self._plain[route.path] = route

    def find(self, path: str) -> tuple[Route, dict[str, str]] | None:
        """The route of a path and the named parts in it, None if it is nobody's."""
        route = self._plain.get(path)
        if route is not None:
            return route, {}
        for shape, route in self._shaped:
            match = shape.match(path)
            if match is not None:
                return route, {name: unquote(value) for name, value in match.groupdict().items()}
        return None
