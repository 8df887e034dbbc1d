"""What a plugin may ask of the running proxy, and what a store of its own has to offer: protocols only.

Must not import trio. Invariant: a method added here has a default way to do without it; changing one is a change of the
plugin interface.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from dbproxy.exchange import Exchange, RequestHead, ResponseHead
    from dbproxy.hooks.routing import Provider
    from dbproxy.model.agents import AgentFile
    from dbproxy.model.link import Link
    from dbproxy.model.record import Record


class CallAnswer(Protocol):
    """The upstream's answer to a plugin's own call: ``exchange`` is the call's record, the pieces are decoded.

    Iterating raises UpstreamError when the answer breaks off.
    """

    exchange: Exchange
    head: ResponseHead

    def __aiter__(self) -> AsyncIterator[bytes]: ...
    async def body(self) -> bytes: ...


class HeldBody(Protocol):
    """A request's body, held by reference for as long as this object lives."""

    async def read(self) -> bytes | None:
        """The body, content coding undone; None if it is not whole."""


class Services(Protocol):
    """What a plugin may ask of the running proxy. Only on the event loop."""

    async def link(self, exchange: Exchange, seconds: float, /) -> Link | None:
        """The exchange's place in its conversation, waiting at most so long; None if it is not known by then, and at
        once while the body is still being streamed (`wants_body` has it whole before anything else)."""

    def request_body(self, exchange: Exchange, /) -> HeldBody | None:
        """The body of a Messages request that is under way; None if it was not kept. Costs nothing until it is read."""

    async def stored_body(self, exchange_id: str, /) -> bytes | None:
        """The body of an exchange that is over, from the store; None if it is not there (any more)."""

    def settings(self, exchange: Exchange | None, /) -> Mapping[str, object]:
        """The settings that hold for an exchange, by name; those of the user for None."""

    def context_window(self, model: str, /) -> int:
        """The context window of a model in tokens, 0 if it is not known."""

    def client_window(self, exchange: Exchange, model: str, /) -> int:
        """The context window (tokens) that the client of an exchange reckons with for a model, which need not be the
        model's; 0 if it is no client that compacts, or not known."""

    def client_variables(self, exchange: Exchange, /) -> Mapping[str, str]:
        """The client's own variables (compaction and the like) as they were when it was launched."""

    async def history(self, exchange_id: str, /) -> Sequence[bytes]:
        """The messages of a stored exchange as the model saw them, and the answer; message threads are followed."""

    def note(self, conversation: str, /, **facts: object) -> None:
        """Tell the status line and the pages about a conversation: ``phase``, and what else a page may show."""

    def providers(self) -> Mapping[str, Provider]:
        """The providers that plugins registered, by name."""

    async def agent_file(self, exchange: Exchange, name: str, /) -> AgentFile | None:
        """The file of the custom agent of this name, of the exchange's project or the user's; None without one."""

    def send(
        self, on_behalf: Exchange, head: RequestHead, body: bytes, /, *, purpose: str, deadline: float
    ) -> AbstractAsyncContextManager[CallAnswer]:
        """Make an upstream call: same way out as ``on_behalf``, captured, never a turn of a conversation.

        ``head`` is in origin form; framing fields are put right. ``deadline`` in seconds covers the whole call.
        Raises UpstreamError and Refused.
        """


class Storage(Protocol):
    """What keeps records. ``state`` says why it cannot at the moment ("" if all is well), ``counts`` are its figures.

    ``append`` is called from a thread, must return at once and never raise. ``flush`` and ``close`` block up to
    ``timeout`` seconds; they are called in threads.
    """

    @property
    def state(self) -> str: ...

    def append(self, record: Record, /) -> None: ...
    def counts(self) -> Mapping[str, int]: ...
    def flush(self, timeout: float, /) -> bool: ...
    def close(self, timeout: float, /) -> None: ...


#: Takes what must not be kept out of a text; ``where`` is ``"search"`` or ``"message"``. Called in threads.
Redactor: TypeAlias = Callable[[str, str], str]
