"""Compares what an agent sent and got with what the fake API got and sent: byte for byte, less hop-by-hop fields.

Pure functions over the agent's report and the origin's records.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dbproxy.testing.origin import Received

# RFC 9110 7.6.1, and what belongs to a proxy's own leg.
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"transfer-encoding",
        b"upgrade",
    }
)
OURS = b"x-dbproxy-"


@dataclass(frozen=True, slots=True)
class Line:
    """One request of the agent: sizes of its body and of its answer's, and what differed."""

    up: int
    down: int
    differences: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One line per request of the agent, and the requests that only the API knows."""

    lines: tuple[Line, ...]
    unmatched: tuple[str, ...]

    @property
    def same(self) -> bool:
        """Nothing differs, nothing is missing, nothing is too much."""
        return not self.unmatched and all(not line.differences for line in self.lines)


def head_lines(head: bytes, *, drop: bytes = b"") -> list[bytes]:
    """The head's lines, exactly, without hop-by-hop fields and those whose name begins with ``drop``."""
    lines = head.replace(b"\r\n", b"\n").strip(b"\n").split(b"\n")
    kept = [lines[0]]
    for line in lines[1:]:
        name = line.partition(b":")[0].strip().lower()
        if name not in HOP_BY_HOP and not (drop and name.startswith(drop)):
            kept.append(line)
    return kept


def readdressed(lines: list[bytes], authority: str) -> list[bytes]:
    """The same lines as a proxy sends them to another upstream: the Host field's value replaced, nothing else."""
    return [
        line.partition(b":")[0] + b": " + authority.encode() if line.lower().startswith(b"host:") else line
        for line in lines
    ]


def _differences(what: str, left: list[bytes], right: list[bytes]) -> list[str]:
    if left == right:
        return []
    for mine, other in zip(left, right, strict=False):
        if mine != other:
            # Names only: a value may be a credential.
            names = mine.partition(b":")[0], other.partition(b":")[0]
            return [f"{what}: {names[0].decode('latin-1')!r} against {names[1].decode('latin-1')!r}"]
    return [f"{what}: {len(left)} lines against {len(right)}"]


def compare(attempts: Sequence[dict[str, Any]], requests: Sequence[Received], *, authority: str = "") -> Comparison:
    """Pair the agent's attempts with the API's records by x-client-request-id, else by target and order.

    ``authority`` is the configured upstream's: its name in Host, in place of the one that the agent meant, is right.
    """
    left = list(requests)
    lines = []
    for attempt in attempts:
        found = next((request for request in left if _pair(attempt, request)), None)
        body = base64.b64decode(attempt["body"])
        answer = base64.b64decode(attempt["answer_body"])
        if found is None:
            lines.append(Line(len(body), len(answer), ("it never reached the API",)))
            continue
        left.remove(found)
        sent, arrived = head_lines(base64.b64decode(attempt["head"])), head_lines(found.head)
        if authority and (found.header("host") or "") == authority:
            sent = readdressed(sent, authority)
        differences = _differences("request head", sent, arrived)
        if body != found.body:
            differences.append(f"request body: {len(body)} against {len(found.body)} bytes")
        differences += _differences(
            "answer head",
            head_lines(base64.b64decode(attempt["answer_head"]), drop=OURS),
            head_lines(found.sent.head),
        )
        if attempt["left"]:
            if not bytes(found.sent.body).startswith(answer):
                differences.append("answer body: not a part of what was sent")
        elif answer != bytes(found.sent.body):
            differences.append(f"answer body: {len(answer)} against {len(found.sent.body)} bytes")
        if attempt["complete"] != found.sent.complete and not attempt["left"]:
            differences.append("a cut answer came as a complete one, or the other way round")
        lines.append(Line(len(body), len(answer), tuple(differences)))
    return Comparison(tuple(lines), tuple(f"{request.method} {request.path}" for request in left))


def _pair(attempt: dict[str, Any], request: Received) -> bool:
    if attempt["key"]:
        return request.header("x-client-request-id") == str(attempt["key"])
    return (str(attempt["method"]), str(attempt["target"])) == (request.method, request.target)
