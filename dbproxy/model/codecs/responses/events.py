"""The events and the response of the Responses API as values: typed, and read leniently where a server is not.

Pure. Invariant: `event_of` and `response_of` never raise; a key of the wrong type is as if it were absent.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from dbproxy.model import shapes


class Event(msgspec.Struct, gc=False):
    """Any event: the keys that matter of all of them, since one decoder for all is the fastest."""

    type: str = ""
    sequence_number: int | None = None
    output_index: int | None = None
    content_index: int | None = None
    summary_index: int | None = None
    annotation_index: int | None = None
    item_id: str | None = None
    delta: str | None = None
    text: str | None = None
    refusal: str | None = None
    arguments: str | None = None
    item: msgspec.Raw = msgspec.Raw()
    part: msgspec.Raw = msgspec.Raw()
    response: msgspec.Raw = msgspec.Raw()
    annotation: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()


class Response(msgspec.Struct, gc=False):
    """The keys of a response that matter: it repeats the whole prompt and all tools beside them."""

    id: Any = None
    status: Any = None
    error: Any = None
    incomplete_details: Any = None
    output: Any = None
    usage: Any = None


_EVENT: Final = msgspec.json.Decoder(Event).decode
_RESPONSE: Final = msgspec.json.Decoder(Response).decode
_RAW: Final = frozenset({"item", "part", "response", "annotation", "error"})
_NUMBERS: Final = frozenset({"sequence_number", "output_index", "content_index", "summary_index", "annotation_index"})


def event_of(data: bytes) -> Event | None:
    """The event in ``data``; None for what is no JSON object."""
    try:
        return _EVENT(data)
    except shapes.UNREADABLE:
        pass
    value = shapes.parse(data)
    if not isinstance(value, dict):
        return None
    found = Event()
    for name in found.__struct_fields__:
        given = value.get(name)
        if name in _RAW:
            setattr(found, name, msgspec.Raw(shapes.written(given)))
        elif isinstance(given, int if name in _NUMBERS else str) and not isinstance(given, bool):
            setattr(found, name, given)
    return found


def response_of(data: bytes | msgspec.Raw) -> Response | None:
    """The response in ``data``; None for what is no JSON object."""
    try:
        return _RESPONSE(data)
    except shapes.UNREADABLE:
        pass
    value = shapes.parse(data)
    if not isinstance(value, dict):
        return None
    return Response(**{name: value.get(name) for name in Response.__struct_fields__})


def inner(raw: msgspec.Raw) -> dict[str, Any]:
    """An object inside an event, empty if it is none."""
    return shapes.mapping(shapes.parse(raw))
