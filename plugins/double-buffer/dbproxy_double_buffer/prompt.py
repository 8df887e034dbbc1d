"""The checkpoint's own request: the live request's exact bytes, and one more text that asks for a summary.

Owns the splice. Everything that the prompt cache looks at stays byte for byte: system, tools, messages, cache marks,
thinking, model, betas (API facts 2.7). Pure. Invariant: what comes out parses to the live request plus the instruction,
or nothing comes out.
"""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from dbproxy.api import json_array, json_members

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dbproxy.api import RequestHead
    from dbproxy_double_buffer.wall import Version

#: Our own words, in the form that the client expects; used until the client's own were seen (client facts 4.1).
OWN_INSTRUCTION: Final = """\
CRITICAL: Respond with TEXT ONLY. Do NOT call any tools. A tool call would be refused and waste this turn.

Your task is to create a detailed summary of the conversation so far, so that the work can go on from the summary alone.
First think inside <analysis> tags: walk through the conversation in order; for each part note what the user asked for,
what was done about it, which decisions were made and why, and whether anything was left open.
Then write the summary inside <summary> tags, with these sections:

1. Requests and intent: everything that the user asked for, in detail, with constraints and preferences in his words.
2. Technical concepts: technologies, frameworks and conventions that matter here.
3. Files and code: each file that was read, changed or made, why it matters, and the code that will be needed again.
4. Errors and fixes: each error met, how it was solved, and what the user said about it.
5. Problem solving: what is solved, and what is under way.
6. User messages: every message of the user that is not a tool result, in short form but complete.
7. Open tasks: what was asked for and is not done yet.
8. Current work: exactly what was being done last, with file names and code.
9. Next step: the step that follows from the latest request, with the words of the conversation that show it.

REMINDER: Do NOT call any tools. Answer with an <analysis> block followed by a <summary> block, and nothing else.
"""
#: Fields of the live request that belong to that request alone (client facts 1.4).
_OF_ONE_REQUEST: Final = frozenset(
    {
        b"x-client-request-id",
        b"x-claude-code-prompt-id",
        b"x-claude-code-prev-tool-durations",
        b"x-claude-code-context-compacted",
        b"x-cc-context-compacted",
        b"content-length",
        b"transfer-encoding",
        b"content-encoding",
        b"connection",
        b"expect",
    }
)
#: So many versions' instructions are kept: those learned last.
_VERSIONS: Final = 20
_VERSION: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9}){0,9}")


class InstructionBook:
    """The client's own instructions, learned from its requests; ours where none was seen."""

    def __init__(self) -> None:
        self.changed = False  # since it was kept
        self._known: dict[Version, str] = {}

    def learn(self, version: Version, instruction: str) -> None:
        """Keep the text with which this version asks for a full summary (without words of the user's)."""
        if version and len(instruction) < 100_000 and self._known.get(version) != instruction:
            self._known.pop(version, None)
            self._known[version] = instruction
            self.changed = True
            while len(self._known) > _VERSIONS:
                del self._known[next(iter(self._known))]

    def text(self, version: Version) -> str:
        """What to ask a model with."""
        return self._known.get(version, OWN_INSTRUCTION)

    def to_json(self) -> dict[str, str]:
        """For keeping over restarts."""
        return {".".join(map(str, version)): text for version, text in self._known.items()}

    def restore(self, value: object) -> None:
        """Take what `to_json` gave an earlier process; anything odd is left out."""
        for version, text in value.items() if isinstance(value, dict) else ():
            if isinstance(text, str) and text and _VERSION.fullmatch(version):
                self.learn(tuple(int(part) for part in version.split(".")), text)
        self.changed = False


def checkpoint_body(live: bytes, instruction: str) -> bytes | None:
    """The live body with the instruction at its end; None where that cannot be done.

    A thread is left out: the checkpoint stands for itself (API facts 2.7). A continued one has only new messages, so it
    cannot be the base of a checkpoint. A history that ends with the assistant (a prefill) cannot either.
    """
    members = json_members(live)
    if members is None:
        return None
    values = {member.key: live[member.start : member.end] for member in members}
    thread = _loads(values.get(b"thread", b"null"))
    if isinstance(thread, dict) and thread.get("type") == "continue":
        return None
    messages = next((member for member in members if member.key == b"messages"), None)
    if messages is None:
        return None
    with_text = _with_instruction(live[messages.start : messages.end], instruction)
    if with_text is None:
        return None
    body = live[: messages.start] + with_text + live[messages.end :]
    if b"thread" in values:
        shorter = without_member(body, b"thread")
        if shorter is None:
            return None
        body = shorter
    return body if _is_right(live, body) else None


def without_member(body: bytes, key: bytes) -> bytes | None:
    """A JSON object's text without one of its members, every other byte as it was; None if it is no object."""
    members = json_members(body)
    if members is None:
        return None
    for place, member in enumerate(members):
        if member.key == key:
            if place + 1 < len(members):
                return body[: member.at] + body[members[place + 1].at :]
            start = members[place - 1].end if place else member.at
            return body[:start] + body[member.end :]
    return body


def _with_instruction(messages: bytes, instruction: str) -> bytes | None:
    found = json_array(messages)
    if found is None or not found.elements:
        return None
    last = found.elements[-1]
    message = _loads(last)
    if not isinstance(message, dict):
        return None
    role, text = message.get("role"), _dumps(instruction)
    end = len(messages) - _closing(found.gaps)
    if role == "system":
        # A user message behind a trailing system message would be refused.
        added = b',{"role":"system","content":' + text + b"}"
        return messages[:end] + added + messages[end:]
    if role != "user":
        return None
    members = json_members(last)
    content = next((m for m in members or () if m.key == b"content"), None)
    if content is None:
        return None
    block = b'{"type":"text","text":' + text + b"}"
    value = last[content.start : content.end]
    if isinstance(message.get("content"), str):
        new = b'[{"type":"text","text":' + value + b"}," + block + b"]"
    else:
        blocks = json_array(value)
        if blocks is None:
            return None
        inner = len(value) - _closing(blocks.gaps) if blocks.elements else 1
        new = value[:inner] + (b"," if blocks.elements else b"") + block + value[inner:]
    whole = last[: content.start] + new + last[content.end :]
    return messages[: end - len(last)] + whole + messages[end:]


def _closing(gaps: Sequence[bytes] | None) -> int:
    """The length of what stands behind an array's last element: its bracket, and blanks where there are any."""
    return 1 if gaps is None else len(gaps[-1])


def _is_right(live: bytes, body: bytes) -> bool:
    """Did the splice change nothing but what it should?"""
    before, after = json_members(live), json_members(body)
    if before is None or after is None:
        return False
    kept = {m.key: live[m.start : m.end] for m in before if m.key not in (b"messages", b"thread")}
    return kept == {m.key: body[m.start : m.end] for m in after if m.key != b"messages"}


def checkpoint_head(head: RequestHead, *, compaction: str = "auto") -> RequestHead:
    """The live request's head as that of a compaction request of its own.

    Credentials, version, betas, user agent and session stay; what belongs to that one request goes.
    """
    fields = head.fields.without(_OF_ONE_REQUEST)
    if fields.get(b"x-claude-code-request-class") is not None:
        fields = fields.replaced(b"x-claude-code-request-class", b"compaction")
        fields = fields.replaced(b"x-claude-code-compaction", compaction.encode())
    if head.fields.get(b"x-client-request-id") is not None:
        fields = fields.plus(b"x-client-request-id", str(uuid.uuid4()).encode())
    return replace(head, fields=fields)


def tool_followup(body: bytes, message: Mapping[str, Any], instruction: str) -> bytes | None:
    """The same request once more after the model called tools: each call is answered with an error, and asked again."""
    request = _loads(body)
    blocks = message.get("content")
    if not isinstance(request, dict) or not isinstance(blocks, list):
        return None
    calls = [block for block in blocks if isinstance(block, dict) and block.get("type") == "tool_use"]
    refused = [
        {
            "type": "tool_result",
            "tool_use_id": call.get("id"),
            "is_error": True,
            "content": "Tools cannot be used here. Write the summary as text.",
        }
        for call in calls
    ]
    added = [
        {"role": "assistant", "content": blocks},
        {"role": "user", "content": [*refused, {"type": "text", "text": instruction}]},
    ]
    members = json_members(body)
    place = next((m for m in members or () if m.key == b"messages"), None)
    if place is None:
        return None
    array = body[place.start : place.end]
    inner = b",".join(_dumps(item) for item in added)
    end = array.rstrip().rfind(b"]")
    return body[: place.start] + array[:end] + b"," + inner + array[end:] + body[place.end :]


def _loads(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _dumps(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
