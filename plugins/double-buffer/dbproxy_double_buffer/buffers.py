"""What is known of each thread's buffer, and how it survives a restart.

Owns the buffers in memory and one small file per conversation (0600). Invariants: a checkpoint is only ever used for a
history that holds its chain; what lies on disk is at most as old as the time to live; a file that cannot be read is as
none.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from dbproxy.api import write_document
from dbproxy_double_buffer.phases import Event, Phase, next_phase
from dbproxy_double_buffer.wall import Client, Observation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    import trio

#: Checkpoints kept of one thread: the newest, and ancestors for rewinds.
KEPT: Final = 3
#: Compactions remembered of one thread.
OBSERVED: Final = 8
#: The format of the files; another one is ignored.
FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A summary of a history that was sent. ``chain`` is the running linking hash over its ``messages`` messages.

    ``tokens`` is the context that it stands for, ``made`` Unix seconds, ``seconds`` how long it took, ``cache_share``
    the part of its prompt that the prompt cache read (0..1), ``cost`` the tokens that it used, ``spent`` its usage as
    the API spells it.
    """

    id: str
    chain: bytes
    messages: int
    exchange: str
    model: str
    account: str
    analysis: str
    summary: str
    tokens: int
    made: float
    seconds: float
    cache_share: float = 0.0
    cost: int = 0
    answered: str = ""  # the model that answered the request it stands on, by its own name
    spent: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "chain": self.chain.hex()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Checkpoint:
        return cls(**{**value, "chain": bytes.fromhex(value["chain"])})


@dataclass(frozen=True, slots=True)
class Served:
    """A swap that the client was given. ``chain`` is that of its compact request, ``mark`` bytes of the answer as they
    would stand in its next request, ``messages`` how many its history had, ``exchange`` the compact request's id."""

    checkpoint: str
    chain: bytes
    mark: bytes
    text: str
    messages: int
    at: float
    record: dict[str, Any] = field(default_factory=dict)
    exchange: str = ""

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "chain": self.chain.hex(), "mark": self.mark.decode("utf-8", "replace")}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Served:
        return cls(**{**value, "chain": bytes.fromhex(value["chain"]), "mark": value["mark"].encode()})


@dataclass(slots=True, eq=False)
class Running:
    """A checkpoint on its way. ``done`` is set when it ended, however."""

    chain: bytes
    messages: int
    tokens: int
    scope: trio.CancelScope
    done: trio.Event


@dataclass(slots=True, eq=False)
class Buffer:
    """The buffer of one thread."""

    conversation: str
    thread: str
    phase: Phase = Phase.IDLE
    checkpoints: list[Checkpoint] = field(default_factory=list)
    served: Served | None = None
    observed: list[Observation] = field(default_factory=list)
    client: Client | None = None
    tokens: int = 0  # context of the last answer
    near: bool = False  # that is past the swap threshold
    measured: float = 0.0
    growth: float = 0.0  # tokens a second, smoothed
    summary_seconds: float = 0.0
    last_seen: float = 0.0
    full: str = ""  # the newest exchange that carried its whole history
    native: str = ""  # the exchange in which the model makes the client's summary right now
    at_wall: int = 0  # the context (tokens) when it was asked for
    asked: bool = False  # it made one; not yet known whether the client took it
    spoke: str = ""  # the newest exchange in which the client spoke
    took: str = ""  # the newest of those that began from a summary
    precomputed: bool = False  # the client asked for that summary ahead of time and has it still
    running: Running | None = None  # not kept over a restart
    tried: tuple[bytes, str] = (b"", "")  # the history and account of the last checkpoint that was begun
    place: tuple[int, str] = (0, "")  # the branch and the model for which a checkpoint is known to fit
    basis: int = 0  # the context (tokens) that the fitting checkpoint stands for
    bytes_per_token: float = 3.5  # as measured at the last checkpoint
    swaps: int = 0

    @property
    def newest(self) -> Checkpoint | None:
        """The newest checkpoint."""
        return self.checkpoints[-1] if self.checkpoints else None

    def measure(self, tokens: int, now: float) -> None:
        """Take the context of an answer."""
        if self.measured and now > self.measured and tokens > self.tokens:
            rate = (tokens - self.tokens) / (now - self.measured)
            self.growth = rate if not self.growth else 0.7 * self.growth + 0.3 * rate
        self.tokens, self.measured = tokens, now

    def add(self, checkpoint: Checkpoint) -> None:
        """Keep a checkpoint, and of the older ones the newest few."""
        self.checkpoints = [*self.checkpoints, checkpoint][-KEPT:]
        self.summary_seconds = (
            checkpoint.seconds if not self.summary_seconds else 0.5 * (self.summary_seconds + checkpoint.seconds)
        )

    def fitting(self, chains: Sequence[bytes], model: str = "") -> tuple[Checkpoint, int] | None:
        """The newest checkpoint whose chain lies among ``chains`` (one for each message), and how many messages it
        stands for there; None if no checkpoint (of this model, if one is named) fits this history."""
        for checkpoint in reversed(self.checkpoints):
            if model and checkpoint.model != model:
                continue
            for index in range(len(chains) - 1, -1, -1):
                if chains[index] == checkpoint.chain:
                    return checkpoint, index + 1
        return None

    def to_json(self) -> dict[str, Any]:
        """What is kept over a restart."""
        stable = Phase.WAL_ACTIVE if self.checkpoints else Phase.IDLE
        waits = self.phase in (Phase.CHECKPOINT_PENDING, Phase.CHECKPOINTING)
        return {
            "thread": self.thread,
            "phase": stable if waits else self.phase,
            "checkpoints": [checkpoint.to_json() for checkpoint in self.checkpoints],
            "served": self.served.to_json() if self.served else None,
            "observed": [asdict(item) for item in self.observed],
            "tokens": self.tokens,
            "summary_seconds": self.summary_seconds,
            "last_seen": self.last_seen,
            "full": self.full,
            "bytes_per_token": self.bytes_per_token,
            "swaps": self.swaps,
        }

    @classmethod
    def from_json(cls, conversation: str, value: dict[str, Any]) -> Buffer:
        """What was kept. Raises whatever a bad file makes it raise."""
        return cls(
            conversation,
            value["thread"],
            Phase(value["phase"]),
            [Checkpoint.from_json(item) for item in value["checkpoints"]],
            Served.from_json(value["served"]) if value["served"] else None,
            [Observation(**item) for item in value["observed"]],
            tokens=value["tokens"],
            summary_seconds=value["summary_seconds"],
            last_seen=value["last_seen"],
            full=value["full"],
            bytes_per_token=value["bytes_per_token"],
            swaps=value["swaps"],
        )


class Buffers:
    """All buffers of this process. ``moved`` is told of every change of a phase."""

    def __init__(self, moved: Callable[[Buffer, Phase, Event], object]) -> None:
        self._buffers: dict[tuple[str, str], Buffer] = {}
        self._moved = moved

    def __len__(self) -> int:
        return len(self._buffers)

    def __iter__(self) -> Iterator[Buffer]:
        return iter(list(self._buffers.values()))

    def find(self, conversation: str, thread: str) -> Buffer | None:
        """The buffer of a thread, None if there is none yet."""
        return self._buffers.get((conversation, thread))

    def get(self, conversation: str, thread: str) -> Buffer:
        """The buffer of a thread, made at first use."""
        key = conversation, thread
        buffer = self._buffers.get(key)
        if buffer is None:
            buffer = self._buffers[key] = Buffer(conversation, thread)
        return buffer

    def of(self, conversation: str) -> list[Buffer]:
        """Every buffer of one conversation."""
        return [buffer for buffer in self._buffers.values() if buffer.conversation == conversation]

    def move(self, buffer: Buffer, event: Event) -> None:
        """Let something happen to a buffer. Raises IllegalTransition."""
        before = buffer.phase
        buffer.phase = next_phase(before, event)
        if buffer.phase is not before:
            self._moved(buffer, before, event)

    def put(self, buffer: Buffer) -> None:
        """Take a buffer that was kept on disk, unless there is a newer one."""
        self._buffers.setdefault((buffer.conversation, buffer.thread), buffer)

    def forget(self, prefix: str) -> list[str]:
        """Forget conversations whose id begins with ``prefix``; their ids. What runs for them is cancelled."""
        gone = {buffer.conversation for buffer in self if buffer.conversation.startswith(prefix)}
        for buffer in self:
            if buffer.conversation in gone:
                self.drop(buffer)
        return sorted(gone)

    def halt(self, buffer: Buffer) -> None:
        """End what runs for a buffer; nobody wants its summary any more."""
        running, buffer.running = buffer.running, None
        if running is not None:
            running.scope.cancel()
            running.done.set()

    def drop(self, buffer: Buffer) -> None:
        """Forget one buffer."""
        self._buffers.pop((buffer.conversation, buffer.thread), None)
        self.halt(buffer)
        if buffer.phase is not Phase.IDLE:
            self.move(buffer, Event.RESET)
        buffer.checkpoints, buffer.served, buffer.tried = [], None, (b"", "")

    def expire(self, now: float, ttl: float) -> list[str]:
        """Forget what was silent for longer than ``ttl`` seconds; the ids of conversations of which nothing is left."""
        old = [buffer for buffer in self if now - buffer.last_seen > ttl and buffer.running is None]
        for buffer in old:
            self.drop(buffer)
        return [buffer.conversation for buffer in old if not self.of(buffer.conversation)]


class Shelf:
    """The files of buffers in ``folder``. Its methods block: call them in a thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _file(self, conversation: str) -> Path:
        return self._folder / (hashlib.sha256(conversation.encode()).hexdigest()[:32] + ".json")

    def save(self, conversation: str, kept: list[dict[str, Any]], at: float) -> None:
        """Keep the buffers of a conversation, or remove the file if there are none. Raises OSError."""
        file = self._file(conversation)
        if not kept:
            file.unlink(missing_ok=True)
            return
        write_document(file, {"format": FORMAT, "conversation": conversation, "saved": at, "buffers": kept})

    def load(self, now: float, ttl: float) -> list[Buffer]:
        """What was kept and is not too old; files that are too old or cannot be read are removed."""
        found: list[Buffer] = []
        with suppress(OSError):
            for file in sorted(self._folder.iterdir()):
                try:
                    document = json.loads(file.read_text("utf-8", "surrogatepass"))
                    if document["format"] != FORMAT or not 0 <= now - document["saved"] <= ttl:
                        raise ValueError
                    found += [Buffer.from_json(document["conversation"], item) for item in document["buffers"]]
                except (OSError, ValueError, KeyError, TypeError, AttributeError):
                    with suppress(OSError):
                        file.unlink()
        return found

    def remove(self, conversations: Sequence[str]) -> None:
        """Remove the files of conversations."""
        for conversation in conversations:
            with suppress(OSError):
                self._file(conversation).unlink(missing_ok=True)
