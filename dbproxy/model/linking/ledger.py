"""The spawn ledger: which tool_use started which agent.

Owns the finding of Agent and Task calls and of the agent ids that the client reports for them, and the matching, which
is a pure function of all that is known: the order in which things were seen does not change it. Sources: client facts
3.4, seed-003 2.10.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final

from dbproxy.model import shapes
from dbproxy.model.identity import without_reminders
from dbproxy.model.kinds import AGENT_TOOLS
from dbproxy.model.messages import texts

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from dbproxy.model.linking.state import Spawn, Thread
    from dbproxy.model.messages import MessagesRequest

#: Agent types that the client brings along; every other one is a custom agent (client facts 3.3).
BUILT_IN: Final = frozenset({"general-purpose", "Explore", "Plan", "fork", "teammate"})
_AGENT_ID: Final = re.compile(r"\bagentId: ?([0-9A-Za-z_-]{1,128})")
_NOTIFIED: Final = re.compile(
    r"<task-id>\s*([^<\s]{1,128})\s*</task-id>\s*<tool-use-id>\s*([^<\s]{1,128})\s*</tool-use-id>"
)


@dataclass(frozen=True, slots=True)
class Call:
    """An Agent or Task tool_use as it stands in an answer."""

    id: str
    type: str
    prompt: bytes


@dataclass(frozen=True, slots=True)
class Found:
    """What a stretch of messages tells: calls with the index of their message, and tool_use ids with agent ids."""

    calls: tuple[tuple[int, Call], ...] = ()
    joins: tuple[tuple[str, str], ...] = ()


def prompt_key(text: str) -> bytes:
    """A prompt's key: equal for texts that differ in reminders, line ends and blanks around it only; b"" for none."""
    plain = without_reminders(text).replace("\r\n", "\n").strip()
    return blake2b(plain.encode("utf-8", "surrogatepass"), digest_size=8).digest() if plain else b""


def prompts(view: MessagesRequest) -> tuple[bytes, ...]:
    """Keys of what may be the prompt of an agent that was started with it: the last text of the first user message that
    says something, and all its texts together."""
    for index in range(min(view.message_count, 4)):
        message = view.message(index)
        if message.get("role") != "user":
            continue
        plain = [text for text in (without_reminders(one).strip() for one in texts(message.get("content"))) if text]
        if plain:
            return tuple(dict.fromkeys((prompt_key(plain[-1]), prompt_key("\n".join(plain)))))
    return ()


def calls(content: object) -> Iterator[Call]:
    """The agents that a message's content starts."""
    for block in shapes.sequence(content):
        found = shapes.mapping(block)
        if found.get("type") == "tool_use" and found.get("name") in AGENT_TOOLS and shapes.text(found.get("id")):
            given = shapes.mapping(found.get("input"))
            yield Call(
                shapes.text(found.get("id")),
                shapes.text(given.get("subagent_type")),
                prompt_key(shapes.text(given.get("prompt"))),
            )


def read(view: MessagesRequest, first: int) -> Found:
    """Calls and agent ids in the messages from index ``first`` on. Messages that cannot hold any are not parsed."""
    started: list[tuple[int, Call]] = []
    joins: list[tuple[str, str]] = []
    for index in range(max(first, 0), view.message_count):
        span = bytes(view.spans[index])
        starts = b'"tool_use"' in span and (b'"Agent"' in span or b'"Task"' in span)
        if not starts and b"agentId:" not in span and b"<task-id>" not in span:
            continue
        message = view.message(index)
        if message.get("role") == "assistant":
            started.extend((index, call) for call in calls(message.get("content")))
        elif message.get("role") == "user":
            joins.extend(_joins(message.get("content")))
    return Found(tuple(started), tuple(joins))


def _joins(content: object) -> Iterator[tuple[str, str]]:
    """(tool_use id, agent id) pairs out of a user message. The client writes them: into a tool's result, of which the
    agent's own words are the other part, and into a notification."""
    for text in texts(content):
        yield from ((tool, agent) for agent, tool in _NOTIFIED.findall(text))
    for block in shapes.sequence(content):
        found = shapes.mapping(block)
        tool = shapes.text(found.get("tool_use_id"))
        if found.get("type") != "tool_result" or not tool:
            continue
        for text in reversed(texts(found.get("content"))):
            ids = _AGENT_ID.findall(text)
            if ids:
                # Launched at once: one text, the id near its beginning. Blocking: a text of its own at the end.
                yield tool, ids[0]
                break


@dataclass(frozen=True, slots=True)
class Match:
    """``spawn`` started the thread; ``proof`` names the evidence."""

    spawn: Spawn
    proof: str


def match(threads: Iterable[Thread], spawns: Sequence[Spawn]) -> dict[str, Match]:
    """Which spawn started which agent's thread, by thread key.

    First by the agent id that the client told, then by equal prompts, then by kind where only one is left. Among equals
    the earlier start gets the earlier call.
    """
    waiting = sorted(threads, key=lambda thread: thread.start)
    free = {spawn.id: spawn for spawn in spawns}
    found: dict[str, Match] = {}
    told = {spawn.agent: spawn for spawn in spawns if spawn.agent}
    for thread in waiting:
        spawn = told.get(thread.key) if thread.hinted else None
        if spawn:
            found[thread.key] = Match(spawn, "agent id in the tool result")
            free.pop(spawn.id, None)
        elif thread.proof == "stored" and thread.spawn in free:
            found[thread.key] = Match(free.pop(thread.spawn), "stored")
    for thread in waiting:
        if thread.key in found:
            continue
        fits = [spawn for spawn in free.values() if spawn.prompt in thread.prompts and _may(thread, spawn)]
        if fits:
            spawn = max(fits, key=lambda spawn: _kin(thread, spawn))  # the first of the best
            found[thread.key] = Match(free.pop(spawn.id), "equal prompt")
    for thread in waiting:
        if thread.key in found:
            continue
        fits = [spawn for spawn in free.values() if not spawn.agent and _may(thread, spawn) and _kin(thread, spawn)]
        rivals = [other for other in waiting if other.key not in found and other.type == thread.type]
        if len(fits) == 1 and len(rivals) == 1:
            found[thread.key] = Match(free.pop(fits[0].id), "only call of its type")
    return found


def _may(thread: Thread, spawn: Spawn) -> bool:
    """Can this call have started that agent: is it its parent's, and not another agent's?"""
    if thread.hinted:
        if spawn.agent and spawn.agent != thread.key:
            return False
        return spawn.thread == (thread.parent or "main")
    return spawn.thread != thread.key


def _kin(thread: Thread, spawn: Spawn) -> int:
    """How well the types agree: 0 for not at all or unknown."""
    if thread.file and thread.file == spawn.type:
        return 2
    if thread.type == "custom":
        return int(bool(spawn.type) and spawn.type not in BUILT_IN)
    return int(bool(thread.type) and thread.type == spawn.type)


def name_of(thread: Thread, spawn: Spawn | None) -> tuple[str, str]:
    """An agent's type and, for custom ones, its name."""
    called = spawn.type if spawn else ""
    kind = thread.type or ("custom" if thread.file else "")
    if called and not kind:
        kind = called if called in BUILT_IN else "custom"
    if kind != "custom":
        return kind, ""
    return kind, called if called and called not in BUILT_IN else thread.file


def answer_calls(message: Any) -> list[Call]:
    """The agents that an answer starts."""
    return list(calls(shapes.mapping(message).get("content")))
