"""What the dialects of several servers have in common: the spelling of an event, data URLs, marks of failed results.

Pure functions. Must never import a codec: these servers are the codecs' oracle.
"""

from __future__ import annotations

import json
from typing import Any, Final

from dbproxy.model.codecs.request import Choice, Document, Image, Text

#: How a failed result looks where a dialect has no flag for it: the model reads it as such (seed-001 3.3).
FAILED_MARK: Final = "Error:"


def dumped(value: Any) -> str:
    """JSON as these servers write it: compact, characters as they are."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def event(value: Any, name: str = "") -> bytes:
    """One server-sent event."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {dumped(value)}\n\n".encode("utf-8", "surrogatepass")


def from_data_url(url: str, *, title: str = "") -> Image | Document:
    """What a data URL, or any other, stands for."""
    if not url.startswith("data:"):
        return Image(url=url)
    media, _, data = url.removeprefix("data:").partition(";base64,")
    return Image(media, data) if media.startswith("image/") else Document(media, data, title=title)


def choice_of(value: Any, named: str, *, single: bool) -> Choice | None:
    """An OpenAI ``tool_choice``; ``named`` is the name of the one function that it names, "" for none."""
    if value is None and not single:
        return None
    if named:
        return Choice("tool", named, single)
    modes = {"auto": "auto", "required": "any", "none": "none", None: "auto"}
    return Choice(modes[value], "", single)  # type: ignore[arg-type]


def texts(value: Any) -> list[str]:
    """The texts of a content that is a string or a list of parts."""
    if isinstance(value, str):
        return [value]
    return [part["text"] for part in value or [] if "text" in part]


def joined_text(parts: tuple[Any, ...]) -> str:
    """The texts among neutral parts, one a line."""
    return "\n".join(part.text for part in parts if isinstance(part, Text))
