"""Valid streams made invalid in every way that was ever seen, and some that were not: for the fuzz of case 95.

Pure functions of a source of randomness, which may be hypothesis' own. Events are dropped, doubled, moved, cut; values
inside them become others: of a wrong type, huge, nested beyond reason, halves of characters; bytes are added or lost.
"""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

#: Values that stand where another was expected.
ODD: Final[tuple[Any, ...]] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    7,
    2**31,
    2**63,
    10**30,
    1.5,
    -0.0,
    "",
    "x",
    " ",
    "{}",
    "[]",
    '{"a"',
    "null",
    "\ud83d",
    "\ude00\ud83d",
    "\x00\u2028",
    "</think>",
    "<think>",
    "tool_calls",
    "error",
    "stop",
    [],
    {},
    [None],
    [[]],
    [{}],
    {"": None},
    {"type": None},
    {"type": "text", "text": "x"},
    {"error": {"message": 5}},
    {"message": "m"},
)
#: Keys that get into objects which have none of that name.
_KEYS: Final = ("type", "index", "id", "error", "delta", "usage", "text", "name", "arguments", "content", "item", "")
_GARBAGE: Final = (
    b"data: {}\n\n",
    b"data: []\n\n",
    b"data: null\n\n",
    b"data: [DONE]\n\n",
    b'data: {"error": {"message": "boom", "type": "server_error", "code": 500}}\n\n',
    b'data: {"error": "boom"}\n\n',
    b'event: error\ndata: {"type": "error", "error": {"type": "overloaded_error", "message": "boom"}}\n\n',
    b"event: message_stop\ndata: {}\n\n",
    b": comment\n\n",
    b"data\n\n",
    b"data: " + b"[" * 3000 + b"\n\n",
    b"data: " + b"[" * 3000 + b"]" * 3000 + b"\n\n",
    b'data: {"a": ' * 50 + b"\n\n",
    b"data: \xff\xfe\n\n",
    b"\x00\n\n",
    b"event: ping\ndata: {}\n\n",
    b"\r\n\r\n",
)


def mutated(source: Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """``data`` with some faults in it, at most four. ``others`` are streams whose events may get into it."""
    for _ in range(source.randint(1, 4)):
        way = source.choice(_WAYS)
        data = way(source, data, source.choice(others) if others else data)
    return data


def mutated_document(source: Random, body: bytes) -> bytes:
    """A JSON document with some faults in it."""
    value = json.loads(body)
    for _ in range(source.randint(1, 4)):
        value = _changed(source, value)
    data = json.dumps(value).encode()
    return _cut(source, data, b"") if source.random() < 0.1 else data


def _events(data: bytes) -> list[bytes]:
    return [event + b"\n\n" for event in data.replace(b"\r\n", b"\n").split(b"\n\n") if event]


def _drop(source: Random, data: bytes, other: bytes) -> bytes:
    events = _events(data)
    if events:
        del events[source.randrange(len(events))]
    return b"".join(events)


def _double(source: Random, data: bytes, other: bytes) -> bytes:
    events = _events(data)
    if events:
        events.insert(source.randint(0, len(events)), source.choice(events))
    return b"".join(events)


def _swap(source: Random, data: bytes, other: bytes) -> bytes:
    events = _events(data)
    if len(events) > 1:
        a, b = source.randrange(len(events)), source.randrange(len(events))
        events[a], events[b] = events[b], events[a]
    return b"".join(events)


def _cut(source: Random, data: bytes, other: bytes) -> bytes:
    return data[: source.randint(0, len(data))]


def _lose(source: Random, data: bytes, other: bytes) -> bytes:
    start = source.randint(0, len(data))
    return data[:start] + data[start + source.randint(1, 9) :]


def _insert(source: Random, data: bytes, other: bytes) -> bytes:
    at = source.randint(0, len(data))
    return data[:at] + bytes(source.randrange(256) for _ in range(source.randint(1, 6))) + data[at:]


def _litter(source: Random, data: bytes, other: bytes) -> bytes:
    events = _events(data)
    events.insert(source.randint(0, len(events)), source.choice(_GARBAGE))
    return b"".join(events)


def _weave(source: Random, data: bytes, other: bytes) -> bytes:
    """Two streams, one into the other."""
    events = _events(data)
    for event in _events(other):
        events.insert(source.randint(0, len(events)), event)
    return b"".join(events)


def _splice(source: Random, data: bytes, other: bytes) -> bytes:
    """The beginning of one stream and the rest of another."""
    first, second = _events(data), _events(other)
    return b"".join([*first[: source.randint(0, len(first))], *second[source.randint(0, len(second)) :]])


def _stray(source: Random, data: bytes, other: bytes) -> bytes:
    """An event of another stream."""
    events, strays = _events(data), _events(other)
    if strays:
        events.insert(source.randint(0, len(events)), source.choice(strays))
    return b"".join(events)


def _alter(source: Random, data: bytes, other: bytes) -> bytes:
    """Another value somewhere inside an event, or a key less, or a key more."""
    events = _events(data)
    if not events:
        return data
    number = source.randrange(len(events))
    lines = events[number].split(b"\n")
    for at, line in enumerate(lines):
        if not line.startswith(b"data:"):
            continue
        try:
            value = json.loads(line[5:])
        except (ValueError, RecursionError):
            continue
        changed = _changed(source, value)
        lines[at] = b"data: " + json.dumps(changed).encode()
    events[number] = b"\n".join(lines)
    return b"".join(events)


def _odd(source: Random) -> Any:
    return copy.deepcopy(source.choice(ODD))  # it may be altered itself


def _changed(source: Random, value: Any) -> Any:
    """``value`` with one place in it altered."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if not keys or source.random() < 0.1:
        return _odd(source)
    key = source.choice(keys)
    inner = value[key]
    if isinstance(inner, dict | list) and inner and source.random() < 0.8:
        value[key] = _changed(source, inner)
        return value
    how = source.random()
    if how < 0.2:
        del value[key]
    elif how < 0.3 and isinstance(value, dict):
        value[source.choice(_KEYS)] = _odd(source)
    elif how < 0.4 and isinstance(value, list):
        value.append(copy.deepcopy(inner))
    elif how < 0.5 and isinstance(inner, int):
        value[key] = inner + source.choice([-1, 1, 1000, 2**40])
    elif how < 0.6 and isinstance(inner, str):
        value[key] = inner[: source.randint(0, len(inner))]
    else:
        value[key] = _odd(source)
    return value


_WAYS: Final = (
    *(_drop, _double, _swap, _cut, _lose, _insert, _litter, _weave, _splice, _stray),
    *(_alter, _alter, _alter, _alter),
)
