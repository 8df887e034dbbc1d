"""The model's name in a request and in an answer: read, and put in another's place.

Pure; imports nothing of dbproxy but its public values. Invariant: of a body that is changed every other byte stays.
"""

from __future__ import annotations

import json

from dbproxy.api import json_members


def with_model(body: bytes, old: str, model: str) -> bytes | None:
    """A Messages body that asks for ``model`` in place of ``old``; None where it does not ask for that one."""
    member = next((one for one in json_members(body) or () if one.key == b"model"), None)
    if member is None or json.loads(body[member.start : member.end]) != old:
        return None
    return body[: member.start] + json.dumps(model).encode() + body[member.end :]


def model_of_start(data: bytes) -> str:
    """The model of Claude's that a ``message_start`` names; "" for any other."""
    try:
        found = json.loads(data)["message"]["model"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return found if isinstance(found, str) and found.startswith("claude-") else ""
