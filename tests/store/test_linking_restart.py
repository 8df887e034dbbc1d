"""The captured runs through the real file: another process's linker, which knows only the file, goes on as if it had
been there from the start."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from linktalk import CAPTURES, Talk, captured, short

from dbproxy.model.linking.linker import Linker
from dbproxy.model.messages import MessagesRequest
from dbproxy.model.record import ExchangeClosed, ExchangeLinked, ExchangeOpened
from dbproxy.store.history import StoreHistory
from dbproxy.store.writer import Store

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from dbproxy.model.link import Link

EXPECTED: dict[str, dict[str, list[Any]]] = json.loads((CAPTURES / "expected.json").read_text("utf-8"))
RUNS = ["newest-nested", "newest-two-agents", "newest-manual-compaction", "newest-continue-resume-fork", "older-agent"]


class Kept(Talk):
    """Writes down what the analyst would, waiting for the file each time."""

    store: Store

    def _take(self, links: Sequence[Link]) -> None:
        super()._take(links)
        for link in links:
            told = self.told[link.exchange]
            if link is links[0] and not told.outcome:
                opened = ExchangeOpened(
                    link.exchange,
                    told.at,
                    "POST",
                    "h",
                    "/v1/messages",
                    "tunnel",
                    account=told.account,
                    client=told.client,
                )
                self.store.append(opened)
            self.store.append(ExchangeLinked(link))

    def end(self, exchange: str, message: dict[str, Any] | None, *, ok: bool = True, request_id: str = "") -> None:
        super().end(exchange, message, ok=ok, request_id=request_id)
        self.store.append(
            ExchangeClosed(
                exchange,
                self.told[exchange].at,
                "ok" if ok else "cut",
                message_id=(message or {}).get("id", ""),
                request_id=request_id,
                message=json.dumps(message).encode() if message else None,
            )
        )


@pytest.mark.parametrize("name", RUNS)
def test_another_process_goes_on(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    store = Store.open(path, redact=lambda text: text, on_state=lambda _: None)
    talk = Kept()
    talk.store = store
    try:
        for exchange in captured(name):
            history = StoreHistory(path)
            talk.linker = Linker(history)
            view = MessagesRequest(json.dumps(exchange["body"]).encode())
            named = dict(exchange["headers"])
            talk.send(exchange["id"], exchange["at"], view, named, exchange["path"], "acct")
            talk.end(exchange["id"], exchange["answer"], ok=exchange["ok"], request_id=exchange["request_id"])
            assert store.flush(10)
            history.close()
    finally:
        store.close(10)
    assert {id: short(link) for id, link in sorted(talk.links.items())} == EXPECTED[name]
