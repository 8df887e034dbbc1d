"""The turns of a conversation as the messages of a Chat request.

Owns their order and what stands in which message. Pure. Sources: seed-001 sections 3.1 and 3.3, API facts 5.3.

Invariants: the system prompt is one message, and the first; a turn of the assistant is one message, its text before its
calls; the results of calls come directly behind them, each as one text, before anything else of the user's; what cannot
stand in a result (pictures, files) follows in the user's message, behind a line that says where it belongs; no two
messages of the user's are neighbours; no thought is shown as text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dbproxy.model import shapes
from dbproxy.model.codecs.naming import upstream_id
from dbproxy.model.codecs.request import Call, Document, Image, Result, Text, Thinking, Unroutable, media, result_text
from dbproxy.model.codecs.vault import split_signature

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dbproxy.model.codecs.request import Part, Request, Turn
    from dbproxy.model.codecs.translation import Translation

#: The longest call id that every server takes (API facts 5.3: 40 to 64 characters).
ID_LIMIT: Final = 40
#: Stands for thoughts that must be echoed and are not known any more. Without any, or with an empty text, DeepSeek and
#: Kimi refuse the request; a blank passes (NousResearch/hermes-agent#17341).
_FORGOTTEN: Final = " "
#: Behind a call's id in the vault: what its server sent along and wants back (``extra_content``, API facts 5.4).
EXTRA: Final = "/extra"
_REMINDER: Final = "<system-reminder>\n{}\n</system-reminder>"


def messages_of(request: Request, translation: Translation) -> list[dict[str, Any]]:
    """The ``messages`` of a request. Raises Unroutable."""
    history = _History(translation)
    history.system(request.system)
    for turn in request.turns:
        history.turn(turn)
    return history.finished()


class _History:
    def __init__(self, translation: Translation) -> None:
        self._translation = translation
        self._developer = translation.capabilities.developer
        self._plain = "content_parts" in translation.capabilities.refuses
        self._messages: list[dict[str, Any]] = []

    def system(self, texts: Sequence[str]) -> None:
        """The system prompt."""
        if texts:
            role = "developer" if self._developer else "system"
            self._messages.append({"role": role, "content": [_text(text) for text in texts]})

    def turn(self, turn: Turn) -> None:
        """What somebody said."""
        if turn.role == "assistant":
            self._assistant(turn.parts)
        elif turn.role == "system":
            self._instruction([part.text for part in turn.parts if isinstance(part, Text)])
        else:
            results = [part for part in turn.parts if isinstance(part, Result)]
            for result in results:
                self._messages.append(
                    {
                        "role": "tool",
                        "tool_call_id": upstream_id(result.id, limit=ID_LIMIT),
                        "content": result_text(result),
                    }
                )
            self._user(_of_results(results))
            self._user([_content(part) for part in turn.parts if isinstance(part, Text | Image | Document)])

    def finished(self) -> list[dict[str, Any]]:
        """All messages. A content of one text is written as a string, which every server reads."""
        for message in self._messages:
            content = message["content"]
            if not isinstance(content, list):
                continue
            texts = [part["text"] for part in content if part["type"] == "text"]
            if len(texts) == len(content) and (len(texts) == 1 or self._plain):
                message["content"] = "\n\n".join(texts)
        return self._messages

    # ---- messages

    def _user(self, content: list[dict[str, Any]]) -> None:
        if not content:
            return
        last = self._messages[-1] if self._messages else None
        if last is not None and last["role"] == "user":
            last["content"].extend(content)
        else:
            self._messages.append({"role": "user", "content": content})

    def _instruction(self, texts: list[str]) -> None:
        """A system message in mid-conversation. The templates of many open models take one at the beginning only
        (ollama/ollama#17774), so where no developer may speak, the user says it, marked as the client marks such."""
        if not texts:
            return
        if self._developer:
            self._messages.append({"role": "developer", "content": [_text(text) for text in texts]})
        else:
            self._user([_text(_REMINDER.format("\n\n".join(texts)))])

    def _assistant(self, parts: Sequence[Part]) -> None:
        texts = [_text(part.text) for part in parts if isinstance(part, Text)]
        calls = [part for part in parts if isinstance(part, Call)]
        if not texts and not calls:
            return  # it only thought
        message: dict[str, Any] = {"role": "assistant", "content": texts or None}
        if calls:
            if self._translation.capabilities.echo:
                message["reasoning_content"] = self._thoughts(parts, calls)
            message["tool_calls"] = [self._call(call) for call in calls]
        self._messages.append(message)

    def _call(self, call: Call) -> dict[str, Any]:
        arguments = shapes.written(call.arguments).decode("utf-8", "surrogatepass")
        if not arguments:
            raise Unroutable("a tool's input nests too deeply")
        found: dict[str, Any] = {
            "id": upstream_id(call.id, limit=ID_LIMIT),
            "type": "function",
            "function": {"name": self._translation.names.out(call.name), "arguments": arguments},
        }
        kept = self._translation.vault.get(call.id + EXTRA, self._translation.family)
        if kept is not None:
            found["extra_content"] = shapes.parse(kept.payload.encode())
        return found

    def _thoughts(self, parts: Sequence[Part], calls: Sequence[Call]) -> str:
        """What the model thought before these calls: as the client kept it, else as it is remembered here."""
        family = self._translation.family
        said = "".join(
            part.text
            for part in parts
            if isinstance(part, Thinking) and part.signature and split_signature(part.signature)[0] == family
        )
        kept = (self._translation.vault.get(call.id, family) for call in calls)
        return said or next((found.text for found in kept if found is not None and found.text), "") or _FORGOTTEN


# ---- parts


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _content(part: Text | Image | Document) -> dict[str, Any]:
    if isinstance(part, Text):
        return _text(part.text)
    if isinstance(part, Image):
        return {"type": "image_url", "image_url": {"url": part.url or f"data:{part.media_type};base64,{part.data}"}}
    if part.url:
        raise Unroutable("a document that stands at a URL: this dialect takes files only whole")
    name = part.title or "document"
    if "." not in name[-5:]:
        name += ".pdf"
    return {"type": "file", "file": {"filename": name, "file_data": f"data:{part.media_type};base64,{part.data}"}}


def _of_results(results: Iterable[Result]) -> list[dict[str, Any]]:
    """The pictures and files of results, each call's behind a line that names it."""
    content: list[dict[str, Any]] = []
    before = None
    for result, part in media(results):
        if result is not before:
            before = result
            called = f"{result.name} ({upstream_id(result.id, limit=ID_LIMIT)})"
            content.append(_text(f"[What follows is part of the result of the call {called}.]"))
        content.append(_content(part))
    if content:
        content.append(_text("[End of the tool results.]"))
    return content
