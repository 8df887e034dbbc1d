"""The store: takes records from any thread and writes them from one of its own.

Owns the queue, the writer's thread and what it does when the file cannot be written. Imports base, model and store;
never trio. Invariants: ``append`` never waits for the disk and never raises; the queue is bounded by bytes and sheds
transcripts before facts, counted; a batch is committed whole or tried again; every failure is visible in ``state`` and
heals without a restart.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sqlite3
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from dbproxy.model.record import ExchangeClosed, ExchangeOpened
from dbproxy.store import files, migrations
from dbproxy.store.database import (
    ALIVE_EVERY,
    DamagedSearch,
    Database,
    explain,
    is_busy,
    is_damage,
    is_damaged,
    is_of_a_record,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dbproxy.model.record import Record

#: What a record weighs beside its transcript, about.
FACT_BYTES: Final = 2048
#: A batch is committed when it reached this.
BATCH_RECORDS: Final = 256
BATCH_BYTES: Final = 8 * 1024 * 1024
#: The part of the queue that may fill before nothing is waited for any longer; the fuller it is, the less is.
PATIENT_PART: Final = 1 / 8
#: Seconds behind its patience after which a record is written however busy the process is.
OLDEST: Final = 1.0
#: Where there is more urgent work: the records of a batch (twice as many while it stays quiet), how many times as long
#: as it took the pause behind it is, and how many seconds without anything urgent are a quiet moment.
BUSY_RECORDS: Final = 16
BUSY_REST: Final = 19.0
QUIET: Final = 0.002
#: Seconds before a failed write is tried again: the first pause and the longest.
RETRY: Final = (0.1, 15.0)


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of records since the start. Bytes are of transcripts and facts as they wait, uncompressed."""

    queued: int = 0
    queued_bytes: int = 0
    written: int = 0
    shed_transcripts: int = 0
    shed_facts: int = 0
    errors: int = 0  # records that could not be written for their own sake
    failures: int = 0  # batches that could not be written for the file's sake


class Store:
    """Keeps records in one SQLite file. Made with ``Store.open``; several processes may have one on the same file."""

    def __init__(
        self,
        path: Path,
        *,
        redact: Callable[[str], str],
        on_state: Callable[[str], None],
        queue_bytes: int,
        batch_seconds: float,
        busy_seconds: float,
        index: bool,
        clock: Callable[[], float],
        beats: Callable[[], int],
        patience: float,
    ) -> None:
        self.path = path
        self._redact = redact
        self._on_state = on_state
        self._limit = queue_bytes
        self._gather = batch_seconds
        self._busy_seconds = busy_seconds
        self._index = index
        self._clock = clock
        self._beats = beats
        self._patience = patience
        self._seen = -1  # the beats when it was quiet
        self._most = BUSY_RECORDS  # of a batch that nobody waits for
        self._change = threading.Condition()
        self._queue: deque[_Entry] = deque()
        self._heavy: deque[_Entry] = deque()  # those with a transcript, oldest first
        self._waiting = 0  # bytes
        self._taken = 0  # records given to append
        self._done = 0  # records that left the queue, one way or the other
        self._written = self._shed_transcripts = self._shed_facts = self._errors = self._failures = 0
        self._urgent = False
        self._closing = False
        self._deadline = 0.0
        self._state = ""
        self._file: Database | None = None
        self._doubtful = False  # damage was met, and not found when it was looked for
        self._forced = False  # a file was put aside although it looked well
        self._held = False  # the last failure was another process's lock
        self._open_here: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="store", daemon=True)

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        redact: Callable[[str], str],
        on_state: Callable[[str], None] = lambda state: None,
        queue_bytes: int = 64 * 1024 * 1024,
        batch_seconds: float = 0.05,
        busy_seconds: float = 5.0,
        index: bool = True,
        clock: Callable[[], float] = time.time,
        beats: Callable[[], int] = lambda: 0,
        patience: float = 0.0,
    ) -> Store:
        """Start a store on the file ``path``; it is opened, made or migrated in the writer's thread.

        ``redact`` changes every text before it reaches the search index (``index`` False: there is none). ``on_state``
        is called in the writer's thread with the new ``state``; what was wrong and is mended is told too (a file that
        was put aside). ``queue_bytes`` bounds what waits, ``batch_seconds`` is how long records are gathered,
        ``busy_seconds`` how long another process may hold the file before that shows in ``state``.
        ``beats`` is a number that changes while the process is busy with what is more urgent; a batch then waits for a
        quiet moment, ``patience`` seconds at most, and is a small one. 0.0: nothing is more urgent.
        """
        store = cls(
            path,
            redact=redact,
            on_state=on_state,
            queue_bytes=queue_bytes,
            batch_seconds=batch_seconds,
            busy_seconds=busy_seconds,
            index=index,
            clock=clock,
            beats=beats,
            patience=patience,
        )
        store._thread.start()
        return store

    @property
    def state(self) -> str:
        """Empty while all is well, else why nothing can be written now and what to do about it."""
        return self._state

    @property
    def counts(self) -> Counts:
        """What became of records so far."""
        with self._change:
            return Counts(
                queued=len(self._queue),
                queued_bytes=self._waiting,
                written=self._written,
                shed_transcripts=self._shed_transcripts,
                shed_facts=self._shed_facts,
                errors=self._errors,
                failures=self._failures,
            )

    def append(self, record: Record) -> None:
        """Take a record. Thread-safe; never waits for the disk, never raises."""
        try:
            entry = _Entry(record, _weight(record))
            with self._change:
                self._taken += 1
                if self._closing:
                    self._lose(entry)
                    return
                if not self._make_room(entry):
                    return
                self._waiting += entry.weight
                first = not self._queue
                self._queue.append(entry)
                if entry.weight > FACT_BYTES:
                    self._heavy.append(entry)
                if first or self._room() <= 0.0:
                    self._change.notify_all()
        except Exception:  # nothing that a record holds may reach a request
            self._errors += 1

    def flush(self, timeout: float) -> bool:
        """Wait until everything taken so far is in the file (or lost and counted); False after ``timeout`` seconds."""
        with self._change:
            goal = self._taken
            self._urgent = True
            self._change.notify_all()
            return self._change.wait_for(lambda: self._done >= goal, timeout)

    def close(self, timeout: float) -> bool:
        """Write what waits and end the thread; False if that took longer than ``timeout`` seconds and was given up."""
        with self._change:
            self._closing = True
            self._urgent = True
            self._deadline = time.monotonic() + timeout
            self._change.notify_all()
        self._thread.join(timeout + 1.0)
        return not self._thread.is_alive() and not self._queue

    # -- the queue; each of these holds the lock

    def _make_room(self, entry: _Entry) -> bool:
        """Shed until ``entry`` fits: its own transcript, then those that wait longest, then the entry itself."""
        if self._waiting + entry.weight > self._limit:
            self._strip(entry)
        while self._waiting + entry.weight > self._limit and self._heavy:
            old = self._heavy.popleft()
            if old.queued and not old.taken:
                before = old.weight
                self._strip(old)
                self._waiting -= before - old.weight
        if self._waiting + entry.weight > self._limit:
            self._lose(entry)
            return False
        return True

    def _strip(self, entry: _Entry) -> None:
        record = entry.record
        if isinstance(record, ExchangeOpened) and record.body is not None:
            entry.record = dataclasses.replace(record, body=None)
        elif isinstance(record, ExchangeClosed) and (record.stream is not None or record.message is not None):
            entry.record = dataclasses.replace(record, stream=None, message=None)
        else:
            return
        entry.shed += entry.weight - FACT_BYTES
        entry.weight = FACT_BYTES
        self._shed_transcripts += 1

    def _lose(self, entry: _Entry) -> None:
        self._shed_facts += 1
        self._done += 1
        self._change.notify_all()

    def _hurried(self) -> bool:
        return self._urgent or self._closing or self._room() <= 0.0

    def _room(self) -> float:
        """How much of what may wait for a quiet moment, and of the time that it may, is free: below 0.0 none is."""
        age = time.monotonic() - self._queue[0].since if self._queue and self._patience else 0.0
        return 1.0 - max(self._waiting / (self._limit * PATIENT_PART), (age - self._patience) / OLDEST)

    def _calm(self) -> bool:
        """Wait for a quiet moment, for what is patient; False if there was none, and room is to be made for others."""
        began = time.monotonic()
        while self._patience and self._queue and not self._hurried():
            beats = self._beats()
            self._change.wait(QUIET)
            if self._beats() == beats:
                self._most = min(2 * self._most, BATCH_RECORDS) if beats == self._seen else BUSY_RECORDS
                self._seen = beats
                return True
            if time.monotonic() >= began + self._patience * self._room():
                self._most = BUSY_RECORDS
                return False
        return True

    def _take(self) -> list[_Entry]:
        """The next batch; it stays in the queue until it is written."""
        batch: list[_Entry] = []
        weight = 0
        most = BATCH_RECORDS if self._hurried() or not self._patience else self._most
        for entry in self._queue:
            batch.append(entry)
            entry.taken = True
            weight += entry.weight
            if len(batch) >= most or weight >= BATCH_BYTES:
                break
        return batch

    def _put_back(self, batch: list[_Entry]) -> None:
        with self._change:
            for entry in batch:
                entry.taken = False
            self._heavy = deque(entry for entry in self._queue if entry.weight > FACT_BYTES)

    def _finish(self, batch: list[_Entry]) -> None:
        with self._change:
            for entry in batch:
                self._queue.popleft()
                entry.queued = False
                self._waiting -= entry.weight
            while self._heavy and not self._heavy[0].queued:
                self._heavy.popleft()
            self._done += len(batch)
            self._urgent = self._urgent and bool(self._queue)
            self._change.notify_all()

    # -- the writer's thread

    def _run(self) -> None:
        try:
            self._write_on()
        finally:
            self._leave()

    def _write_on(self) -> None:
        pause = 0.0
        while True:
            with self._change:
                if not self._queue and not self._closing and not pause and self._file is not None:
                    self._change.wait(ALIVE_EVERY)
                if pause:
                    # While the file fails, neither a full queue nor a flush makes it be tried more often.
                    end = time.monotonic() + pause
                    while not self._closing and (left := end - time.monotonic()) > 0:
                        self._change.wait(left)
                elif self._queue and not self._hurried():
                    self._change.wait_for(self._hurried, self._gather)
                calm = self._calm()
                batch = self._take()
                closing = self._closing
            began = time.monotonic()
            trouble = self._attempt(batch)
            if not trouble:
                pause = 0.0
                if batch and not calm:
                    with self._change:
                        rest = (time.monotonic() - began) * BUSY_REST * self._room()
                        self._change.wait_for(self._hurried, max(rest, 0.0))
                if closing and not self._queue:
                    if self._file is not None and self._written:
                        self._file.tidy()
                    return
                continue
            self._put_back(batch)
            # Only another process's lock is worth waiting for at the end.
            if closing and (not self._held or time.monotonic() + RETRY[0] >= self._deadline):
                return
            pause = min(max(pause * 2, RETRY[0]), RETRY[1])
            if closing:
                pause = RETRY[0]
                threading.Event().wait(pause)

    def _attempt(self, batch: list[_Entry]) -> bool:
        """Write a batch; whether that failed for the file's sake."""
        try:
            file = self._ready()
            if batch:
                self._commit(file, batch)
            file.look_after(bool(self._open_here))
        except (sqlite3.Error, OSError, migrations.UnusableFile) as error:
            self._failures += 1
            try:
                self._failed(error)
            except Exception as failure:
                self._give_up(failure)
            return True
        except Exception as error:
            self._failures += 1
            self._give_up(error)
            return True
        self._say("")
        return False

    def _ready(self) -> Database:
        """The open file; opened again if another one took its name."""
        if self._file is not None and files.identity(self.path) != self._file.identity:
            self._drop_file()
        if self._file is None:
            self._file = Database(
                self.path,
                redact=self._redact,
                index=self._index,
                busy_seconds=self._busy_seconds,
                clock=self._clock,
            )
        return self._file

    def _commit(self, file: Database, batch: list[_Entry]) -> None:
        try:
            file.write(batch)
            written = len(batch)
        except (sqlite3.Error, OSError) as error:
            if not is_of_a_record(error):
                raise
            written = self._one_by_one(file, batch)
        except Exception:
            written = self._one_by_one(file, batch)
        self._written += written
        self._errors += len(batch) - written
        for entry in batch:
            if isinstance(entry.record, ExchangeOpened):
                self._open_here.add(entry.record.id)
            elif isinstance(entry.record, ExchangeClosed):
                self._open_here.discard(entry.record.id)
        self._doubtful = False
        self._say("")  # before those who wait for the batch look
        self._finish(batch)

    def _one_by_one(self, file: Database, batch: list[_Entry]) -> int:
        """Something in the batch cannot be written: find out what, keep the rest."""
        written = 0
        for entry in batch:
            try:
                file.write([entry])
                written += 1
            except (sqlite3.Error, OSError) as error:
                if not is_of_a_record(error):
                    raise
            except Exception:  # this record's fault: counted in errors
                continue
        return written

    def _failed(self, error: Exception) -> None:
        """Say what is wrong, and mend what can be mended."""
        reason = explain(error)
        self._held = is_busy(error) or isinstance(error, files.Locked)
        if is_damage(error):
            self._damaged(error)
            return
        if not is_busy(error):
            self._drop_file()
        elif self._file is not None:
            self._file.rollback()
        self._say(reason)

    def _damaged(self, error: Exception) -> None:
        """Go on with a new file, or with a new search index where nothing else is damaged."""
        if isinstance(error, DamagedSearch) and self._file is not None and not self._doubtful:
            self._doubtful = True
            try:
                self._file.renew_search()
            except sqlite3.Error:
                self._drop_file()
            else:
                self._say("the search index was damaged; a new one was started, older texts are not in it")
            return
        self._drop_file()
        try:
            aside = self._put_aside()
        except (OSError, sqlite3.Error) as failure:
            self._say(f"the database file is damaged and cannot be put aside: {explain(failure)}")
            return
        if aside is not None:
            self._say(f"the database file was damaged; it is kept as {aside.name}, a new one was started")
        elif self._doubtful:
            self._say(explain(error))

    def _put_aside(self) -> Path | None:
        """Put the damaged file aside, unless another process already did; None then.

        A file that looks well is given one more try, and one file that goes on looking well is put aside as well: if
        the next is no better, then the fault is not the file's.
        """
        with files.opening(self.path, self._busy_seconds):
            if files.identity(self.path) is None:
                return None
            if not is_damaged(self.path):
                if not self._doubtful or self._forced:
                    self._doubtful = True
                    return None
                self._forced = True
            self._doubtful = False
            return files.put_aside(self.path, self._clock())

    def _give_up(self, error: Exception) -> None:
        """A fault of ours: tried again like any other, since a store that stopped would be worse."""
        self._drop_file()
        self._say(f"{type(error).__name__} in the store: please report it")

    def _drop_file(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _say(self, state: str) -> None:
        if state == self._state:
            return
        self._state = state
        with contextlib.suppress(Exception):
            self._on_state(state)

    def _leave(self) -> None:
        self._drop_file()
        with self._change:
            self._closing = True
            self._shed_facts += len(self._queue)
            self._done = self._taken
            self._change.notify_all()


class _Entry:
    """A record on its way into the file."""

    __slots__ = ("queued", "record", "shed", "since", "taken", "weight")

    def __init__(self, record: Record, weight: int) -> None:
        self.record = record
        self.weight = weight
        self.since = time.monotonic()
        self.shed = 0  # bytes of transcript that it lost
        self.taken = False  # in the batch that is being written
        self.queued = True


def _weight(record: Record) -> int:
    """Bytes that a record holds in memory, about."""
    weight = FACT_BYTES
    if isinstance(record, ExchangeOpened) and record.body is not None:
        weight += len(record.body.raw)
    elif isinstance(record, ExchangeClosed):
        weight += len(record.message or b"")
        if record.stream is not None:
            weight += sum(len(piece.data) + 64 for piece in record.stream)
    return weight
