"""What must be known of a server to check a codec for it: how it spells its answers, and how to read what it is asked.

Owns the two classes that the author of a codec fills in: `Dialect`, and `Speech` for one streamed answer. Values and
abstract methods only; must never import the codec that is checked, else a mistake in it would be made twice and never
seen.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, TypeAlias

from dbproxy.model.codecs.capabilities import Capabilities
from dbproxy.model.codecs.request import Call, Text, Thinking, Turn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dbproxy.model.codecs.request import Choice, Tool

#: What a server may be able to say; a `Dialect` whose server cannot leaves the word out of ``can``. Of answers:
#: ``thinking``; ``pieces`` (a call's arguments come bit by bit), ``interleaved`` (pieces of parallel calls in turn),
#: ``late names`` (a call's name comes in pieces, or after its id), ``ids`` (calls have them, and results name them),
#: ``no ids`` (calls may lack them); ``no usage`` (an answer without counts), ``cached`` (a count of what a cache read);
#: ``refusal``; ``errors`` (inside a stream); ``documents`` (answers that are not streamed). Of requests: ``images``,
#: ``results with images``, ``files``.
WORDS: Final = frozenset(
    {
        "thinking",
        "pieces",
        "interleaved",
        "late names",
        "ids",
        "no ids",
        "no usage",
        "cached",
        "refusal",
        "errors",
        "documents",
        "images",
        "results with images",
        "files",
    }
)


@dataclass(frozen=True, slots=True)
class Counts:
    """What an answer cost, in tokens. ``input`` leaves out what a cache read."""

    input: int
    output: int
    cache_read: int = 0


#: A part of an answer that is not streamed.
Said: TypeAlias = Text | Thinking | Call


@dataclass(frozen=True, slots=True)
class Seen:
    """A written request, read back as its server understands it.

    ``system`` is what stands outside of the conversation. ``turns`` hold the rest in its order, with the server's own
    names and ids of calls (numbers where it has none, the same for a call and its result); whatever carries results is
    the user's. ``choice`` is None where the request says nothing.
    """

    turns: tuple[Turn, ...]
    system: tuple[str, ...] = ()
    tools: tuple[Tool, ...] = ()
    choice: Choice | None = None
    model: str = ""
    stream: bool = False
    max_tokens: int | None = None


class Speech(ABC):
    """One streamed answer of the server. Each method gives the bytes that it sends at that moment, b"" for none.

    It is called in the order of an answer: `begin`, any of the pieces, `end`; an answer that breaks off has no `end`.
    """

    def begin(self) -> bytes:
        """What comes before anything is said."""
        return b""

    @abstractmethod
    def text(self, piece: str) -> bytes:
        """A piece of text."""

    def thinking(self, piece: str) -> bytes:
        """A piece of what the model thinks (only asked for if the dialect can)."""
        raise NotImplementedError

    @abstractmethod
    def call(self, key: int, *, id: str = "", name: str = "", arguments: str = "") -> bytes:
        """A piece of the call with this number in the answer. The first piece has the id and the name, unless the kit
        tries late or missing ones; without ``pieces`` there is but one, with all of the arguments."""

    def done(self, key: int) -> bytes:
        """The call with this number is complete."""
        return b""

    @abstractmethod
    def end(self, stop: str, tokens: Counts | None) -> bytes:
        """The answer's regular end. ``stop`` is ``end_turn``, ``tool_use``, ``max_tokens`` or ``refusal``: the server's
        own word for it. ``tokens`` are counts (the input without what the cache read), None where it tells none."""

    def error(self, kind: str, message: str) -> bytes:
        """An error in the middle of the answer, of the server's own kind nearest to ``kind`` (an error type of the
        Messages API)."""
        raise NotImplementedError


class Dialect(ABC):
    """A server's way of speaking. ``model`` is one of its models, with these ``capabilities``; ``family`` is who can
    read its signatures. ``exempt`` names cases of the kit that do not apply, each with the reason."""

    name: ClassVar[str]
    model: ClassVar[str] = "model-1"
    family: ClassVar[str] = ""
    capabilities: ClassVar[Capabilities] = Capabilities()
    can: ClassVar[frozenset[str]] = WORDS
    exempt: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def speak(self) -> Speech:
        """A new answer."""

    @abstractmethod
    def read(self, body: bytes) -> Seen:
        """Understand a request as the server does. Raises ValueError for one that it would refuse."""

    def document(self, parts: Sequence[Said], stop: str, tokens: Counts | None) -> bytes:
        """The same answer as one JSON document (only asked for if the dialect can)."""
        raise NotImplementedError
