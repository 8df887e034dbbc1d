"""The journal: one JSON object a line, written by a thread of its own.

Owns the log file, its hourly rotation and retention, and the masking of credentials. Imports ``dbproxy.errors`` and
``dbproxy.paths`` only; never trio. Invariants: ``emit`` does no I/O, waits for nothing and raises nothing; what does
not fit into the queue or onto the disk is counted; no credential reaches the file; a failing disk is tried again until
it works, and the file then says how much is missing.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import queue
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING

import msgspec

from dbproxy.errors import ConfigError
from dbproxy.paths import make_private

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LEVELS: Mapping[str, int] = {"debug": 10, "info": 20, "warning": 30, "error": 40}

MAX_LINE_BYTES = 32 * 1024
_MAX_TEXT = 4096
_MAX_ITEMS = 64
_MAX_DEPTH = 4
_BATCH_BYTES = 256 * 1024

_SECRET_WORDS = frozenset({"authorization", "cookie", "secret", "token", "password", "passwd", "apikey", "credential"})
_SECRET_TEXT = re.compile(
    r"(?P<scheme>\b(?:bearer|basic)\s+)[\w.~+/=-]{6,}"
    r"|(?P<pair>\b(?:api[_-]?key|token|secret|password)\s*[=:]\s*[\"']?)[^\s&,;\"'}]{4,}"
    r"|(?P<url>://)[^/\s?#]+@"
    r"|\bsk-[\w-]{8,}"
    r"|\beyJ[\w-]{8,}\.[\w.-]+",
    re.IGNORECASE,
)
_MASK = "***"


def mask(text: str) -> str:
    """``text`` with everything in it that looks like a credential replaced by ``***``."""

    if text.isalnum():
        return text  # every pattern needs a separator
    if text.isascii() and text.isprintable() and not (" " in text or ":" in text or "=" in text):
        lower = text.lower()
        if "sk-" not in lower and "eyj" not in lower:
            return text  # a path, a host, an id: each pattern begins with one of these

    def replaced(match: re.Match[str]) -> str:
        kept = match["scheme"] or match["pair"] or match["url"] or ""
        return f"{kept}{_MASK}@" if match["url"] else kept + _MASK

    return _SECRET_TEXT.sub(replaced, text)


class Journal:
    """The log of one process. Several processes may write the same file.

    ``level`` is the least important one that is kept. ``max_queue_bytes`` bounds what waits for the disk; ``days`` and
    ``max_total_bytes`` bound what older files may hold. ``clock`` gives seconds since the epoch, ``gather`` is how long
    (seconds) the writer collects lines before it writes them together, ``retry`` the pause after a failure.
    """

    def __init__(
        self,
        path: Path,
        level: str = "info",
        *,
        max_queue_bytes: int = 4 * 1024 * 1024,
        days: int = 7,
        max_file_bytes: int = 128 * 1024 * 1024,
        max_total_bytes: int = 2 * 1024 * 1024 * 1024,
        clock: Callable[[], float] = time.time,
        gather: float = 0.05,
        retry: float = 1.0,
        opener: Callable[[Path], int] | None = None,
    ) -> None:
        self.path = path
        self.degraded = ""
        self._least = LEVELS[level.lower()]
        self._clock = clock
        self._gather = gather
        self._retry = retry
        self._max_queue_bytes = max_queue_bytes
        self._file = _File(path, days, max_file_bytes, max_total_bytes, opener or _open_append)
        # A reentrant lock and a SimpleQueue: a signal handler or a finaliser may emit in the middle of an emit.
        self._lock = threading.RLock()
        self._queue: queue.SimpleQueue[bytes | threading.Event] = queue.SimpleQueue()
        self._waiting = 0
        self._dropped = 0
        self._gap = 0
        self._closing = threading.Event()
        self._subscribers: tuple[Callable[[bytes], None], ...] = ()
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Events that were lost: the queue was full, the disk failed until the end, or the journal was closed."""
        return self._dropped

    def emit(self, event: str, /, *, level: str = "info", **fields: object) -> None:
        """Note ``event``. Never blocks and never raises. Fields that look like credentials are masked."""
        try:
            if LEVELS.get(level, 20) < self._least:
                return
            line = self._line(event, level, fields)
        except Exception:  # a field whose text cannot be made: the event still counts
            self._lost(1)
            return
        # After a fork the thread that would write stayed with the parent.
        if self._closing.is_set() or os.getpid() != self._pid:
            self._lost(1)
            return
        with self._lock:
            room = self._waiting + len(line) <= self._max_queue_bytes
            if room:
                self._waiting += len(line)
                self._queue.put(line)
            else:
                self._lost(1)
        for subscriber in self._subscribers:
            try:
                subscriber(line)
            except Exception:
                self._unsubscribe(subscriber)

    def subscribe(self, callback: Callable[[bytes], None]) -> Callable[[], None]:
        """Call ``callback`` with every line from now on, in the thread that emits; returns how to end it.

        ``callback`` must not block. One that raises is removed.
        """
        with self._lock:
            self._subscribers += (callback,)
        return lambda: self._unsubscribe(callback)

    def flush(self, timeout: float) -> bool:
        """Wait up to ``timeout`` seconds until what was emitted before is on the disk. Never on the event loop."""
        done = threading.Event()
        self._queue.put(done)
        return done.wait(timeout)

    def close(self, timeout: float = 2.0) -> bool:
        """Write what waits and end, within ``timeout`` seconds; True if it did. Later events count as dropped."""
        self._closing.set()
        if os.getpid() != self._pid:
            return False
        self._queue.put(threading.Event())
        self._thread.join(timeout)
        if self._thread.is_alive():
            return False
        with contextlib.suppress(queue.Empty):
            while True:  # emitted by another thread in the very moment of closing
                self._lost(isinstance(self._queue.get_nowait(), bytes))
        return True

    def _unsubscribe(self, callback: Callable[[bytes], None]) -> None:
        with self._lock:
            self._subscribers = tuple(item for item in self._subscribers if item is not callback)

    def _lost(self, count: int) -> None:
        if os.getpid() != self._pid:  # the lock may have been held at the fork
            self._dropped += count
            return
        with self._lock:
            self._dropped += count
            self._gap += count

    def _line(self, event: str, level: str, fields: Mapping[str, object]) -> bytes:
        head: dict[str, object] = {"timestamp": _timestamp(self._clock()), "level": level, "event": event}
        record = dict(head)
        for name, value in fields.items():
            # Most fields are nothing or a whole number: those need no look.
            clean = value if value is None or type(value) is int else _clean(name, value, _MAX_DEPTH)
            record[f"{name}_" if name in head else name] = clean
        line = _encode(record)
        return line if len(line) <= MAX_LINE_BYTES else _encode(head | {"truncated": len(line)})

    def _run(self) -> None:
        """The writer. Ends when the journal is closed and everything was written, or failed once more."""
        while True:
            lines, flushed = self._collect()
            while lines and not self._write(lines):
                if self._closing.wait(self._retry) and not self._write(lines):
                    self._lost(len(lines))
                    break
                if self._closing.is_set():
                    break
            with self._lock:
                self._waiting -= sum(map(len, lines))
            for done in flushed:
                done.set()
            if self._closing.is_set() and self._queue.empty():
                self._file.close()
                return

    def _collect(self) -> tuple[list[bytes], list[threading.Event]]:
        """The next batch: waits for one line, gives others a moment to arrive, and takes what is there."""
        lines: list[bytes] = []
        flushed: list[threading.Event] = []
        size = 0
        item = self._queue.get()
        # Waking for each line would make the event loop's thread give up the interpreter as often.
        if isinstance(item, bytes):
            self._closing.wait(self._gather)
        while True:
            if isinstance(item, bytes):
                lines.append(item)
                size += len(item)
            else:
                flushed.append(item)
            if size >= _BATCH_BYTES:
                return lines, flushed
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return lines, flushed

    def _write(self, lines: list[bytes]) -> bool:
        """Write the lines. On failure keep those that are not on the disk in ``lines``, say why, return False."""
        size = sum(map(len, lines))
        try:
            now = self._clock()
            if self._gap:
                note = {"timestamp": _timestamp(now), "level": "warning", "event": "log_dropped", "count": self._gap}
                with self._lock:
                    self._gap, gap = 0, self._gap
                try:
                    self._file.write([_encode(note | {"count": gap})], now)
                except BaseException:
                    with self._lock:
                        self._gap += gap
                    raise
            self._file.write(lines, now)
        except (OSError, ConfigError) as error:
            self.degraded = _reason(error)
            return False
        except Exception as error:  # a defect of ours must not end the thread, or the queue would fill for ever
            self.degraded = f"{type(error).__name__}: {error}"
            return False
        finally:
            with self._lock:
                self._waiting -= size - sum(map(len, lines))
        self.degraded = self._file.trouble
        return True


class _File:
    """The file: appended to, rotated by the hour of its first line, reopened when it is not ours any more."""

    def __init__(
        self, path: Path, days: int, max_file_bytes: int, max_total_bytes: int, opener: Callable[[Path], int]
    ) -> None:
        self.path = path
        self.days = days
        self.max_file_bytes = max_file_bytes
        self.max_total_bytes = max_total_bytes
        self.opener = opener
        self.handle = -1
        self.hour = ""
        self.torn = False
        self.trouble = ""
        self.next_rotation = 0.0

    def write(self, lines: list[bytes], now: float) -> None:
        """Append the lines, and take those that were written off the list. Raises OSError or ConfigError."""
        hour = _hour(now)
        self._reopen_if_moved(hour)
        if self._is_due(hour) and now >= self.next_rotation:
            self._rotate(hour, now)
        data = (b"\n" if self.torn else b"") + b"".join(lines)
        written = 0
        try:
            # One write for all: O_APPEND makes it a unit among processes that share the file.
            while written < len(data):
                written += os.write(self.handle, data[written:])
        finally:
            self._settle(lines, written - self.torn)
        self.torn = False

    def close(self) -> None:
        """Close the file; the next write opens it again."""
        if self.handle >= 0:
            with contextlib.suppress(OSError):
                os.close(self.handle)
        self.handle = -1

    def _settle(self, lines: list[bytes], written: int) -> None:
        """Take whole lines off the list. One of which only a part went out is written again, on a line of its own."""
        while lines and written >= len(lines[0]):
            written -= len(lines.pop(0))
        self.torn = self.torn or written > 0

    def _reopen_if_moved(self, hour: str) -> None:
        if self.handle >= 0:
            try:
                there, ours = os.stat(self.path), os.fstat(self.handle)
                if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino):
                    return
            except FileNotFoundError:
                pass
            self.close()
        self._open(hour)

    def _open(self, hour: str) -> None:
        make_private(self.path.parent)
        self.handle = self.opener(self.path)
        self.torn = False
        self.hour = self._hour_of_content() or hour

    def _hour_of_content(self) -> str:
        """The hour of the first line; of the last change where that cannot be read; nothing for an empty file."""
        found = os.fstat(self.handle)
        if found.st_size == 0:
            return ""
        try:
            with open(self.path, "rb") as file:
                match = re.match(rb'\{"timestamp":"(\d{4}-\d\d-\d\dT\d\d)', file.read(64))
        except OSError:
            match = None
        return match[1].decode() if match else _hour(found.st_mtime)

    def _is_due(self, hour: str) -> bool:
        return self.hour < hour or os.fstat(self.handle).st_size > self.max_file_bytes

    def _rotate(self, hour: str, now: float) -> None:
        """Move the file away and begin another. Where that is refused, the old one is written on, and it is said."""
        self.trouble = ""
        try:
            with self._rotation_lock():
                # Another process may have rotated while we waited for the lock.
                self._reopen_if_moved(hour)
                if self._is_due(hour):
                    self.path.rename(self._free_name())
                    self._reopen_if_moved(hour)
                    self._prune(hour)
        except OSError as error:
            self.trouble = f"the journal cannot be rotated: {_reason(error)}"
            self.next_rotation = now + 60
            if self.handle < 0:
                raise

    @contextlib.contextmanager
    def _rotation_lock(self) -> Iterator[None]:
        if sys.platform == "win32":
            yield  # renaming a file that another process holds open fails there, which is lock enough
            return
        handle = os.open(self.path.with_name(f".{self.path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)  # held for a rename only, and this thread may wait
            yield
        finally:
            os.close(handle)

    def _free_name(self) -> Path:
        for number in range(10_000):
            name = self.path.with_name(f"{self.path.name}.{self.hour}" + (f"-{number:04}" if number else ""))
            if not name.exists():
                return name
        raise OSError(errno.EEXIST, "too many journal files for one hour")

    def _prune(self, hour: str) -> None:
        """Remove files that are older than the days to keep, and the oldest of those that are too many or too large."""
        now = datetime.strptime(hour, "%Y-%m-%dT%H").replace(tzinfo=UTC)
        oldest = _hour((now - timedelta(days=self.days)).timestamp())
        form = re.compile(re.escape(self.path.name) + r"\.(\d{4}-\d\d-\d\dT\d\d)(-\d{4})?\Z")
        found = sorted((match[0], match[1]) for name in os.listdir(self.path.parent) if (match := form.match(name)))
        total = 0
        for index, (name, its_hour) in enumerate(reversed(found)):
            file = self.path.with_name(name)
            with contextlib.suppress(OSError):
                total += file.stat().st_size
                if its_hour < oldest or index >= self.days * 24 or total > self.max_total_bytes:
                    file.unlink()


def _open_append(path: Path) -> int:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"):  # a FIFO in its place must fail, not hang
        flags |= getattr(os, name, 0)
    return os.open(path, flags, 0o600)


@lru_cache(maxsize=4)
def _second(now: int) -> str:
    return datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds").removesuffix("+00:00")


def _timestamp(now: float) -> str:
    second = math.floor(now)
    return f"{_second(second)}.{int((now - second) * 1000):03d}Z"


def _hour(now: float) -> str:
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H")


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
    return str(error)


def _encode(record: Mapping[str, object]) -> bytes:
    try:
        return msgspec.json.encode(record) + b"\n"  # every exchange writes a line; this takes a tenth of json's time
    except (ValueError, TypeError, OverflowError):
        # A lone surrogate (a file name that is not UTF-8) becomes a JSON escape.
        text = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
        return text.encode("utf-8", "backslashreplace") + b"\n"


@lru_cache(maxsize=1024)
def _is_secret_name(name: str) -> bool:
    words = re.split(r"[^a-z0-9]+", name.lower())
    return not _SECRET_WORDS.isdisjoint(words) or "apikey" in "".join(words)


def _clean(name: str, value: object, depth: int) -> object:
    """``value`` as bounded JSON without credentials."""
    if isinstance(value, str):  # before all others: a look at an abstract class costs as much as the rest
        return _MASK if _is_secret_name(name) else _bounded(value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if _is_secret_name(name):
        return _MASK
    if isinstance(value, Mapping) and depth:
        items = list(value.items())[:_MAX_ITEMS]
        return {str(key)[:256]: _clean(str(key), item, depth - 1) for key, item in items}
    if isinstance(value, list | tuple | set | frozenset) and depth:
        if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str | bytes):
            # A header: its name says whether its value may be seen.
            first = value[0] if isinstance(value[0], str) else value[0].decode("latin-1")
            return [_clean(name, first, 0), _clean(first, value[1], depth - 1)]
        return [_clean(name, item, depth - 1) for item in list(value)[:_MAX_ITEMS]]
    if isinstance(value, bytes | bytearray):
        text = bytes(value[: _MAX_TEXT * 2]).decode("utf-8", "backslashreplace")
    elif isinstance(value, BaseException):
        text = f"{type(value).__name__}: {value}"
    else:
        text = str(value)
    return _bounded(text)


def _bounded(text: str) -> str:
    # Masked before it is cut, so that no half of a credential is left at the end.
    text = mask(text[: _MAX_TEXT * 4])
    return text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "…"
