"""An answer in the words of the Responses API, read into a Messages answer: streamed, or as one document.

Owns what the events and items mean. Pure; never raises, whatever comes. Invariants: what came in pieces and comes again
whole is told once; what came only whole is told; an answer that has no end of its own is not complete; of two accounts
of a thought (summary and text) the first is told.

How items are told apart: by id, and by place (``output_index``) where nobody knows the id, since there are servers with
one place for everything and gateways with a new id for every event; by kind where there is neither. Sources: API facts
5.2, seed-001 4.1 and 4.2.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from dbproxy.model import shapes
from dbproxy.model.codecs.gate import is_object
from dbproxy.model.codecs.responses import search
from dbproxy.model.codecs.responses.carried import PHASES, join_reasoning, kept_phase, phase_key
from dbproxy.model.codecs.responses.events import Event, Response, event_of, inner, response_of
from dbproxy.model.codecs.vault import Kept, join_signature

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbproxy.model.codecs.translation import Translation
    from dbproxy.model.codecs.writer import MessageWriter

_MESSAGE, _REASONING, _CALL, _SEARCH = "message", "reasoning", "function_call", "web_search_call"
_KINDS: Final = frozenset({_MESSAGE, _REASONING, _CALL, _SEARCH})
# What a part of an item is, by the type of the part.
_TEXT, _REFUSAL, _SUMMARY, _THOUGHT = "output_text", "refusal", "summary_text", "reasoning_text"
_HOLDERS: Final = {_TEXT: _MESSAGE, _REFUSAL: _MESSAGE, _SUMMARY: _REASONING, _THOUGHT: _REASONING}
_APART: Final = "\n\n"


@dataclass(slots=True, eq=False)
class _Item:
    """An item of the answer as far as it was told."""

    kind: str
    key: int  # the writer's, for calls
    id: str = ""
    call_id: str = ""
    parts: dict[tuple[str, int], list[str]] = field(default_factory=dict)
    arguments: list[str] = field(default_factory=list)
    cited: set[tuple[int, int]] = field(default_factory=set)
    thinks: str = ""  # in which kind of part it thinks
    signed: bool = False
    over: bool = False


class _Answer:
    """What is the same for streams and documents: items, and the response that holds them."""

    def __init__(self, translation: Translation, writer: MessageWriter) -> None:
        self.translation = translation
        self.writer = writer
        self._items: list[_Item] = []
        self._by_index: dict[int, _Item] = {}
        self._by_id: dict[str, _Item] = {}
        self._last: _Item | None = None  # whose text or thought was told last, if nothing came in between
        self._reasoning: Kept | None = None  # what the next calls follow from
        self._refused: list[str] = []
        self._searches = search.Searches(writer)

    # ---- items

    def _new(self, kind: str, index: int | None, id: str) -> _Item:
        item = _Item(kind, len(self._items), id)
        self._items.append(item)
        if index is not None:
            self._by_index[index] = item
        if id:
            self._by_id[id] = item
        return item

    def _settle(self, item: _Item, given: dict[str, Any], *, late: bool = False) -> None:
        """An item is whole. ``late``: known from the final response only, when others were told already."""
        if item.kind == _MESSAGE:
            self._settle_message(item, given)
        elif item.kind == _REASONING:
            self._settle_reasoning(item, given, late=late)
        elif item.kind == _CALL:
            self._settle_call(item, given)
        elif not item.over:
            self._last = None
            self._searches.add(given)
        item.over = True

    def _settle_message(self, item: _Item, given: dict[str, Any]) -> None:
        for index, part in enumerate(map(shapes.mapping, shapes.sequence(given.get("content")))):
            self._settle_part(item, index, part)
        self._searches.close()
        text = "".join("".join(pieces) for (kind, _), pieces in item.parts.items() if kind == _TEXT)
        phase = next((phase for phase in PHASES if given.get("phase") == phase), None)
        if phase is not None and self.translation.family:
            self.translation.vault.put(phase_key(text), kept_phase(self.translation.family, phase))

    def _settle_part(self, item: _Item, index: int, part: dict[str, Any]) -> None:
        kind = shapes.text(part.get("type"))
        if _HOLDERS.get(kind) != item.kind:
            return
        self._whole(item, kind, index, shapes.text(part.get("refusal" if kind == _REFUSAL else "text")))
        for number, annotation in enumerate(map(shapes.mapping, shapes.sequence(part.get("annotations")))):
            self._cite(item, index, number, annotation)

    def _settle_reasoning(self, item: _Item, given: dict[str, Any], *, late: bool) -> None:
        encrypted = shapes.text(given.get("encrypted_content"))
        if not late:
            for index, part in enumerate(map(shapes.mapping, shapes.sequence(given.get("summary")))):
                self._whole(item, _SUMMARY, index, shapes.text(part.get("text")))
            for index, part in enumerate(map(shapes.mapping, shapes.sequence(given.get("content")))):
                self._whole(item, _THOUGHT, index, shapes.text(part.get("text")))
        family = self.translation.family
        if not encrypted or not family:
            return
        payload = join_reasoning(shapes.text(given.get("id")) or item.id, encrypted)
        text = _APART.join("".join(pieces) for pieces in item.parts.values())
        self._reasoning = Kept(family, payload, text)
        if not item.signed and not late:
            self.writer.sign(join_signature(family, payload))
            item.signed = True
            self._last = None

    def _settle_call(self, item: _Item, given: dict[str, Any]) -> None:
        self._searches.close()
        item.call_id = item.call_id or shapes.text(given.get("call_id"))
        self._arguments(item, shapes.text(given.get("arguments")), shapes.text(given.get("name")))
        id = self.writer.client_id_of(item.key)
        if id and self._reasoning is not None:
            self.translation.vault.put(id, self._reasoning)

    def _arguments(self, item: _Item, arguments: str, name: str = "") -> None:
        """All of a call's input. Incomplete input stays open: only the response's end tells whether it was cut."""
        self._last = None
        self.writer.call(item.key, id=item.call_id, name=name)
        so_far = "".join(item.arguments)
        if not arguments.startswith(so_far):
            arguments = so_far
        item.arguments = [arguments]
        if not arguments.strip() or is_object(arguments):
            self.writer.complete(item.key, arguments)
        else:
            self.writer.call(item.key, arguments=arguments[len(so_far) :])

    # ---- pieces

    def _tell(self, item: _Item, kind: str, index: int, piece: str) -> None:
        """A piece of a text, a refusal or a thought."""
        where = (kind, index)
        pieces = item.parts.get(where)
        if pieces is None:
            if not self._begins(item, kind):
                return
            pieces = item.parts[where] = []
        pieces.append(piece)
        if item.kind == _MESSAGE:
            if kind == _REFUSAL:
                self._refused.append(piece)
            self.writer.text(piece)
        else:
            self.writer.thinking(piece)

    def _begins(self, item: _Item, kind: str) -> bool:
        """A part begins: set it apart from what stands before it in the same block. False if it is not to be told."""
        last = self._last
        if item.kind == _REASONING:
            if item.signed or item.thinks not in ("", kind):
                return False
            item.thinks = kind
        if last is not None and last is not item:
            self.writer.close()
        elif last is item and item.kind == _REASONING:
            self.writer.thinking(_APART)
        self._last = item
        return True

    def _whole(self, item: _Item, kind: str, index: int, text: str) -> None:
        """All of a part: what did not come in pieces is told."""
        if not text:
            return
        so_far = "".join(item.parts.get((kind, index), ()))
        if text == so_far:
            item.parts[kind, index] = [text]
        elif text.startswith(so_far):
            self._tell(item, kind, index, text[len(so_far) :])
        else:
            self.translation.note("the provider told a part of its answer in two ways; the first was kept")

    def _cite(self, item: _Item, index: int, number: int | None, annotation: dict[str, Any]) -> None:
        mark = (index, len(item.cited) if number is None else number)
        if mark not in item.cited:
            item.cited.add(mark)
            self._searches.cite(annotation)

    # ---- the end

    def final(self, response: Response, status: str) -> None:
        """The whole response, and how it ended."""
        writer = self.writer
        if status == "failed":
            error = shapes.mapping(response.error) or {"message": "the answer failed"}
            writer.error(shapes.written({"error": error}))
            return
        if status not in ("completed", "incomplete"):
            said = "cancelled the answer" if status == "cancelled" else "did not finish the answer"
            writer.broken(said)
            return
        self._hydrate(shapes.sequence(response.output))
        self._searches.close()
        self._count(shapes.mapping(response.usage))
        reason = shapes.text(shapes.mapping(response.incomplete_details).get("reason"))
        if self._refused or (status == "incomplete" and reason == "content_filter"):
            explained = "".join(self._refused) or None
            writer.stop("refusal", details={"type": "refusal", "category": None, "explanation": explained})
        elif status == "incomplete":
            if reason != "max_output_tokens":
                self.translation.note("the provider left its answer incomplete for another reason than its length")
            writer.stop("max_tokens")  # cut, in any case
        else:
            writer.stop("end_turn")
        writer.finish()

    def _hydrate(self, output: list[Any]) -> None:
        """What the final response holds and the stream did not."""
        late = bool(self._items)
        self._reasoning = None  # by the response's own order, from its beginning
        seen: dict[str, int] = {}
        for index, given in enumerate(map(shapes.mapping, output)):
            kind = shapes.text(given.get("type"))
            if kind not in _KINDS:
                self._strange(kind)
                continue
            nth = seen[kind] = seen.get(kind, -1) + 1
            item = self._match(given, kind, index, nth) if late else None
            if item is None:
                item = self._new(kind, None, shapes.text(given.get("id")))
            self._settle(item, given, late=late)

    def _match(self, given: dict[str, Any], kind: str, index: int, nth: int) -> _Item | None:
        """The item of the stream that the final response means."""
        item = self._by_id.get(shapes.text(given.get("id")))
        if item is not None and item.kind == kind:
            return item
        streamed = [item for item in self._items if item.kind == kind]
        call = shapes.text(given.get("call_id"))
        if kind == _CALL and call:
            item = next((item for item in streamed if item.call_id == call), None)
            return item or next((item for item in streamed if not item.call_id), None)
        item = self._by_index.get(index)
        if item is not None and item.kind == kind:
            return item
        return streamed[nth] if nth < len(streamed) else None

    def _count(self, usage: dict[str, Any]) -> None:
        details = shapes.mapping(usage.get("input_tokens_details"))
        total, cached = _tokens(usage.get("input_tokens")), _tokens(details.get("cached_tokens"))
        written = _tokens(details.get("cache_write_tokens"))
        self.writer.usage(
            # A prompt of no tokens is none: the server does not count.
            input=max(0, total - (cached or 0) - (written or 0)) if total else None,
            output=_tokens(usage.get("output_tokens")),
            cache_read=cached,
            cache_write=written,
            thinking=_tokens(shapes.mapping(usage.get("output_tokens_details")).get("reasoning_tokens")),
        )

    def _strange(self, kind: str) -> None:
        shown = kind if kind.isidentifier() and len(kind) <= 40 else "unknown"
        self.translation.note(f"an item of the answer was left out: {shown}")


def _tokens(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


class Reader(_Answer):
    """Reads one streamed answer (`dbproxy.model.codecs.StreamReader`)."""

    def __init__(self, translation: Translation, writer: MessageWriter) -> None:
        super().__init__(translation, writer)
        self._number: int | None = None  # of the last event

    def feed(self, name: bytes, data: bytes, /) -> None:
        """One event. What is none of the API's is ignored."""
        if self.writer.done:
            return
        event = event_of(data)
        if event is None:
            return  # a [DONE], or no JSON
        number = event.sequence_number
        if number is not None:
            if self._number is not None and number != self._number + 1:
                self.translation.note("the provider's events did not come one by one: some may be missing")
            self._number = number
        kind = event.type or name.decode("latin-1")
        handler = _HANDLERS.get(kind)
        if handler is not None:
            handler(self, event)
        elif kind in _ENDS:
            self._ended(kind, event)
        elif kind == "error" or (not event.type and shapes.parse(event.error)):
            self.writer.error(data)

    def end(self) -> None:
        """The stream is over: what has no end by now has none."""
        self.writer.finish()

    # ---- finding items

    def _find(self, event: Event, kind: str) -> _Item:
        """The item that an event is about, made up if nothing announced it."""
        index, id = event.output_index, event.item_id or ""
        item = self._known(kind, index, id)
        if item is None and index is None and not id:
            item = next((item for item in reversed(self._items) if item.kind == kind and not item.over), None)
        return item or self._new(kind, index, id)

    def _known(self, kind: str, index: int | None, id: str) -> _Item | None:
        placed = self._by_index.get(index) if index is not None else None
        if placed is not None and placed.kind == kind and placed.id == id:
            return placed
        named = self._by_id.get(id)
        if named is not None and named.kind == kind:
            return named
        # An id that nobody knows: of a gateway that makes new ones, unless the item at this place is over.
        if placed is not None and placed.kind == kind and not (placed.over and id):
            return placed
        return None

    def _announced(self, event: Event, given: dict[str, Any], *, new: bool = False) -> _Item | None:
        """The item of output_item.added (``new``) and .done; None for a kind that is none of ours."""
        kind, id = shapes.text(given.get("type")), shapes.text(given.get("id"))
        if kind not in _KINDS:
            return None
        event.item_id = id
        item = self._find(event, kind)
        if new and id and item.id and item.id != id:
            return self._new(kind, event.output_index, id)
        return item

    # ---- events

    def _begun(self, event: Event) -> None:
        response = response_of(event.response)
        self.writer.begin(shapes.text(response.id) if response is not None else "")

    def _item_added(self, event: Event) -> None:
        given = inner(event.item)
        item = self._announced(event, given, new=True)
        if item is not None and item.kind == _CALL:
            self._searches.close()
            self._last = None
            item.call_id = shapes.text(given.get("call_id"))
            self.writer.call(item.key, id=item.call_id, name=shapes.text(given.get("name")))

    def _item_done(self, event: Event) -> None:
        given = inner(event.item)
        item = self._announced(event, given)
        if item is not None:
            self._settle(item, given)
        else:
            self._strange(shapes.text(given.get("type")))

    def _part_added(self, event: Event) -> None:
        part = inner(event.part)
        kind = shapes.text(part.get("type"))
        text = shapes.text(part.get("refusal" if kind == _REFUSAL else "text"))
        if text and kind in _HOLDERS:  # usually empty
            index = (event.summary_index if kind == _SUMMARY else event.content_index) or 0
            self._whole(self._find(event, _HOLDERS[kind]), kind, index, text)

    def _part_done(self, event: Event) -> None:
        part = inner(event.part)
        kind = shapes.text(part.get("type"))
        if kind in _HOLDERS:
            index = (event.summary_index if kind == _SUMMARY else event.content_index) or 0
            self._settle_part(self._find(event, _HOLDERS[kind]), index, part)

    def _text(self, event: Event) -> None:
        if event.delta:
            self._tell(self._find(event, _MESSAGE), _TEXT, event.content_index or 0, event.delta)

    def _text_done(self, event: Event) -> None:
        self._whole(self._find(event, _MESSAGE), _TEXT, event.content_index or 0, event.text or "")

    def _refusal(self, event: Event) -> None:
        if event.delta:
            self._tell(self._find(event, _MESSAGE), _REFUSAL, event.content_index or 0, event.delta)

    def _refusal_done(self, event: Event) -> None:
        self._whole(self._find(event, _MESSAGE), _REFUSAL, event.content_index or 0, event.refusal or "")

    def _summary(self, event: Event) -> None:
        if event.delta:
            self._tell(self._find(event, _REASONING), _SUMMARY, event.summary_index or 0, event.delta)

    def _summary_done(self, event: Event) -> None:
        self._whole(self._find(event, _REASONING), _SUMMARY, event.summary_index or 0, event.text or "")

    def _thought(self, event: Event) -> None:
        if event.delta:
            self._tell(self._find(event, _REASONING), _THOUGHT, event.content_index or 0, event.delta)

    def _thought_done(self, event: Event) -> None:
        self._whole(self._find(event, _REASONING), _THOUGHT, event.content_index or 0, event.text or "")

    def _input(self, event: Event) -> None:
        if event.delta:
            item = self._find(event, _CALL)
            self._last = None
            item.arguments.append(event.delta)
            self.writer.call(item.key, arguments=event.delta)

    def _input_done(self, event: Event) -> None:
        self._arguments(self._find(event, _CALL), event.arguments or "")

    def _annotated(self, event: Event) -> None:
        item = self._find(event, _MESSAGE)
        self._cite(item, event.content_index or 0, event.annotation_index, inner(event.annotation))

    def _ended(self, kind: str, event: Event) -> None:
        response = response_of(event.response) or Response()
        self.writer.begin(shapes.text(response.id))
        status = shapes.text(response.status)
        # Of two words for the end the response's own counts, if it is one.
        self.final(response, status if status in _STATES else _ENDS[kind])


_STATES: Final = frozenset({"completed", "incomplete", "failed", "cancelled"})
#: The events that end an answer, and how.
_ENDS: Final = {
    "response.completed": "completed",
    "response.incomplete": "incomplete",
    "response.failed": "failed",
    "response.cancelled": "cancelled",
}
_HANDLERS: Final[dict[str, Callable[[Reader, Event], None]]] = {
    "response.created": Reader._begun,
    "response.in_progress": Reader._begun,
    "response.queued": Reader._begun,
    "response.output_item.added": Reader._item_added,
    "response.output_item.done": Reader._item_done,
    "response.content_part.added": Reader._part_added,
    "response.content_part.done": Reader._part_done,
    "response.reasoning_summary_part.added": Reader._part_added,
    "response.reasoning_summary_part.done": Reader._part_done,
    "response.output_text.delta": Reader._text,
    "response.output_text.done": Reader._text_done,
    "response.output_text.annotation.added": Reader._annotated,
    "response.refusal.delta": Reader._refusal,
    "response.refusal.done": Reader._refusal_done,
    "response.reasoning_summary_text.delta": Reader._summary,
    "response.reasoning_summary_text.done": Reader._summary_done,
    "response.reasoning_text.delta": Reader._thought,
    "response.reasoning_text.done": Reader._thought_done,
    "response.function_call_arguments.delta": Reader._input,
    "response.function_call_arguments.done": Reader._input_done,
}


def read_document(body: bytes, translation: Translation, writer: MessageWriter) -> None:
    """Read an answer that came as one document; never raises."""
    answer = _Answer(translation, writer)
    response = response_of(body)
    if response is None or not (isinstance(response.output, list) or shapes.mapping(response.error)):
        writer.broken("sent an answer that is no response")
        return
    writer.begin(shapes.text(response.id))
    status = shapes.text(response.status) or ("failed" if shapes.mapping(response.error) else "completed")
    answer.final(response, status)
