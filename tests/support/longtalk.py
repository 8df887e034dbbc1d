"""A long conversation as Claude Code sends it: the same one every time, for tests and benchmarks of the store.

200 turns with the defaults are the conversation of the performance facts, section 10: system and tools 58 KB, 4 KB
more per turn, cache_control marks that move, a last body of 893 KB and 95 MB in all. Its text is made up of a
vocabulary with the frequencies of natural language, so that it compresses like real traffic (a body 3.4 times with
zstandard 3).
"""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dbproxy.model.link import Edge, Evidence, Link, Point, RequestKind
from dbproxy.model.parts import take_apart
from dbproxy.model.record import ExchangeClosed, ExchangeOpened, RateLimit, RequestBody
from dbproxy.model.usage import Usage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dbproxy.model.record import Record

SESSION = "5f0c1a52-3f5e-4f0e-9d4f-6a0f9d1f7c11"
START = 1_780_000_000.0


@dataclass(frozen=True)
class Turn:
    """One request and its answer."""

    number: int
    body: bytes
    answer: dict[str, Any]

    @property
    def message(self) -> bytes:
        """The final message, as the accumulator gives it."""
        return compact(self.answer)

    @property
    def id(self) -> str:
        """The exchange's id."""
        return exchange_id(self.number)

    @property
    def started(self) -> float:
        """When it was sent: every 20 seconds."""
        return START + 20.0 * self.number


def exchange_id(number: int) -> str:
    """The id of a turn, as the proxy makes them."""
    return f"{int((START + 20.0 * number) * 1000):012x}{number & 0xFFFFFF:06x}"


def compact(value: object) -> bytes:
    """JSON as JavaScript writes it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


class Words:
    """Text of one seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        syllables = [a + b for a in "bcdfghklmnprstvw" for b in ("a", "e", "i", "o", "u", "er", "en", "ar", "ion")]
        self.vocabulary = ["".join(self.random.choices(syllables, k=1 + n % 3)) for n in range(3000)]
        total = 0.0
        self.weights = [total := total + 1 / (n + 2.7) for n in range(len(self.vocabulary))]

    def words(self, count: int) -> list[str]:
        """Words with the frequencies of a natural language (Zipf)."""
        return self.random.choices(self.vocabulary, cum_weights=self.weights, k=count)

    def name(self) -> str:
        """An identifier."""
        return "_".join(self.words(2))

    def prose(self, size: int) -> str:
        """Sentences of about ``size`` characters."""
        return " ".join(self.words(size // 5 + 1))[:size]

    def code(self, size: int) -> str:
        """A numbered listing of a program, about ``size`` characters."""
        lines: list[str] = []
        length = 0
        while length < size:
            depth = "    " * self.random.choice((0, 1, 1, 2, 2, 3))
            line = self.random.choice(
                (
                    f"{depth}{self.name()} = {self.name()}({', '.join(self.words(2))})",
                    f"{depth}if {self.name()} is not None and {self.name()} > {self.random.randrange(1000)}:",
                    f"{depth}return self.{self.name()}",
                    f"{depth}def {self.name()}(self, {', '.join(self.words(2))}) -> None:",
                    f"{depth}# {' '.join(self.words(9))}",
                    "",
                )
            )
            lines.append(f"{len(lines) + 1:6}→{line}")
            length += len(lines[-1]) + 1
        return "\n".join(lines)[:size]


class Talk:
    """The conversation. ``take`` gives its turns one by one."""

    def __init__(self, seed: int = 1, *, setup: int = 58_000, growth: int = 4_000, session: str = SESSION) -> None:
        """``setup`` bytes of system prompt and tools, ``growth`` bytes more with each turn."""
        self.words = Words(seed)
        self.growth = growth
        self.session = session
        self.messages: list[dict[str, Any]] = []
        tools = 24
        each = setup // 2 // tools
        self.tools = [
            {
                "name": f"Tool{n}",
                "description": self.words.prose(each - 260),
                "input_schema": {
                    "$schema": "https://json-schema.org/draft/2020-12/schema",
                    "type": "object",
                    "properties": {"file_path": {"description": self.words.prose(60), "type": "string"}},
                    "required": ["file_path"],
                    "additionalProperties": False,
                },
            }
            for n in range(tools)
        ]
        self.system = ["You are Claude Code, Anthropic's official CLI for Claude.", self.words.prose(setup // 2)]

    def take(self, turns: int) -> Iterator[Turn]:
        """The next turns."""
        for _ in range(turns):
            number = len(self.messages) // 2
            self.messages.append(self._user(number))
            answer = self._answer(number)
            yield Turn(number, self.body(number), answer)
            self.messages.append({"role": "assistant", "content": answer["content"]})

    def body(self, number: int) -> bytes:
        """The request with the messages so far: marks on the system prompt and on the last message."""
        mark = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
        *earlier, last = self.messages
        content = last["content"]
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        marked = {"role": last["role"], "content": [*blocks[:-1], {**blocks[-1], **mark}]}
        billing = f"x-anthropic-billing-header: cc_version=2.1.329.{number:03x}; cc_entrypoint=cli; cch={number:05x};"
        user = {"device_id": hashlib.sha256(b"device").hexdigest(), "account_uuid": SESSION, "session_id": self.session}
        return compact(
            {
                "model": "claude-opus-5-5",
                "messages": [*earlier, marked],
                "system": [
                    {"type": "text", "text": billing},
                    *({"type": "text", "text": text, **mark} for text in self.system),
                ],
                "tools": self.tools,
                "metadata": {"user_id": json.dumps(user)},
                "max_tokens": 32000,
                "thinking": {"type": "adaptive"},
                "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
                "output_config": {"effort": "medium"},
                "stream": True,
            }
        )

    def _user(self, number: int) -> dict[str, Any]:
        if number % 10 == 0:  # the person speaks
            return {"role": "user", "content": self.words.prose(self.growth // 2)}
        result = self.words.code(self.growth // 2 - 150)
        return {
            "role": "user",
            "content": [{"tool_use_id": self._tool_id(number - 1), "type": "tool_result", "content": result}],
        }

    def _answer(self, number: int) -> dict[str, Any]:
        return {
            "model": "claude-opus-5-5",
            "id": "msg_01" + hashlib.sha256(f"m{number}".encode()).hexdigest()[:22],
            "type": "message",
            "role": "assistant",
            "content": [
                {"type": "text", "text": self.words.prose(self.growth // 6)},
                {
                    "type": "tool_use",
                    "id": self._tool_id(number),
                    "name": "Tool3",
                    "input": {
                        "file_path": f"/home/user/project/{self.words.name()}.py",
                        "old_string": self.words.code(self.growth // 8),
                        "new_string": self.words.code(self.growth // 6),
                    },
                },
            ],
            "stop_reason": "tool_use",
            "stop_sequence": None,
            "usage": {"input_tokens": 3, "cache_read_input_tokens": 14_000 + number * 1100, "output_tokens": 700},
        }

    def _tool_id(self, number: int) -> str:
        return "toolu_01" + hashlib.sha256(f"{self.session}{number}".encode()).hexdigest()[:22]


REQUEST_HEADERS = (
    ("host", "api.anthropic.com"),
    ("connection", "keep-alive"),
    ("Accept", "application/json"),
    ("X-Stainless-Retry-Count", "0"),
    ("X-Stainless-Timeout", "600"),
    ("X-Stainless-Lang", "js"),
    ("X-Stainless-Package-Version", "0.94.0"),
    ("X-Stainless-OS", "Linux"),
    ("X-Stainless-Arch", "x64"),
    ("X-Stainless-Runtime", "node"),
    ("X-Stainless-Runtime-Version", "v24.3.0"),
    ("anthropic-dangerous-direct-browser-access", "true"),
    ("anthropic-version", "2023-06-01"),
    ("authorization", "hmac:5ac0ffee5ac0ffee"),
    ("x-app", "cli"),
    ("User-Agent", "claude-cli/2.1.329 (external, cli)"),
    ("X-Claude-Code-Session-Id", SESSION),
    ("content-type", "application/json"),
    ("anthropic-beta", "claude-code-20250219,oauth-2025-04-20,interleaved-thinking-2025-05-14"),
    ("accept-encoding", "gzip, deflate, br, zstd"),
)


def records(turn: Turn) -> tuple[Record, ...]:
    """What a proxy hands its store for a turn."""
    body = RequestBody(turn.body, hashlib.sha256(turn.body).digest(), take_apart(turn.body))
    digest = hashlib.sha256(f"{SESSION}{turn.number}".encode()).hexdigest()
    opened = ExchangeOpened(
        id=turn.id,
        started=turn.started,
        method="POST",
        host="api.anthropic.com",
        path="/v1/messages?beta=true",
        via="tunnel",
        scope="s-1",
        project="/home/user/project",
        client="claude-cli/2.1.329 (external, cli)",
        account="hmac:5ac0ffee5ac0ffee",
        model="claude-opus-5-5",
        streamed=True,
        message_count=turn.number * 2 + 1,
        headers=(*REQUEST_HEADERS, ("x-client-request-id", digest[:32]), ("content-length", str(len(turn.body)))),
        body=body,
        link=Link(
            exchange=turn.id,
            conversation=SESSION,
            thread="main",
            branch=1,
            kind=RequestKind.MAIN,
            parent=exchange_id(turn.number - 1) if turn.number else "",
            edge=Edge.NEXT if turn.number else Edge.ROOT,
            points=tuple(
                Point(depth, hashlib.sha256(b"%d" % depth).digest()[:16])
                for depth in (turn.number * 2, turn.number * 2 + 1)
                if depth
            ),
            evidence=(
                Evidence("session", SESSION, "x-claude-code-session-id"),
                Evidence("kind", "main", "x-claude-code-agent-id", "absent"),
                Evidence("parent", exchange_id(turn.number - 1), "longest prefix", str(turn.number * 2)),
                Evidence("branch", "1", "longest prefix", str(turn.number * 2)),
            ),
        ),
    )
    utilization = turn.number // 4 / 100
    limits = (
        RateLimit("5h", "allowed", utilization, START + 18_000),
        RateLimit("7d", "allowed", utilization / 10, START + 600_000),
        RateLimit("overage", "rejected"),
    )
    closed = ExchangeClosed(
        id=turn.id,
        finished=turn.started + 9.0,
        outcome="ok",
        status=200,
        first_byte_ms=812.4 + turn.number,
        duration_ms=9000.0,
        bytes_up=len(turn.body),
        bytes_down=len(turn.message) * 5,
        headers=(
            ("Date", "Sat, 21 Nov 2026 00:00:00 GMT"),
            ("Content-Type", "text/event-stream; charset=utf-8"),
            ("Transfer-Encoding", "chunked"),
            ("Cache-Control", "no-cache"),
            ("anthropic-ratelimit-unified-status", "allowed"),
            ("anthropic-ratelimit-unified-5h-utilization", str(utilization)),
            ("anthropic-ratelimit-unified-5h-reset", str(int(START + 18_000))),
            ("anthropic-ratelimit-unified-7d-utilization", str(utilization / 10)),
            ("request-id", "req_011C" + digest[32:52]),
            ("anthropic-organization-id", SESSION),
            ("Server", "cloudflare"),
            ("x-envoy-upstream-service-time", str(700 + turn.number)),
            ("CF-RAY", digest[:16] + "-FRA"),
        ),
        model="claude-opus-5-5",
        message_id=turn.answer["id"],
        request_id="req_011C" + digest[32:52],
        stop_reason="tool_use",
        usage=Usage.of(turn.answer["usage"]),
        cost_usd=0.0123,
        priced_by="claude-opus-5-5",
        message=turn.message,
        limits=limits,
    )
    return opened, closed
