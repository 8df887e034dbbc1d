"""What a server that speaks Chat answers, told to a `MessageWriter`.

Owns the meaning of chunks and documents: what is text, thought, call, usage, refusal, error, and when an answer is
whole. Pure. Sources: seed-001 sections 4.1 to 4.3 and cases 42 to 84, API facts 5.1 and 5.6.

Invariants: nothing that comes raises; an answer is whole only if the server said why the model stopped; what comes
behind the end is not read; a chunk of text is decoded once and builds no dictionary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dbproxy.model import shapes
from dbproxy.model.codecs import repair
from dbproxy.model.codecs.chat import chunks
from dbproxy.model.codecs.chat.calls import CallBook
from dbproxy.model.codecs.chat.history import EXTRA
from dbproxy.model.codecs.chat.tags import ThinkTags
from dbproxy.model.codecs.gate import is_object
from dbproxy.model.codecs.vault import Kept, join_signature

if TYPE_CHECKING:
    from dbproxy.model.codecs.translation import Translation
    from dbproxy.model.codecs.writer import MessageWriter

#: Why a model stopped, in the Messages API's words. Beside OpenAI's own: ``eos`` and the like of local servers,
#: ``sensitive`` of Zhipu, ``model_length`` of Mistral.
_STOPS: Final = {
    "stop": "end_turn",
    "eos": "end_turn",
    "eos_token": "end_turn",
    "end_turn": "end_turn",
    "length": "max_tokens",
    "max_tokens": "max_tokens",
    "model_length": "max_tokens",
    "tool_calls": "tool_use",
    "tool_use": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
    "sensitive": "refusal",
    "refusal": "refusal",
}
#: Reasons that are failures: the answer is not whole.
_FAILED: Final = frozenset({"error", "abort", "cancelled", "network_error", "insufficient_system_resource"})
_LONGEST_ID: Final = 128


class ChatReader:
    """Reads one answer: `feed` and `end` for a stream, `document` for the whole of it at once."""

    __slots__ = (
        "_book",
        "_halves",
        "_hits",
        "_reason",
        "_refusal",
        "_split",
        "_tags",
        "_thinks",
        "_thoughts",
        "_translation",
        "_writer",
    )

    def __init__(self, translation: Translation, writer: MessageWriter) -> None:
        self._translation = translation
        self._writer = writer
        self._book = CallBook()
        self._tags = ThinkTags() if translation.capabilities.reasoning == "think" else None
        self._thinks = False  # the thought at hand goes on
        self._thoughts: list[str] = []  # all that was thought, if it has to be echoed
        self._reason = ""
        self._refusal: list[str] = []
        self._hits: dict[str, str] = {}  # titles of web pages by their URL
        self._split = False  # this server cuts characters in two
        self._halves: dict[object, str] = {}

    def feed(self, name: bytes, data: bytes, /) -> None:
        """One server-sent event."""
        if self._writer.done:
            return
        chunk = chunks.quick(data)
        if chunk is None:
            chunk = self._tolerant(data)
        if name == b"error" or (chunk is not None and chunk.failed):
            self._fail(chunk, data)
            return
        if chunk is None:
            return
        choices = chunk.choices
        if choices:
            self._choice(chunk, choices[0])
        if chunk.usage is not None:
            self._usage(chunk.usage)

    def end(self) -> None:
        """The stream has ended. What comes later is not read."""
        self._finish()

    def document(self, body: bytes) -> None:
        """A whole answer."""
        chunk = chunks.tolerant(shapes.parse(body))
        if chunk is None:
            self._writer.broken("sent an answer that is no JSON object")
        elif chunk.failed:
            self._fail(chunk, body)
        elif not chunk.choices:
            self._writer.broken("sent an answer that holds no choice")
        else:
            choice = chunk.choices[0]
            self._mend(choice)
            self._choice(chunk, choice)
            self._usage(chunk.usage)
            self._reason = self._reason or "stop"  # it cannot have been cut
            self._finish()

    # ---- chunks

    def _tolerant(self, data: bytes) -> chunks.Chunk | None:
        """An event that is no chunk as OpenAI writes them; None if there is nothing in it."""
        if data.strip() == b"[DONE]":
            self._finish()
            return None
        value, halves = shapes.parse_halves(data)
        self._split = self._split or halves
        if value is None and data.lstrip().startswith(b"{"):
            self._writer.broken("sent a chunk that is no JSON")
            return None
        return chunks.tolerant(value)

    def _choice(self, chunk: chunks.Chunk, choice: chunks.Choice) -> None:
        self._writer.begin((chunk.id or "")[:_LONGEST_ID])
        delta = choice.delta
        if delta is None and not self._writer.substance:
            delta = choice.message  # the whole answer in one chunk
        if delta is not None:
            self._delta(delta)
        reason = choice.finish_reason
        if reason:
            if reason in _FAILED:
                self._writer.broken(f"ended its answer with {reason}")
                return
            if reason not in _STOPS:
                self._translation.note(f"an unknown finish_reason, taken for stop: {reason[:40]}")
            self._reason = reason
        if choice.usage is not None:
            self._usage(choice.usage)

    def _delta(self, delta: chunks.Delta) -> None:
        if delta.reasoning_content or delta.reasoning or delta.reasoning_details:
            # The same thought may stand in two of them.
            self._think(delta.reasoning_content or delta.reasoning or chunks.said(delta.reasoning_details))
        content = delta.content
        if content:
            if isinstance(content, str):
                self._text(content)
            else:
                self._parts(content)
        if delta.refusal:
            self._refusal.append(delta.refusal)
            self._text(delta.refusal)
        if delta.annotations:
            self._cite(delta.annotations)
        if delta.tool_calls:
            for place, call in enumerate(delta.tool_calls):
                self._call(place, call)
        if delta.function_call is not None:
            self._call(0, chunks.ToolCall(function=delta.function_call))

    def _parts(self, parts: list[Any]) -> None:
        """A content in parts (Mistral's thoughts come so)."""
        for part in parts:
            found = shapes.mapping(part)
            if found.get("type") in ("thinking", "reasoning"):
                self._think(chunks.said(found.get("thinking")) or chunks.said(found))
            else:
                self._text(chunks.said(part))

    # ---- what was said

    def _text(self, text: str) -> None:
        if self._tags is None:
            self._say(text)
            return
        for thought, piece in self._tags.feed(text):
            (self._think if thought else self._say)(piece)

    def _say(self, text: str) -> None:
        if self._split:
            text = self._joined("text", text)
        if text:
            if self._thinks:
                self._thought_ends()
            self._writer.text(text)

    def _think(self, text: str) -> None:
        if self._split:
            text = self._joined("thought", text)
        if not text:
            return
        self._thinks = True
        if self._translation.capabilities.echo:
            self._thoughts.append(text)
        self._writer.thinking(text)

    def _thought_ends(self) -> None:
        self._thinks = False
        if self._translation.capabilities.echo:
            self._writer.sign(join_signature(self._translation.family, ""))

    def _call(self, place: int, call: chunks.ToolCall) -> None:
        function = call.function
        id = call.id or ""
        name = (function.name or "") if function is not None else ""
        arguments = (function.arguments or "") if function is not None else ""
        known = self._book.of(place, call.index, id, name, arguments)
        if self._split:
            arguments = self._joined(known.key, arguments)
        arguments = known.add(id, name, arguments)
        if call.extra_content is not None:
            known.extra = call.extra_content
        if self._thinks:
            self._thought_ends()
        self._writer.call(known.key, id=id, name=name, arguments=arguments)

    def _cite(self, annotations: list[Any]) -> None:
        """What a web search found: citations of the text at hand."""
        for annotation in map(shapes.mapping, annotations):
            found = shapes.mapping(annotation.get("url_citation"))
            url, title = shapes.mend(shapes.text(found.get("url"))), shapes.mend(shapes.text(found.get("title")))
            if url:
                self._hits.setdefault(url, title)
                self._writer.cite(
                    {
                        "type": "web_search_result_location",
                        "url": url,
                        "title": title or None,
                        "cited_text": shapes.mend(shapes.text(found.get("content"))),
                        "encrypted_index": "",
                    }
                )

    def _joined(self, place: object, text: str) -> str:
        """The text with a character whose halves came in two pieces made whole."""
        text = self._halves.pop(place, "") + text
        if "\ud800" <= text[-1:] <= "\udbff":
            self._halves[place] = text[-1]
            text = text[:-1]
        return shapes.mend(text)

    def _usage(self, value: object) -> None:
        """What was counted so far. ``prompt_tokens`` includes what the cache read and wrote; ``completion_tokens``
        includes the thoughts, but where the total shows that it does not (xAI)."""
        usage = shapes.mapping(value)
        details = shapes.mapping(usage.get("prompt_tokens_details"))
        prompt = shapes.count(usage.get("prompt_tokens"))
        read = (
            shapes.count(details.get("cached_tokens"))
            or shapes.count(usage.get("prompt_cache_hit_tokens"))
            or shapes.count(usage.get("cached_tokens"))
        )
        wrote = shapes.count(details.get("cache_write_tokens"))
        output = shapes.count(usage.get("completion_tokens"))
        thinking = shapes.count(shapes.mapping(usage.get("completion_tokens_details")).get("reasoning_tokens"))
        if thinking and shapes.count(usage.get("total_tokens")) == prompt + output + thinking:
            output += thinking
        if prompt:
            self._writer.usage(
                input=prompt - read - wrote if read + wrote <= prompt else prompt, cache_read=read, cache_write=wrote
            )
        if output:
            self._writer.usage(output=output, thinking=thinking)

    # ---- the end

    def _finish(self) -> None:
        """The server said that this was all, or broke off: `MessageWriter.finish` knows by the reason to stop."""
        writer = self._writer
        if self._tags is not None:
            for thought, piece in self._tags.rest():
                (self._think if thought else self._say)(piece)
        if self._thinks:
            self._thought_ends()
        if self._reason:
            self._search_found()
            reason = _STOPS.get(self._reason, "end_turn")
            if reason == "refusal" or (self._refusal and reason == "end_turn"):
                said = "".join(self._refusal)
                writer.stop("refusal", details={"type": "refusal", "category": None, "explanation": said or None})
            else:
                writer.stop(reason)
        writer.finish()
        self._keep()

    def _search_found(self) -> None:
        """The pages as the Messages API's own search gives them, since the client reads its links there."""
        if not self._hits or not self._translation.capabilities.web_search:
            return
        id = f"srvtoolu_{self._translation.message_id}"
        pages = [
            {"type": "web_search_result", "url": url, "title": title, "encrypted_content": "", "page_age": None}
            for url, title in self._hits.items()
        ]
        self._writer.whole({"type": "server_tool_use", "id": id, "name": "web_search", "input": {}})
        self._writer.whole({"type": "web_search_tool_result", "tool_use_id": id, "content": pages})

    def _keep(self) -> None:
        """Remember for the next request what has to come back with the calls."""
        family, vault = self._translation.family, self._translation.vault
        thoughts = "".join(self._thoughts)
        for call in self._book:
            id = self._writer.client_id_of(call.key)
            if not id:
                continue
            if thoughts:
                vault.put(id, Kept(family, "", thoughts))
            if call.extra is not None:
                vault.put(id + EXTRA, Kept(family, shapes.written(call.extra).decode("utf-8", "replace")))

    def _fail(self, chunk: chunks.Chunk | None, data: bytes) -> None:
        """An error in place of a chunk, or of the document. Some tell its status in it."""
        code = shapes.mapping(chunk.error).get("code") if chunk is not None else None
        self._writer.error(data, code if isinstance(code, int) and 400 <= code < 600 else 200)

    def _mend(self, choice: chunks.Choice) -> None:
        """A document's calls are whole: what is nearly JSON in them can be mended before anything is written."""
        message = choice.message or choice.delta
        for call in (message.tool_calls or ()) if message is not None else ():
            function = call.function
            if function is None or not function.arguments or is_object(function.arguments):
                continue
            found = repair.arguments(function.arguments)
            if found is not None:
                self._translation.note("a tool's input was no valid JSON and was repaired")
                function.arguments = shapes.written(found).decode("utf-8", "surrogatepass")
