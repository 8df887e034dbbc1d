"""The double buffer in a real proxy, between the scripted agent and a fake API whose model is led turn by turn."""

from __future__ import annotations

import json
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio
import trio.testing
from dbproxy_double_buffer import DoubleBuffer
from rig import Rig, open_rig

from dbproxy.testing.conversation import Conversation, Settings, _with_instruction
from dbproxy.testing.http_client import Way
from dbproxy.testing.origin import Answer, Script, say, tool_use
from dbproxy.testing.origin.summaries import summary_answer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable
    from pathlib import Path

    from dbproxy_double_buffer.buffers import Buffer

    from dbproxy.testing.origin import Received

#: Opus 5.5 has a window of a million; the client compacts 33,000 below it (client facts 4.2).
WALL = 967_000
HALF, OVER, NEAR, FULL = 480_000, 730_000, 776_000, 980_000


class Model:
    """What the fake API says. ``tokens`` is the context that the next answers report; ``says`` are answers for the next
    turns, ``summaries`` for the next requests for a summary (kinds or answers), the last of them repeating."""

    def __init__(self) -> None:
        self.tokens = 1_000
        self.says: deque[Answer] = deque()
        self.summaries: list[str | Answer] = ["good"]
        self.options: dict[str, Any] = {}
        self.number = 0
        self.counts = True  # False leaves them to the prompt cache
        self.ordinary = ""  # a request that ends so is no request for a summary, whatever it looks like

    def usage(self) -> dict[str, int]:
        if not self.counts:
            return {}
        return {"input_tokens": 10, "cache_read_input_tokens": self.tokens - 15, "output_tokens": 5}

    def __call__(self, request: Received) -> Answer | None:
        if not request.is_messages:
            return None
        if request.role == "compaction" and not (self.ordinary and request.last_text.endswith(self.ordinary)):
            self.number += 1
            kind = self.summaries.pop(0) if len(self.summaries) > 1 else self.summaries[0]
            made = kind if isinstance(kind, Answer) else summary_answer(kind, self.number, self.options)
            return made if made.blocks is None else made.but(usage={**(made.usage or {})})
        made = self.says.popleft() if self.says else say("Well done.")
        if made.blocks is None or made.usage is not None:
            return made
        return made.but(usage=self.usage())


def bash(text: str = "step") -> Answer:
    """A tool call whose result is ``text``."""
    return say("Let me see.", tool_use("Bash", {"command": f"echo {text}", "description": "One step"}))


class World:
    """A rig with the plugin, the model behind it, and conversations through it."""

    def __init__(self, rig: Rig, plugin: Any, model: Model, tmp_path: Path) -> None:
        self.rig = rig
        self.origin = rig.origin
        self.plugin = plugin
        self.model = model
        self.talks: list[Conversation] = []
        self._ca = tmp_path / "root.pem"
        self._ca.write_bytes(rig.proxy.authority.bundle_pem)

    def talk(self, **how: Any) -> Conversation:
        """A new session of the scripted agent."""
        given = {"time_scale": 0.01, "max_retries": 3, **how}
        way = Way(
            "https",
            "api.anthropic.com",
            443,
            proxy=("127.0.0.1", self.rig.running.port),
            extra_ca=str(self._ca),
        )
        made = Conversation(way, Settings(**given))
        self.talks.append(made)
        return made

    def buffer(self, talk: Conversation, thread: str = "main") -> Buffer:
        return self.plugin.buffers.get(talk.session, thread)

    def phase(self, talk: Conversation, thread: str = "main") -> str:
        found = self.plugin.buffers.find(talk.session, thread)
        return str(found.phase) if found is not None else "IDLE"

    async def reach(self, talk: Conversation, phase: str, thread: str = "main") -> None:
        """Wait until a buffer is in a phase."""
        await until(lambda: self.phase(talk, thread) == phase, lambda: f"{self.phase(talk, thread)}, not {phase}")

    async def prepared(self, talk: Conversation) -> None:
        """Wait until there is something to serve, near the wall or not."""
        await until(lambda: self.phase(talk) in ("WAL_ACTIVE", "SWAP_READY"), lambda: self.phase(talk))

    async def quiet(self) -> None:
        """Wait until everything that follows an answer was done: taps lag some 20 ms, and checkpoints go on."""
        checkpoints = getattr(self.plugin, "checkpoints", None)
        while True:
            await trio.testing.wait_all_tasks_blocked(0.03)
            running = [buffer for buffer in getattr(self.plugin, "buffers", ()) if buffer.running is not None]
            if checkpoints is None or len(checkpoints._nursery.child_tasks) <= len(running):
                return
            await trio.sleep(0.01)

    async def turn(self, talk: Conversation, tokens: int, text: str = "go on", *answers: Answer) -> str:
        """One prompt whose answer reports so many tokens; waits for what follows."""
        self.model.tokens = tokens
        self.model.says.extend(answers)
        said = await talk.ask(text)
        await self.quiet()
        return said

    async def checkpointed(self, talk: Conversation, tokens: int = OVER) -> None:
        """Bring a new conversation to a finished checkpoint."""
        await self.turn(talk, tokens, "the first words")
        await self.reach(talk, "WAL_ACTIVE")

    def events(self, *names: str) -> list[dict[str, Any]]:
        """What the log says, of these events."""
        log = self.rig.data_dir / "logs" / "dbproxy.jsonl"
        lines = log.read_text("utf-8").splitlines() if log.exists() else []
        found = [json.loads(line) for line in lines]
        return [event for event in found if event["event"] in names]

    async def told(self, name: str, count: int = 1) -> list[dict[str, Any]]:
        """Wait for an event in the log."""
        await until(lambda: len(self.events(name)) >= count, lambda: f"{len(self.events(name))} {name}")
        return self.events(name)

    def own(self) -> list[Received]:
        """Requests that no client of ours sent: the proxy's."""
        keys = {attempt.key for talk in self.talks for attempt in talk.client.attempts}
        return [r for r in self.origin.requests if r.is_messages and r.header("x-client-request-id") not in keys]

    def native(self) -> list[Received]:
        """Compaction requests of the client that reached the API."""
        keys = {a.key for talk in self.talks for a in talk.client.attempts if a.kind == "compaction"}
        return [r for r in self.origin.requests if r.header("x-client-request-id") in keys]


def opening(talk: Conversation) -> str:
    """The first message of what the client sends now: after a compaction it holds the summary."""
    content = talk.main.messages[0]["content"]
    return content if isinstance(content, str) else "".join(block["text"] for block in content)


def compactions(talk: Conversation) -> list[Any]:
    """The client's compaction requests."""
    return [attempt for attempt in talk.client.attempts if attempt.kind == "compaction"]


async def compact_once(talk: Conversation, *, why: str = "auto", messages: list[Any] | None = None) -> Any:
    """One compaction request by hand, its answer's text and bytes."""
    thread = talk.main
    sent = {**talk._body(thread, messages or _with_instruction(thread.messages), "compaction"), "stream": True}
    encoded = json.dumps(sent, ensure_ascii=False, separators=(",", ":")).encode()
    return await talk.client.request(
        "POST",
        "/v1/messages?beta=true",
        talk._fields(thread, "compaction", why, "", len(encoded)),
        encoded,
        kind="compaction",
        take=lambda _, data: None,
    )


def text_of(attempt: Any) -> str:
    """The text of a streamed answer."""
    events = [json.loads(line[6:]) for line in attempt.answer_body.decode().splitlines() if line.startswith("data: ")]
    return "".join(e["delta"].get("text", "") for e in events if e["type"] == "content_block_delta")


async def until(done: Callable[[], object], why: Callable[[], str] = str, seconds: float = 5.0) -> None:
    """Wait until something holds."""
    with trio.move_on_after(seconds):
        while not done():
            await trio.sleep(0.004)
        return
    raise AssertionError(why())


@asynccontextmanager
async def open_world(
    tmp_path: Path,
    *,
    model: Model | None = None,
    plugin: Any = None,
    cache: bool | float = False,
    plugins: Iterable[tuple[str, object]] | None = None,
    **settings: Any,
) -> AsyncIterator[World]:
    """A world; whatever double buffer is installed stands back for ours."""
    model = model or Model()
    plugin = plugin or DoubleBuffer()
    given = tuple(plugins) if plugins is not None else (("buffer-under-test", plugin),)
    async with open_rig(
        tmp_path,
        Script(decide=model, cache=cache),
        plugins=given,
        plugins_disabled=settings.pop("plugins_disabled", "double-buffer"),
        **settings,
    ) as rig:
        world = World(rig, plugin, model, tmp_path)
        try:
            yield world
        finally:
            for talk in world.talks:
                await talk.client.close()
