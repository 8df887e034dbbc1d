"""A database file with one conversation of every shape in it, written by the real store.

The conversation: two turns; a turn that starts two agents, one of which starts a third; a retry; a failed request; a
compaction and the turn after it; a rewind; a title beside it. A second, short one belongs to another project.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dbproxy.model.link import Agent, Edge, Evidence, Link, RequestKind
from dbproxy.model.parts import take_apart
from dbproxy.model.record import ExchangeClosed, ExchangeOpened, RateLimit, RequestBody, StreamPiece
from dbproxy.model.usage import Usage
from dbproxy.store.writer import Store

if TYPE_CHECKING:
    from pathlib import Path

CONVERSATION = "0f3a9c52-1111-4222-8333-444455556666"
OTHER = "0f3b0000-1111-4222-8333-444455556666"
BEGAN = 1_760_000_000.0
MODEL = "claude-opus-5-5"


@dataclass
class Captured:
    """The file, the ids of its exchanges by what they are, and their bodies as they were sent."""

    path: Path
    ids: dict[str, str] = field(default_factory=dict)
    bodies: dict[str, bytes] = field(default_factory=dict)
    number: int = 0

    def __getitem__(self, name: str) -> str:
        return self.ids[name]


def exchange_id(number: int) -> str:
    return f"{int(BEGAN * 1000) + number * 1000:012x}{number:06x}"


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def put(
    store: Store,
    made: Captured,
    name: str,
    messages: list[dict[str, Any]],
    answer: str,
    *,
    kind: RequestKind = RequestKind.MAIN,
    edge: Edge = Edge.NEXT,
    parent: str = "",
    thread: str = "main",
    branch: int = 1,
    agent: Agent | None = None,
    compaction: str = "",
    attempt: int = 1,
    conversation: str = CONVERSATION,
    project: str = "/home/user/shop",
    outcome: str = "ok",
    cost: float | None = 0.0125,
    model: str = MODEL,
    stream: bool = False,
) -> str:
    """Write one exchange, opened and closed."""
    made.number += 1
    id = exchange_id(made.number)
    made.ids[name] = id
    raw = json.dumps({"model": model, "max_tokens": 32000, "system": "You help.", "messages": messages}).encode()
    made.bodies[name] = raw
    link = Link(
        id,
        conversation,
        thread,
        branch,
        kind,
        compaction=compaction,
        parent=made.ids.get(parent, parent),
        edge=edge,
        attempt=attempt,
        agent=agent,
        evidence=(
            Evidence("session", conversation, "x-claude-code-session-id header"),
            Evidence("kind", kind.value, "x-claude-code-request-class header", kind.value),
        ),
    )
    started = BEGAN + made.number
    store.append(
        ExchangeOpened(
            id,
            started,
            "POST",
            "api.anthropic.com",
            "/v1/messages",
            "tunnel",
            scope="scope1",
            project=project,
            labels=(("team", "blue"),),
            client="claude-cli/2.1.329",
            account="0123456789abcdef",
            model=model,
            streamed=True,
            message_count=len(messages),
            headers=(("authorization", "hmac:00112233445566778899aabbccddeeff"[:21]), ("x-app", "cli")),
            body=RequestBody(raw, hashlib.sha256(raw).digest(), take_apart(raw)),
            link=link,
        )
    )
    good = outcome == "ok"
    message = {"id": f"msg_{made.number:024}", "type": "message", "role": "assistant", "model": model}
    message["content"] = assistant(answer)["content"]
    error = {"type": "error", "error": {"type": "overloaded_error", "message": answer}}
    usage = Usage(input_tokens=100, output_tokens=50, cache_read=20_000, cache_write_5m=1000)
    store.append(
        ExchangeClosed(
            id,
            started + 0.9,
            outcome,
            status=200 if good else 529,
            error="" if good else "overloaded_error",
            first_byte_ms=250.0,
            duration_ms=900.0,
            bytes_up=len(raw),
            bytes_down=400,
            headers=(("request-id", f"req_{made.number}"),),
            model=model if good else "",
            message_id=str(message["id"]) if good else "",
            request_id=f"req_{made.number}",
            stop_reason="end_turn" if good else "",
            usage=usage if good else None,
            cost_usd=cost if good else None,
            priced_by="claude-opus-5-5" if good and cost is not None else "",
            message=json.dumps(message if good else error).encode(),
            stream=(StreamPiece(1.0, b"event: ping\n"), StreamPiece(2.5, b"data: {}\n\n")) if stream else None,
            limits=(RateLimit("5h", "allowed", 0.25, BEGAN + 18_000),) if good else (),
        )
    )
    return id


def fill(path: Path) -> Captured:
    """Write the file ``path``."""
    store = Store.open(path, redact=lambda text: text)
    made = Captured(path)
    first = [user("Please list the zebras in the shop")]
    second = [*first, assistant("There are two zebras."), user("Ask two helpers about them")]
    third = [*second, assistant("Asking."), user("Thanks, what did the helpers say?")]
    put(store, made, "first", first, "There are two zebras.", edge=Edge.ROOT, stream=True)
    title = [user("Name this session")]
    put(
        store, made, "title", title, '{"title": "Zebras"}', kind=RequestKind.TITLE, edge=Edge.ASIDE, thread="", branch=0
    )
    put(store, made, "second", second, "Asking.", parent="first")
    scout = Agent("a11", type="custom", name="zebra-scout", number=1, tool_use_id="toolu_1")
    plain = Agent("a22", type="Explore", number=2, tool_use_id="toolu_2")
    nested = Agent("a33", type="general-purpose", number=3, parent_thread="a11", tool_use_id="toolu_3")
    sub: dict[str, Any] = {"kind": RequestKind.SUBAGENT, "edge": Edge.SPAWN, "parent": "second"}
    put(store, made, "scout", [user("Count zebras")], "Two.", thread="a11", agent=scout, **sub)
    put(store, made, "plain", [user("Look around")], "Nothing.", thread="a22", agent=plain, **sub)
    put(
        store,
        made,
        "nested",
        [user("Count stripes")],
        "Many.",
        thread="a33",
        agent=nested,
        kind=RequestKind.NESTED,
        edge=Edge.SPAWN,
        parent="scout",
    )
    put(store, made, "failed", third, "Overloaded", parent="second", outcome="error")
    put(store, made, "retried", third, "They said two.", parent="failed", edge=Edge.RETRY, attempt=2)
    ask = [*third, assistant("They said two."), user("Your task is to create a detailed summary")]
    put(
        store,
        made,
        "compaction",
        ask,
        "A summary of zebras.",
        kind=RequestKind.COMPACTION,
        edge=Edge.ASIDE,
        parent="retried",
        compaction="auto",
        cost=None,
        model="unknown-model",
    )
    after = [user("This session is being continued: a summary of zebras. Go on.")]
    put(
        store,
        made,
        "after",
        after,
        "Going on.",
        kind=RequestKind.AFTER_COMPACTION,
        edge=Edge.COMPACTED,
        parent="compaction",
        compaction="auto",
        branch=2,
    )
    rewound = [*first, assistant("There are two zebras."), user("No, list the giraffes\x1b[31m instead")]
    put(store, made, "rewind", rewound, "There are no giraffes.", edge=Edge.REWIND, parent="first", branch=3)
    put(store, made, "other", [user("Hello")], "Hi.", edge=Edge.ROOT, conversation=OTHER, project="/home/user/farm")
    assert store.flush(10)
    assert store.close(10)
    return made
