"""A request to another provider in the terms of the fake Messages API, so that its scripts and scenarios fit.

Owns `Asked`: the exact bytes that came, and the views over them as a Messages request would have them. Data only.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dbproxy.model.codecs.request import Call, Result, Text
from dbproxy.testing.codecs.dialect import Seen
from dbproxy.testing.origin.received import Received, is_compaction_text
from dbproxy.testing.providers.spelling import joined_text

if TYPE_CHECKING:
    from dbproxy.model.codecs.request import Part, Tool

_NOTHING = Seen(())


@dataclass(eq=False, repr=False)
class Asked(Received):
    """``seen`` is the request as its server understands it."""

    seen: Seen = field(default=_NOTHING)

    @classmethod
    def of(cls, request: Received, seen: Seen) -> Asked:
        """The same request, understood."""
        known = {item.name: getattr(request, item.name) for item in dataclasses.fields(Received)}
        return cls(**known, seen=seen)

    @property
    def is_messages(self) -> bool:
        return True

    @property
    def stream(self) -> bool:
        return self.seen.stream

    @property
    def model(self) -> str:
        return self.seen.model

    @property
    def messages(self) -> list[dict[str, Any]]:
        turns = [turn for turn in self.seen.turns if turn.role != "system"]
        return [{"role": turn.role, "content": [_block(part) for part in turn.parts]} for turn in turns]

    @property
    def tools(self) -> list[str]:
        return [tool.name for tool in self.seen.tools]

    @property
    def system_text(self) -> str:
        return "\n".join(self.seen.system)

    @property
    def role(self) -> str:
        """Whoever is sent to another provider is taken for a subagent, unless it compacts."""
        return "compaction" if is_compaction_text(self.last_text) else "subagent"

    @property
    def results(self) -> list[Result]:
        """The tool results of the conversation, in order."""
        return [part for turn in self.seen.turns for part in turn.parts if isinstance(part, Result)]

    @property
    def rounds(self) -> int:
        """How often the model has called tools so far."""
        turns = self.seen.turns
        before = [turns[at - 1].role if at else "user" for at in range(len(turns))]
        return sum(
            1
            for turn, earlier in zip(turns, before, strict=True)
            if turn.role == "user" and earlier == "assistant" and any(isinstance(part, Result) for part in turn.parts)
        )

    @property
    def offered(self) -> list[Tool]:
        """The tools that it offers."""
        return list(self.seen.tools)


def _block(part: Part) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    if isinstance(part, Call):
        return {"type": "tool_use", "id": part.id, "name": part.name, "input": part.arguments}
    if isinstance(part, Result):
        content = [{"type": "text", "text": joined_text(part.parts)}]
        return {"type": "tool_result", "tool_use_id": part.id, "content": content, "is_error": part.is_error}
    return {"type": type(part).__name__.lower()}
