"""The scripted agent's mind: requests in the client's shape, its retry rules, its tool loop and its compaction.

Section numbers are of the client facts. Waits are multiplied by ``Settings.time_scale``; nothing else differs from
what was measured of 2.1.329.
"""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import trio

from dbproxy.testing.http_client import Attempt, Broken, Client, Silent, Way
from dbproxy.testing.origin.grammar import GrammarError, Reader, StreamError

if TYPE_CHECKING:
    from collections.abc import Mapping

Message = dict[str, Any]
MAX_TURNS = 200  # ours: a script that never ends must not hang a test
RESERVE = 33_000  # 20k for the answer and 13k of margin below the window (4.2)
WINDOWS = {"claude-opus-5-5": 1_000_000, "claude-sonnet-5-5": 1_000_000}
FALLBACK_TOKENS = 64_000  # max_tokens of a request repeated without stream (4.4, 5)
BETAS = (
    "claude-code-20250219,interleaved-thinking-2025-05-14,context-management-2025-06-27,"
    "prompt-caching-scope-2026-01-05,effort-2025-11-24"
)
INSTRUCTION = (
    "CRITICAL: Respond with TEXT ONLY. Do NOT call any tools.\n"
    "Your task is to create a detailed summary of the conversation so far.\n"
    "Wrap your thoughts in <analysis></analysis> and the summary in <summary></summary>.\n"
    "REMINDER: Do NOT call any tools."
)
TOOLS = (
    ("Agent", "Launch an agent.", ("description", "prompt", "subagent_type")),
    ("Bash", "Run a command.", ("command", "description")),
    ("Read", "Read a file.", ("file_path",)),
)
TOO_LONG = re.compile(r"prompt is too long: \d+ tokens > \d+ maximum")


class Failure(Exception):
    """The real client would print this and exit 1."""


class TooLong(Exception):
    """The API's 400 that makes the client compact and go on (4.2)."""


class HttpError(Exception):
    """An answer with an error status."""

    def __init__(self, attempt: Attempt, text: str) -> None:
        super().__init__(f"API error {attempt.status}: {text}")
        self.attempt = attempt
        self.text = text


@dataclass(frozen=True, slots=True)
class Settings:
    """What the environment tells the client (1.3, 4.2, 5)."""

    key: str = "sk-ant-api03-dummy"
    model: str = "claude-opus-5-5"
    max_retries: int = 10
    window: int | None = None
    time_scale: float = 1.0
    tool_seconds: float = 0.0  # how long each tool takes, whatever the scale
    hints: bool = True  # classification headers: proxy mode, or asked for (0.2)

    @classmethod
    def of(cls, environ: Mapping[str, str], *, model: str, time_scale: float) -> Settings:
        """From the variables of the real client."""
        window = environ.get("CLAUDE_CODE_AUTO_COMPACT_WINDOW")
        base = environ.get("ANTHROPIC_BASE_URL", "https://api.anthropic.com")
        hint = environ.get("CLAUDE_CODE_GATEWAY_HINT_HEADERS", "")
        return cls(
            key=environ.get("ANTHROPIC_API_KEY") or "sk-ant-api03-dummy",
            model=model,
            max_retries=int(environ.get("CLAUDE_CODE_MAX_RETRIES") or 10),
            window=int(window) if window else None,
            time_scale=time_scale,
            hints=hint == "1" or (hint != "0" and "api.anthropic.com" in base),
        )


@dataclass(slots=True)
class Thread:
    """The messages of one speaker: the main agent, or a subagent."""

    messages: list[Message] = field(default_factory=list)
    agent_id: str = ""
    context: int = 0  # tokens of the last reply, all four counts (4.2)
    compacted: str = ""  # announced on the next main request, once
    previous_request: str = ""


class Conversation:
    """One session. ``usage`` sums what the answers reported."""

    def __init__(self, way: Way, settings: Settings) -> None:
        self.settings = settings
        self.client = Client(way, idle_seconds=180.0 * settings.time_scale)
        self.session = str(uuid.uuid4())
        self.prompt = ""
        self.main = Thread()
        self.compactions = 0
        self.usage = {"input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 0}
        self.answers: list[str] = []  # the last text of each prompt

    # What a person or a script does with it

    async def start(self) -> None:
        """The two fetches before the first message; whatever they answer, the session goes on (0.9, 1.5)."""
        for path in ("settings", "policy_limits"):
            fields = [
                ("Accept", "application/json, text/plain, */*"),
                ("x-api-key", self.settings.key),
                ("User-Agent", "claude-code/2.1.329"),
                ("Cache-Control", "no-cache"),
                ("Pragma", "no-cache"),
                ("Accept-Encoding", "gzip, compress, deflate, br"),
                ("Host", self.client.way.authority),
                ("Connection", "close"),
            ]
            try:
                with trio.fail_after(30.0):
                    await self.client.request(
                        "GET", f"/api/claude_code/{path}", fields, b"", kind=path, take=lambda attempt, data: None
                    )
            except (Broken, Silent, trio.TooSlowError):
                continue

    async def ask(self, prompt: str) -> str:
        """One prompt until the model ends its turn; the last text. Raises Failure."""
        self.prompt = str(uuid.uuid4())
        first = not self.main.messages
        content = [{"type": "text", "text": prompt}]
        if first:
            content.insert(0, {"type": "text", "text": "<system-reminder>\nToday is a day.\n</system-reminder>"})
        self.main.messages.append({"role": "user", "content": content})
        if first:
            notes = "# Environment\nAvailable agent types for the Agent tool:\n- code-reviewer: reviews code"
            self.main.messages.append({"role": "system", "content": notes, "output_config": {"effort": "medium"}})
        return await self._turns(self.main, "main")

    async def compact(self, why: str, thread: Thread | None = None) -> None:
        """Replace the history by a summary; ``why`` is manual, auto or reactive. Raises Failure (4.3, 4.4)."""
        thread = thread or self.main
        kept: list[Message] = []
        history = [dict(message) for message in thread.messages]
        if why == "reactive" and len(history) >= 2 and _has_result(history[-1]):
            kept, history = history[-2:], history[:-2]  # the last exchange stays verbatim
        summary = await self._summary(thread, history, why)
        self.compactions += 1
        thread.compacted = why
        thread.context = 0
        opening = (
            "This session is being continued from a previous conversation that ran out of context. "
            f"The conversation is summarized below:\nSummary:\n{summary}\nContinue without a recap."
        )
        thread.messages = [{"role": "user", "content": [{"type": "text", "text": opening}]}, *kept]

    async def _summary(self, thread: Thread, history: list[Message], why: str) -> str:
        asked_again = False
        goes_on = 0
        shortened = 0
        while True:
            try:
                reply = await self._reply(thread, _with_instruction(history), "compaction", why=why)
            except TooLong as error:
                shortened += 1
                if shortened > 5 or len(history) <= 1:
                    raise Failure(f"automatic compaction failed: {error}") from error
                history = history[: max(1, len(history) - 2)]
                continue
            text = "".join(str(b.get("text", "")) for b in reply["content"] if b.get("type") == "text")
            if any(b.get("type") == "tool_use" for b in reply["content"]) or not text.strip():
                raise Failure("automatic compaction failed: the answer holds no text")
            if reply["stop_reason"] == "max_tokens":
                goes_on += 1
                if goes_on > 3:
                    raise Failure("automatic compaction failed: the summary does not end")
                continue
            found = re.search(r"<summary>(.*?)</summary>", text, re.DOTALL)
            if found is not None:
                if not found[1].strip():
                    raise Failure("automatic compaction failed: the summary is empty")
                # What stands behind the tags stays; a run of line feeds becomes two (4.3).
                return re.sub(r"\n{2,}", "\n\n", found[1].strip() + text[found.end() :]).strip()
            if asked_again:
                return text.strip()
            asked_again = True

    # The tool loop

    async def _turns(self, thread: Thread, kind: str) -> str:
        for _ in range(MAX_TURNS):
            try:
                reply = await self._reply(thread, thread.messages, kind)
            except TooLong:
                if thread.compacted == "reactive":
                    raise Failure("Prompt is too long") from None
                await self.compact("reactive", thread)
                continue
            calls = [block for block in reply["content"] if block["type"] == "tool_use"]
            thread.messages.append({"role": "assistant", "content": reply["content"]})
            if not calls:
                text = "".join(block["text"] for block in reply["content"] if block["type"] == "text")
                if kind == "main":
                    self.answers.append(text)
                return text
            thread.messages.append({"role": "user", "content": await self._run_tools(calls)})
            if thread.context >= self._wall():
                await self.compact("auto", thread)
        raise Failure(f"the model did not end its turn within {MAX_TURNS} requests")

    def _wall(self) -> int:
        return (self.settings.window or WINDOWS.get(self.settings.model, 200_000)) - RESERVE

    async def _run_tools(self, calls: list[Message]) -> list[Message]:
        results: list[Message] = [{} for _ in calls]

        async def run(place: int, call: Message) -> None:
            results[place] = await self._run_tool(call)

        failures: list[Failure] = []
        async with trio.open_nursery() as nursery:

            async def guarded(place: int, call: Message) -> None:
                try:
                    await run(place, call)
                except Failure as error:
                    failures.append(error)
                    nursery.cancel_scope.cancel()

            for place, call in enumerate(calls):
                nursery.start_soon(guarded, place, call)
        if failures:
            raise failures[0]
        return results

    async def _run_tool(self, call: Message) -> Message:
        name, given = call["name"], call["input"]
        result: Message = {"tool_use_id": call["id"], "type": "tool_result", "is_error": False}
        await trio.sleep(self.settings.tool_seconds)
        if name in ("Agent", "Task"):
            sub = Thread(agent_id=uuid.uuid4().hex[:17])
            sub.messages.append({"role": "user", "content": [{"type": "text", "text": str(given.get("prompt", ""))}]})
            said = await self._turns(sub, "subagent")
            result["content"] = [
                {"type": "text", "text": said},
                {"type": "text", "text": f"agentId: {sub.agent_id} (use SendMessage to go on)"},
            ]
        elif name == "Bash":
            result["content"] = _printed(str(given.get("command", "")))
        elif name == "Read":
            result["content"] = "1\t# A file\n2\tÄ, 漢, 🙂\n"
        else:
            result.update(content=f"No such tool: {name}", is_error=True)
        return result

    # One request, with the retry rules of section 5

    async def _reply(self, thread: Thread, messages: list[Message], kind: str, why: str = "") -> Message:
        # Announced on the next request that is no compaction, and once only.
        compacted = "" if kind == "compaction" else thread.compacted
        body = self._body(thread, messages, kind)
        tries = _Tries(self.settings.max_retries, kind)
        while True:
            limit = {} if tries.stream else {"max_tokens": FALLBACK_TOKENS}
            encoded = json.dumps(
                {**body, **limit, "stream": tries.stream}, ensure_ascii=False, separators=(",", ":")
            ).encode()
            try:
                reply = await self._attempt(thread, encoded, kind, why, compacted, stream=tries.stream)
            except GrammarError as error:
                raise Failure(f"malformed answer: {error}") from error
            except (StreamError, _NotAStream, Silent, Broken, HttpError) as error:
                await trio.sleep(tries.after(error) * self.settings.time_scale)
            else:
                if kind != "compaction":
                    thread.compacted = ""
                return reply

    def _count(self, thread: Thread, attempt: Attempt, usage: Message) -> None:
        counts = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens")
        thread.context = attempt.context = sum(int(usage.get(name) or 0) for name in counts)
        for name in self.usage:
            self.usage[name] += int(usage.get(name) or 0)

    async def _attempt(
        self, thread: Thread, body: bytes, kind: str, why: str, compacted: str, *, stream: bool
    ) -> Message:
        reader = Reader()
        plain = bytearray()

        def take(attempt: Attempt, data: bytes) -> None:
            if attempt.status == 200 and (attempt.field("content-type") or "").startswith("text/event-stream"):
                reader.feed(data)
            else:
                plain.extend(data)

        fields = self._fields(thread, kind, why, compacted, len(body))
        attempt = await self.client.request("POST", "/v1/messages?beta=true", fields, body, kind=kind, take=take)
        thread.previous_request = attempt.field("request-id") or ""
        if attempt.status != 200:
            raise HttpError(attempt, plain.decode("utf-8", "replace"))
        if reader.events:
            if not reader.complete:
                # A clean end of a cut stream is a cut all the same.
                raise Broken("the stream ended before message_stop")
            reply = reader.finish()
            self._count(thread, attempt, reply["usage"])
            return reply
        if (attempt.field("content-type") or "").startswith("text/event-stream"):
            raise Broken("an empty stream")
        if stream:
            raise _NotAStream
        reply = _checked_message(bytes(plain))
        self._count(thread, attempt, reply["usage"])
        return reply

    def _body(self, thread: Thread, messages: list[Message], kind: str) -> Message:
        """The body of a main, subagent or compaction request (3.1, 4.1)."""
        billing = "x-anthropic-billing-header: cc_version=2.1.329.7b2; cc_entrypoint=sdk-cli; "
        if thread.agent_id:
            billing += "cc_is_subagent=true; "
        if thread.previous_request:
            billing += f"cc_prev_req={thread.previous_request}; "
        system = [
            {"type": "text", "text": f"{billing}cc_prompt_id={self.prompt};"},
            {"type": "text", "text": "You are a Claude agent, built on Anthropic's Claude Agent SDK."},
            {
                "type": "text",
                "text": "Review code." if thread.agent_id else "Be of use. " * 40,
                "cache_control": {"type": "ephemeral"},
            },
        ]
        identity = json.dumps({"device_id": "0" * 64, "account_uuid": "", "session_id": self.session})
        offered = [tool for tool in TOOLS if not thread.agent_id or tool[0] != "Agent"]
        return {
            "model": self.settings.model,
            "messages": _marked(messages),
            "system": system,
            "tools": [
                {
                    "name": name,
                    "description": text,
                    "input_schema": {
                        "type": "object",
                        "properties": {item: {"type": "string"} for item in wanted},
                        "required": list(wanted),
                    },
                }
                for name, text, wanted in offered
            ],
            "metadata": {"user_id": identity},
            "max_tokens": 128_000,
            "thinking": {"type": "adaptive", "display": "updates"},
            "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
            "output_config": {"effort": "medium"},
        }

    def _fields(self, thread: Thread, kind: str, why: str, compacted: str, length: int) -> list[tuple[str, str]]:
        """The head's fields in wire order (1.4)."""
        fields = [
            ("Accept", "application/json"),
            ("Content-Type", "application/json"),
            ("User-Agent", "claude-cli/2.1.329 (external, sdk-cli)"),
            ("X-Claude-Code-Session-Id", self.session),
            ("X-Stainless-Arch", "x64"),
            ("X-Stainless-Lang", "js"),
            ("X-Stainless-OS", "Linux"),
            ("X-Stainless-Package-Version", "0.128.0"),
            ("X-Stainless-Retry-Count", "0"),
            ("X-Stainless-Runtime", "node"),
            ("X-Stainless-Runtime-Version", "v26.12.1"),
            ("X-Stainless-Timeout", "600"),
            ("anthropic-beta", BETAS),
            ("anthropic-dangerous-direct-browser-access", "true"),
            ("anthropic-version", "2023-06-01"),
            ("x-api-key", self.settings.key),
            ("x-app", "cli"),
        ]
        if self.settings.hints:
            fields.append(("x-claude-1p-request-class", "blocking-subagent" if kind == "subagent" else "main"))
        if thread.agent_id:
            fields.append(("x-claude-code-agent-id", thread.agent_id))
            if self.settings.hints:
                fields.append(("x-claude-code-agent-type", "custom"))
        if self.settings.hints:
            if why:
                fields.append(("x-claude-code-compaction", why))
            if compacted:
                fields.append(("x-claude-code-context-compacted", compacted))
            if kind != "compaction":
                fields.append(("x-claude-code-prompt-id", self.prompt))
            fields.append(("x-claude-code-request-class", kind))
        fields += [
            ("x-client-request-id", str(uuid.uuid4())),
            ("Connection", "keep-alive"),
            ("Host", self.client.way.authority),
            ("Accept-Encoding", "gzip, deflate, br, zstd"),
            ("Content-Length", str(length)),
        ]
        return fields


class _NotAStream(Exception):
    """A whole message came for a stream request: the client repeats without stream (4.4)."""


@dataclass(slots=True)
class _Tries:
    """The retry rules of section 5 for one request, as a small machine without a clock."""

    limit: int
    kind: str
    stream: bool = True
    failed: int = 0
    rejected: int = 0

    def after(self, error: Exception) -> float:
        """Seconds to wait before the next try. Raises Failure, or TooLong, when the client would not try again."""
        if isinstance(error, _NotAStream):
            self.stream = False
            return 0.0
        if isinstance(error, StreamError) and error.after_content:
            self.stream = False
            return self._backoff(error, at_once=True)
        if isinstance(error, Silent):
            self.stream = False
            return self._backoff(error, at_once=True)
        if isinstance(error, HttpError):
            return self._after_status(error)
        return self._backoff(error)

    def _after_status(self, error: HttpError) -> float:
        status, retry_after = error.attempt.status, error.attempt.field("retry-after")
        if status == 400 and TOO_LONG.search(error.text):
            raise TooLong(error.text) from error
        if error.attempt.field("x-should-retry") == "false" or status in (402, 403, 413):
            raise Failure(str(error)) from error
        if status == 404 and self.stream:
            self.stream = False
            return 0.0
        if status == 404:
            raise Failure(str(error)) from error
        if status == 400:
            self.rejected += 1
            # It drops optional features one by one; a compaction goes on with another tool set (4.4).
            if self.rejected >= (8 if self.kind == "compaction" else 6):
                raise Failure(str(error)) from error
            return 0.0
        if status == 529 and self.failed >= 2:
            raise Failure(str(error)) from error
        if status == 429 and retry_after is not None:
            if float(retry_after) > 60:
                raise Failure(str(error)) from error
            self._backoff(error)
            return float(retry_after)
        return self._backoff(error)

    def _backoff(self, error: Exception, *, at_once: bool = False) -> float:
        self.failed += 1
        if self.failed > self.limit:
            raise Failure(f"{error} (after {self.failed} tries)") from error
        # 0.5 s doubled up to 32 s, and a part of the jitter of up to a quarter.
        return 0.0 if at_once else min(0.5 * 2 ** (self.failed - 1), 32.0) * 1.1


def _printed(command: str) -> str:
    """What a command would have printed: ``echo WORDS`` or ``head -c SIZE FILE``."""
    read = re.fullmatch(r"head -c (\d+) (\S+)", command)
    if read is None:
        return command.removeprefix("echo ")
    size, line = int(read[1]), f"A line of {read[2]}, which is like the one above it and like the one below.\n"
    return (line * (size // len(line) + 1))[:size]


def _has_result(message: Message) -> bool:
    content = message["content"]
    return isinstance(content, list) and any(block.get("type") == "tool_result" for block in content)


def _with_instruction(history: list[Message]) -> list[Message]:
    """The instruction goes into a last user message with tool results, else into one of its own (4.1)."""
    block = {"type": "text", "text": INSTRUCTION}
    if history and history[-1]["role"] == "user" and _has_result(history[-1]):
        return [*history[:-1], {**history[-1], "content": [*history[-1]["content"], block]}]
    return [*history, {"role": "user", "content": [block]}]


def _marked(messages: list[Message]) -> list[Message]:
    """The cache mark on the last block only; it moves every turn, and plain texts lose their list (3.1)."""
    made: list[Message] = []
    for place, message in enumerate(messages):
        content = message["content"]
        last = place == len(messages) - 1
        if last and isinstance(content, str):
            content = [{"type": "text", "text": content}]
        if last and content:
            content = [*content[:-1], {**content[-1], "cache_control": {"type": "ephemeral"}}]
        elif isinstance(content, list) and len(content) == 1 and content[0].get("type") == "text":
            content = content[0]["text"]
        made.append({**message, "content": content})
    return made


def _checked_message(body: bytes) -> Message:
    """A whole message, as strictly as a stream. Raises Failure."""
    try:
        message = json.loads(body)
    except ValueError as error:
        raise Failure(f"malformed answer: {error}") from error
    if not isinstance(message, dict) or message.get("type") != "message" or message.get("role") != "assistant":
        raise Failure("malformed answer: not a message")
    if not isinstance(message.get("content"), list) or not isinstance(message.get("usage"), dict):
        raise Failure("malformed answer: content or usage is missing")
    if not message.get("stop_reason"):
        raise Failure("malformed answer: no stop_reason")
    return message
