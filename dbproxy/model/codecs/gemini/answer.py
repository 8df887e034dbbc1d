"""Gemini's answers, streamed or whole, told to a `MessageWriter`.

Owns what chunks, parts and finish reasons mean. Pure. Sources: seed-001 sections 4.1 and 4.2, API facts 5.4, Google's
page on thought signatures, ``google.genai.types``.

Invariants: never raises; a reason to stop that is none of the model's own doing is a failure, never a regular end; an
answer without a reason to stop has not ended; a signature is kept for the call, or with the thought, that it came with.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from dbproxy.model import shapes
from dbproxy.model.codecs.vault import Kept, join_signature

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dbproxy.model.codecs.translation import Translation
    from dbproxy.model.codecs.writer import MessageWriter

_STOPS: Final = {"STOP": "end_turn", "MAX_TOKENS": "max_tokens"}
_REFUSALS: Final = frozenset(
    {
        "SAFETY",
        "RECITATION",
        "LANGUAGE",
        "BLOCKLIST",
        "PROHIBITED_CONTENT",
        "SPII",
        "IMAGE_SAFETY",
        "IMAGE_PROHIBITED_CONTENT",
        "IMAGE_RECITATION",
        "MODEL_ARMOR",
        "JAILBREAK",
    }
)
_UNTOLD: Final = "FINISH_REASON_UNSPECIFIED"
#: What models put before a function's name now and then: the module that they imagine around it.
_MODULE: Final = re.compile(r"\A(?:default_api|functions)[.:]")
#: Parts that have no twin in an answer of the Messages API.
_LEFT_OUT: Final = ("inlineData", "fileData", "executableCode", "codeExecutionResult", "toolCall", "toolResponse")
_STRANGE: Final = re.compile(r"[^A-Za-z0-9_]")
_CITED: Final = 150  # characters of the text that a citation repeats


class GeminiReader:
    """Reads one answer."""

    def __init__(self, translation: Translation, writer: MessageWriter) -> None:
        self._translation = translation
        self._writer = writer
        self._calls = 0
        self._thinks = False  # a thought is at hand, with words, that has no signature yet
        self._signature = ""  # of a thought, with words or without
        self._grounding: dict[str, Any] = {}

    def feed(self, name: bytes, data: bytes, /) -> None:
        """One chunk."""
        if not data or self._writer.done:
            return
        value = shapes.parse(data)
        if isinstance(value, dict):
            self._chunk(value, data)
        elif isinstance(value, list):  # errors come so
            self._chunks(value)
        elif not self._writer.stopped and data != b"[DONE]":
            self._writer.broken("sent a chunk that is no JSON object")

    def end(self) -> None:
        """The stream has ended."""
        if self._writer.done:
            return
        self._seal()
        if self._writer.stopped:
            self._cite()
        self._writer.finish()

    def document(self, body: bytes) -> None:
        """The whole answer, or all of its chunks as a list."""
        value = shapes.parse(body)
        if isinstance(value, dict):
            self._chunk(value, body)
        elif isinstance(value, list):
            self._chunks(value)
        else:
            self._writer.broken("sent an answer that is no JSON object")
        self.end()

    # ---- chunks

    def _chunks(self, values: list[Any]) -> None:
        for value in values:
            self._chunk(shapes.mapping(value), shapes.written(value))

    def _chunk(self, value: dict[str, Any], data: bytes) -> None:
        writer = self._writer
        if writer.done:
            return
        if value.get("error"):
            self._failed(value["error"], data)
            return
        candidate = shapes.mapping(next(iter(shapes.sequence(value.get("candidates"))), None))
        feedback = shapes.mapping(value.get("promptFeedback"))
        if candidate or feedback:
            writer.begin(shapes.text(value.get("responseId")))
        usage = value.get("usageMetadata")
        if isinstance(usage, dict):
            self._usage(usage)
        for part in shapes.sequence(shapes.mapping(candidate.get("content")).get("parts")):
            self._part(shapes.mapping(part))
        grounding = candidate.get("groundingMetadata")
        if isinstance(grounding, dict):
            self._grounding.update({name: found for name, found in grounding.items() if found})
        reason = shapes.text(candidate.get("finishReason"))
        if reason and reason != _UNTOLD:
            self._stop(reason, shapes.text(candidate.get("finishMessage")))
        elif not candidate and shapes.text(feedback.get("blockReason")):
            self._refuse(f"the prompt was blocked: {feedback['blockReason']}")

    def _part(self, part: dict[str, Any]) -> None:
        writer = self._writer
        text, signature = part.get("text"), shapes.text(part.get("thoughtSignature"))
        call = part.get("functionCall")
        if isinstance(call, dict):
            self._call(call, signature)
        elif part.get("thought") is True:
            if isinstance(text, str) and text:
                writer.thinking(text)
                self._thinks = True
            self._signature = signature or self._signature
        elif isinstance(text, str):
            # A signature of a text has no place in a Messages answer; Gemini does not insist on it.
            if text:
                self._seal()
                writer.text(text)
        elif any(name in part for name in _LEFT_OUT):
            self._translation.note("a part of the answer that is neither text nor a call was left out")

    def _call(self, call: dict[str, Any], signature: str) -> None:
        writer, given = self._writer, call.get("args")
        key = self._calls
        self._calls += 1
        # With the thought before it the client keeps the signature too, and it outlives this process.
        self._seal(signature, call=True)
        if not isinstance(given, str):
            given = shapes.written(shapes.mapping(given)).decode("utf-8", "replace")
        name = _MODULE.sub("", shapes.text(call.get("name")))
        writer.call(key, id=shapes.text(call.get("id")), name=name, arguments=given)
        id = writer.client_id_of(key)
        if signature and id:
            self._translation.vault.put(id, Kept(self._translation.family, signature))
        writer.complete(key)

    def _seal(self, signature: str = "", *, call: bool = False) -> None:
        """The thought at hand, if there is one, is over: it gets the signature of the call behind it, else its own. One
        without words is told only before a call: a turn that ended with one would hide its last text."""
        if self._thinks or (call and self._signature):
            self._writer.sign(join_signature(self._translation.family, signature or self._signature))
        self._thinks, self._signature = False, ""

    def _usage(self, usage: dict[str, Any]) -> None:
        thoughts = shapes.count(usage.get("thoughtsTokenCount"))
        cached = shapes.count(usage.get("cachedContentTokenCount"))
        prompt = shapes.count(usage.get("promptTokenCount")) + shapes.count(usage.get("toolUsePromptTokenCount"))
        said = shapes.count(usage.get("candidatesTokenCount")) + thoughts
        self._writer.usage(
            input=max(0, prompt - cached) if prompt else None,
            output=said or None,
            cache_read=cached or None,
            thinking=thoughts or None,
        )

    # ---- the end

    def _stop(self, reason: str, message: str) -> None:
        if reason in _STOPS:
            self._writer.stop(_STOPS[reason])
        elif reason in _REFUSALS:
            self._refuse(message or f"the model stopped: {reason}")
        else:
            # A call that could not be read, a missing signature, OTHER, and whatever comes to be: not an answer.
            self._writer.broken(f"stopped the model: {reason}")

    def _refuse(self, explanation: str) -> None:
        details = {"type": "refusal", "category": None, "explanation": explanation}
        self._writer.stop("refusal", details=details)

    def _failed(self, error: Any, data: bytes) -> None:
        code = shapes.count(shapes.mapping(error).get("code"))
        self._writer.error(data, code if 400 <= code < 600 else 200)

    # ---- what it found on the web

    def _cite(self) -> None:
        """The search that the answer rests on, as the Messages API's own tool shows it. It is told of at the end, so it
        stands behind the text, whose citations name the places."""
        grounding = self._grounding
        hits = [_hit(chunk) for chunk in shapes.sequence(grounding.get("groundingChunks"))]
        queries = [text for text in shapes.sequence(grounding.get("webSearchQueries")) if isinstance(text, str)]
        if not queries and not any(hits):
            return
        for citation in _citations(grounding, hits):
            self._writer.cite(citation)
        id = "srvtoolu_" + _STRANGE.sub("_", self._writer.message_id)
        query = {"query": "; ".join(queries)}
        self._writer.whole({"type": "server_tool_use", "id": id, "name": "web_search", "input": query})
        found = [{"type": "web_search_result", **hit, "encrypted_content": "", "page_age": None} for hit in hits if hit]
        self._writer.whole({"type": "web_search_tool_result", "tool_use_id": id, "content": found})


def _hit(chunk: Any) -> dict[str, str]:
    """Title and address of a page, {} for what is no page."""
    web = shapes.mapping(shapes.mapping(chunk).get("web"))
    url = shapes.text(web.get("uri"))
    return {"title": shapes.text(web.get("title")) or url, "url": url} if url else {}


def _citations(grounding: dict[str, Any], hits: list[dict[str, str]]) -> Iterator[dict[str, Any]]:
    for support in map(shapes.mapping, shapes.sequence(grounding.get("groundingSupports"))):
        text = shapes.text(shapes.mapping(support.get("segment")).get("text"))[:_CITED]
        for at in shapes.sequence(support.get("groundingChunkIndices")):
            if isinstance(at, int) and 0 <= at < len(hits) and hits[at]:
                yield {"type": "web_search_result_location", "cited_text": text, **hits[at], "encrypted_index": ""}
