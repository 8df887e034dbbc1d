"""Capture as one thing: the recordings, the analyst's thread and the store, opened and closed together.

Owns what happens on the event loop when something became known about an exchange. Invariants: opening costs no time
(everything slow is loaded in the analyst's thread); a store that fails degrades recording, visibly, and nothing else.
"""

from __future__ import annotations

import secrets
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import trio

from dbproxy.app.analyst import Analyst, Finding, Tools
from dbproxy.app.capture import MESSAGES, Capture, is_model_traffic
from dbproxy.app.crash import describe_crash
from dbproxy.app.pace import PATIENCE
from dbproxy.errors import ConfigError, DbproxyError
from dbproxy.hooks.metrics import Sample
from dbproxy.model.link import Edge, Link
from dbproxy.model.record import ExchangeClosed
from dbproxy.paths import write_private

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dbproxy.app.journal import Journal
    from dbproxy.app.sessions import Sessions
    from dbproxy.config import Settings
    from dbproxy.exchange import Exchange
    from dbproxy.hooks.services import Redactor, Storage
    from dbproxy.model.prices import Prices
    from dbproxy.paths import Paths
    from dbproxy.store import Store
    from dbproxy.store.history import StoreHistory

#: Seconds after which a thread that computes gives way to the event loop. The default of 5 ms would be felt by streams.
SWITCH_INTERVAL = 0.0005


class SqliteStorage:
    """The embedded store behind the interface that plugins' stores have, too; ``history`` reads the same file."""

    def __init__(self, store: Store, history: StoreHistory) -> None:
        self._store = store
        self._history = history
        self.append = store.append
        self.flush = store.flush

    @property
    def state(self) -> str:
        """See `dbproxy.api.Storage`."""
        return self._store.state

    def counts(self) -> Mapping[str, int]:
        """See `dbproxy.api.Storage`."""
        return asdict(self._store.counts)

    def close(self, timeout: float) -> None:
        """See `dbproxy.api.Storage`."""
        self._history.close()  # the last connection to a file brings its log home, and that shall be the writer's
        self._store.close(timeout)


class Archive:
    """The captured side of one proxy. ``storage`` is a plugin's; without one the SQLite file is opened."""

    def __init__(
        self,
        settings: Settings,
        paths: Paths,
        *,
        journal: Journal,
        sessions: Sessions,
        intercepted: Callable[[], frozenset[str]],
        storage: Storage | None = None,
        redactors: Sequence[Redactor] = (),
        active: bool = True,
        has_policies: Callable[[], bool] = lambda: True,
    ) -> None:
        self.listeners: list[Callable[[Finding], object]] = []  # called on the event loop, must not block
        self._settings = settings
        self._paths = paths
        self._journal = journal
        self._sessions = sessions
        self._storage = storage
        self._redactors = tuple(redactors)
        self._prices: Prices | None = None
        self._token = trio.lowlevel.current_trio_token()
        self._last_expiry = 0.0
        self._closing = False
        self.analyst = Analyst(
            self._tools,
            key=_key(paths),
            post=self._post,
            found=self._found,
            failed=lambda error: journal.emit("capture_failed", level="error", error=error),
            redact_message=lambda body: self._redact("message", body.decode("utf-8", "replace")).encode(),
        )
        self.capture = Capture(
            self.analyst,
            lambda exchange: is_model_traffic(exchange, intercepted()),
            active=active,
            has_policies=has_policies,
        )

    def start(self) -> None:
        """Begin to keep."""
        if not self.capture.active:
            return
        sys.setswitchinterval(min(SWITCH_INTERVAL, sys.getswitchinterval()))
        self.analyst.start()

    @property
    def state(self) -> str:
        """Why nothing is kept, or not everything; "" if all is well."""
        if self.analyst.broken:
            return f"capture could not start: {self.analyst.broken}"
        return self._storage.state if self._storage is not None else ""

    def samples(self) -> list[Sample]:
        """For /metrics."""
        counts = self._counts()
        found = [
            Sample(
                f"dbproxy_store_{name}",
                value,
                kind="gauge",
                help=f"{name.replace('_', ' ')} of the store.".capitalize(),
            )
            for name, value in counts.items()
        ]
        found.append(Sample("dbproxy_capture_errors_total", self.analyst.errors, help="Faults in the capture thread."))
        return found + self.capture.samples()

    def _counts(self) -> Mapping[str, int]:
        return self._storage.counts() if self._storage is not None else {}

    def forget(self, prefix: str | None) -> None:
        """Forget conversations in memory; what was captured stays."""
        self.analyst.forget(prefix)

    def expire(self, now: float) -> None:
        """Drop from memory what has long been silent."""
        if now - self._last_expiry >= 60.0:
            self._last_expiry = now
            self.analyst.expire(now)

    def window(self, model: str, *, long: bool = False) -> int:
        """The context window of a model (tokens), 0 if it is not known."""
        return (self._prices.window(model, long=long) or 0) if self._prices is not None else 0

    def history(self, exchange_id: str) -> tuple[bytes, ...]:
        """The messages of a stored exchange and its answer. Blocks: run it in a thread."""
        from dbproxy.store.reader import Reader

        with Reader.open(self._paths.database) as reader:
            return tuple(reader.history(exchange_id))

    def body(self, exchange_id: str) -> bytes | None:
        """The request body of a stored exchange. Blocks: run it in a thread."""
        from dbproxy.store.reader import Reader

        with Reader.open(self._paths.database) as reader:
            return reader.request_body(exchange_id)

    async def retain(self) -> None:
        """Remove what the settings do not want kept any longer; only from the embedded store."""
        settings = self._settings
        if not (settings.retention_days or settings.retention_bytes) or not isinstance(self._storage, SqliteStorage):
            return
        await trio.to_thread.run_sync(self._prune, abandon_on_cancel=True)

    def _prune(self) -> None:
        from dbproxy.store.retention import prune

        days, size = self._settings.retention_days, self._settings.retention_bytes
        try:
            done = prune(
                self._paths.database,
                older_than=days * 86_400.0 if days else None,
                max_bytes=size or None,
                redact=lambda text: self._redact("search", text),
                stop=lambda: self._closing,
            )
        except DbproxyError as error:
            self._journal.emit("retention_failed", level="warning", message=str(error))
            return
        if done.exchanges:
            self._journal.emit("retention", exchanges=done.exchanges, freed_bytes=done.freed_bytes)

    async def flush(self, seconds: float) -> bool:
        """Wait until all that is finished by now can be read from the store; whether it is."""
        done = await trio.to_thread.run_sync(self.analyst.settle, seconds, abandon_on_cancel=True)
        if self._storage is None:
            return done
        return done and await trio.to_thread.run_sync(self._storage.flush, seconds, abandon_on_cancel=True)

    async def close(self, seconds: float) -> None:
        """Write what is queued, waiting at most so long."""
        self._closing = True
        began = trio.current_time()
        with trio.CancelScope(shield=True, deadline=began + seconds + 1.0):
            await trio.to_thread.run_sync(self.analyst.stop, seconds, abandon_on_cancel=True)
            if self._storage is not None:
                left = max(0.1, seconds - (trio.current_time() - began))
                await trio.to_thread.run_sync(self._storage.close, left, abandon_on_cancel=True)

    # ---- in the analyst's thread

    def _tools(self) -> Tools:
        from dbproxy.app.agent_files import AgentFolders, user_agents
        from dbproxy.model.linking.linker import Linker
        from dbproxy.model.prices import Prices

        history = None
        if self._storage is None:
            from dbproxy.store import Store
            from dbproxy.store.history import StoreHistory

            store = Store.open(
                self._paths.database,
                redact=lambda text: self._redact("search", text),
                on_state=self._state_changed,
                beats=lambda: self.analyst.pace.beats,
                patience=PATIENCE,
            )
            history = StoreHistory(self._paths.database)
            self._storage = SqliteStorage(store, history)
        self._prices = self._load_prices(Prices)
        return Tools(self._storage, Linker(history, agents=AgentFolders(user_agents())), self._prices)

    def _load_prices(self, prices: type[Prices]) -> Prices:
        file = self._settings.prices
        try:
            return prices.load(file.read_bytes(), str(file)) if file is not None else prices.load(None)
        except (OSError, ConfigError) as error:  # what was captured without prices can be priced again later
            self._journal.emit("prices_invalid", level="error", file=str(file), message=str(error))
            return prices.load(None)

    def _redact(self, where: str, text: str) -> str:
        from dbproxy.model.redact import redact_text

        text = redact_text(text)[0]
        for redactor in self._redactors:
            try:
                text = redactor(where, text)
            except Exception as error:
                self._journal.emit("redactor_failed", level="error", error=describe_crash(error))
                return ""
        return text

    def _state_changed(self, state: str) -> None:
        self._journal.emit("capture_state", level="error" if state else "info", state=state or "well")

    def _post(self, call: Callable[[], object]) -> None:
        try:
            self._token.run_sync_soon(call)
        except trio.RunFinishedError:
            pass

    # ---- on the event loop

    def _found(self, finding: Finding) -> None:
        exchange, link, record = finding.exchange, finding.link, finding.record
        if finding.stage == "opened":
            if link is not None:
                exchange.attributes["link"] = link
                self._sessions.linked(link.conversation, time.time())
            if exchange.path == MESSAGES:
                self._journal.emit("request_received", **_about(finding))
        elif isinstance(record, ExchangeClosed):
            if finding.usage is not None:
                exchange.attributes["usage"] = finding.usage
            if link is not None:
                self._note(record, link, exchange)
        for listener in self.listeners:
            listener(finding)

    def _note(self, record: ExchangeClosed, link: Link, exchange: Exchange) -> None:
        """What the status line shows of an answer: the main thread's context, everybody's cost."""
        usage, main = record.usage, link.thread == "main" and link.kind.speaks and link.edge is not Edge.ASIDE
        context = usage.context_tokens if usage is not None and main else None
        long = b"context-1m-2025-08-07" in exchange.request.fields.tokens(b"anthropic-beta")
        window = self.window(record.model, long=long) if context else None
        self._sessions.note(
            link.conversation,
            context_tokens=context,
            window_tokens=window,
            cost_usd=record.cost_usd,
            limits=record.limits,
        )


def _about(finding: Finding) -> dict[str, Any]:
    record, link = finding.record, finding.link
    facts: dict[str, Any] = {
        "exchange_id": finding.exchange.id,
        "scope": finding.exchange.scope,
        "model": getattr(record, "model", "") or None,
        "messages": getattr(record, "message_count", 0),
    }
    if link is not None:
        facts |= {"conv_id": link.conversation, "kind": link.kind.value, "thread": link.thread, "branch": link.branch}
    return facts


def _key(paths: Paths) -> bytes:
    """The key for fingerprints, made at the first start; a passing one where it cannot be kept."""
    try:
        key = paths.fingerprint_key.read_bytes()
        if len(key) >= 16:
            return key
    except OSError:
        pass
    key = secrets.token_bytes(32)
    with suppress(DbproxyError, OSError):
        write_private(paths.fingerprint_key, key)
    return key
