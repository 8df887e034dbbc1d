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
    swapped: bool = False  # a compact request that the proxy answered


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A request of the proxy's own for a summary: the body of the agent's request number ``base``, and so many
    (``more``) bytes put in at one place."""

    base: int
    up: int
    more: int
    down: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """One line per request of the agent, the proxy's own requests, and those that nobody can explain."""

    lines: tuple[Line, ...]
    unmatched: tuple[str, ...]
    checkpoints: tuple[Checkpoint, ...] = ()

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


def compare(
    attempts: Sequence[dict[str, Any]], requests: Sequence[Received], *, authority: str = "", buffered: bool = False
) -> Comparison:
    """Pair the agent's attempts with the API's records by x-client-request-id, else by target and order.

    ``authority`` is the configured upstream's: its name in Host, in place of the one that the agent meant, is right.
    ``buffered`` says that the proxy may make checkpoints and answer compact requests from them; nothing else.
    """
    left = list(requests)
    lines = []
    for attempt in attempts:
        found = next((request for request in left if _pair(attempt, request)), None)
        body = base64.b64decode(attempt["body"])
        answer = base64.b64decode(attempt["answer_body"])
        if found is None and buffered and attempt["kind"] == "compaction" and attempt["complete"]:
            lines.append(Line(len(body), len(answer), (), swapped=True))
            continue
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
    own = {request.number: _checkpoint(attempts, request) for request in left} if buffered else {}
    unmatched = (f"{request.method} {request.path}" for request in left if own.get(request.number) is None)
    return Comparison(tuple(lines), tuple(unmatched), tuple(made for made in own.values() if made is not None))


def _checkpoint(attempts: Sequence[dict[str, Any]], request: Received) -> Checkpoint | None:
    """The request as a checkpoint of what the agent sent, None if it is none."""
    if request.header("x-claude-code-request-class") != "compaction":
        return None
    for attempt in reversed(attempts):
        body = base64.b64decode(attempt["body"])
        more = _put_in(body, request.body) if attempt["kind"] != "compaction" and body else 0
        if more:
            return Checkpoint(attempt["number"], len(request.body), more, len(request.sent.body))
    return None


def _put_in(old: bytes, new: bytes) -> int:
    """How many bytes were put into ``old``, all at one place, to make ``new``; 0 if that is not how it was made."""
    same = next((place for place, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), len(old))
    return len(new) - len(old) if len(new) > len(old) and new.endswith(old[same:]) else 0


def _pair(attempt: dict[str, Any], request: Received) -> bool:
    if attempt["key"]:
        return request.header("x-client-request-id") == str(attempt["key"])
    return (str(attempt["method"]), str(attempt["target"])) == (request.method, request.target)
