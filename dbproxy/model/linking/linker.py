"""The linker: says of each request which conversation, thread and branch it belongs to, and what it follows.

Owns the conversations in memory and the order in which evidence counts. Never does I/O of its own (a ``History`` may)
and reads no clock: times come with the requests. Invariants: the same requests and answers give the same final links in
whatever order parallel ones arrive; memory is bounded; nothing here raises because of what a body holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dbproxy.model.kinds import classify
from dbproxy.model.link import Link

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dbproxy.exchange import Fields
    from dbproxy.model.agents import AgentFiles
    from dbproxy.model.linking.history import History
    from dbproxy.model.messages import MessagesRequest


class Linker:
    """Links requests. One instance per process, used by one thread."""

    def __init__(self, history: History | None = None, *, agents: AgentFiles | None = None, limit: int = 1000) -> None:
        """``limit`` is how many conversations stay in memory; others are asked of ``history`` when they return."""
        self._history = history
        self._agents = agents
        self._limit = limit

    def request(
        self,
        id: str,
        at: float,
        view: MessagesRequest,
        fields: Fields,
        *,
        path: str = "/v1/messages",
        scope: str = "",
        account: str = "",
        project: str = "",
    ) -> tuple[Link, ...]:
        """Link a request whose body is complete. The first link is its own; others correct earlier ones.

        ``at`` in Unix seconds, ``account`` the credential's fingerprint, ``project`` the launch's working directory.
        """
        kind, compaction, evidence = classify(view, fields, path)
        return (Link(id, view.session(fields), "main", 1, kind, compaction, evidence=(evidence,)),)

    def answer(self, id: str, message: Mapping[str, Any] | None, *, ok: bool, request_id: str = "") -> tuple[Link, ...]:
        """An exchange is over: ``message`` is the final message as far as it came, ``ok`` whether it came to its end,
        ``request_id`` the upstream's id of it. Returns the links that became better known."""
        return ()

    def forget(self, prefix: str = "") -> int:
        """Drop conversations whose id begins with ``prefix`` from memory; how many."""
        return 0

    def expire(self, now: float) -> int:
        """Drop from memory what has been idle for long; how many conversations."""
        return 0
