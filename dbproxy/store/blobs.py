"""Content kept once: compression, blobs, lists of blobs, and histories as chains of nodes.

Owns the format of ``blob``, ``node``, ``list``, ``dictionary`` and of packed columns, both ways. Works on a connection
that its caller opened and inside the caller's transaction. Imports base, model and sqlite3 only. Invariants: what was
put is found again byte for byte; a blob with a base never serves as one; nothing here remembers a row id that it does
not check before use, since another process may have swept the row.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import sqlite3
from array import array
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec
import zstandard

from dbproxy.model import parts as bodies
from dbproxy.model.parts import Parts, Piece

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

LEVEL: Final = 3  # level 1 does not find the long matches (performance facts 10)
#: A base above this size costs more to load than it saves.
LARGEST_BASE: Final = 1024 * 1024
#: Canonical bytes written with one dictionary before the next is trained: soon after the first words, then rarely.
TRAIN_AFTER: Final = (192 * 1024, 4 * 1024 * 1024, 64 * 1024 * 1024, 1024 * 1024 * 1024)
DICTIONARY_BYTES: Final = 32 * 1024
SAMPLE_BYTES: Final = 2 * 1024 * 1024
#: Messages whose nodes are remembered, over all histories together.
REMEMBERED: Final = 50_000
#: New nodes after which a writer may be asked to let others in.
BREATH: Final = 256


class Codec:
    """Compresses and restores with the dictionaries of one file. For one connection, in one thread."""

    def __init__(self, connection: sqlite3.Connection, level: int = LEVEL) -> None:
        self._connection = connection
        self._level = level
        self._plain = zstandard.ZstdCompressor(level=level, write_dict_id=False)
        self._compressor = self._plain
        self._decompressors: dict[int | None, zstandard.ZstdDecompressor] = {None: zstandard.ZstdDecompressor()}
        #: The dictionary that new content is compressed with.
        self.current: int | None = None

    def use_newest(self) -> None:
        """Compress with the newest dictionary of the file from now on."""
        row = self._connection.execute("SELECT id, data FROM dictionary ORDER BY id DESC LIMIT 1").fetchone()
        number = None if row is None else int(row[0])
        if number == self.current:
            return
        self.current = number
        self._compressor = self._plain
        if row is not None:
            try:
                dictionary = _dictionary(row[1])
                dictionary.precompute_compress(level=self._level)
            except zstandard.ZstdError as error:
                raise sqlite3.DatabaseError(f"the dictionary {number} of the file is damaged") from error
            self._compressor = zstandard.ZstdCompressor(dict_data=dictionary, write_dict_id=False)

    def compress(self, data: bytes) -> bytes:
        """A zstandard frame of ``data``, to be restored with ``current``."""
        return self._compressor.compress(data)

    def compress_with(self, data: bytes, base: bytes) -> bytes:
        """A frame of ``data`` that names what it shares with ``base``."""
        raw = zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
        return zstandard.ZstdCompressor(level=self._level, dict_data=raw, write_dict_id=False).compress(data)

    def restore(self, frame: bytes, dictionary: int | None, base: bytes | None = None) -> bytes:
        """What a frame holds. Raises ``zstandard.ZstdError`` if it is damaged, KeyError without its dictionary."""
        if base is not None:
            raw = zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
            return zstandard.ZstdDecompressor(dict_data=raw).decompress(frame)
        found = self._decompressors.get(dictionary)
        if found is None:
            row = self._connection.execute("SELECT data FROM dictionary WHERE id = ?", (dictionary,)).fetchone()
            if row is None:
                raise KeyError(f"dictionary {dictionary} is not in the file")
            found = self._decompressors[dictionary] = zstandard.ZstdDecompressor(dict_data=_dictionary(row[0]))
        return found.decompress(frame)

    def pack(self, value: object) -> bytes:
        """JSON of ``value`` for a packed column."""
        return _number(self.current or 0) + self.compress(to_json(value))

    def unpack(self, packed: bytes | None) -> Any:
        """The value of a packed column; None for NULL."""
        return None if packed is None else json.loads(self.unpack_bytes(packed))

    def unpack_bytes(self, packed: bytes) -> bytes:
        """The JSON of a packed column."""
        number, at = _read_number(packed)
        return self.restore(packed[at:], number or None)


def to_json(value: object) -> bytes:
    """JSON as text that SQLite and everybody reads; lone surrogates stay as escapes."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()


def _dictionary(frame: bytes) -> zstandard.ZstdCompressionDict:
    return zstandard.ZstdCompressionDict(zstandard.ZstdDecompressor().decompress(frame))


def _number(value: int) -> bytes:
    """Seven bits a byte, lowest first, the eighth says that more follow."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_number(data: bytes) -> tuple[int, int]:
    value = shift = at = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def digest(data: bytes) -> bytes:
    """What a blob is found by."""
    return hashlib.sha256(data).digest()[:16]


@dataclass(frozen=True, slots=True)
class Put:
    """A blob in the file: ``fresh`` if it was not there before, ``delta`` if next to nothing of it was new."""

    id: int
    fresh: bool
    delta: bool = False


class BlobWriter:
    """Puts content into the file, inside the transaction of whoever calls."""

    def __init__(self, connection: sqlite3.Connection, codec: Codec) -> None:
        self._connection = connection
        self._codec = codec
        self._reader = BlobReader(connection, codec)
        self._histories: OrderedDict[int, _Known] = OrderedDict()  # by tip
        self._remembered = 0
        self._since_training = 0

    def forget(self) -> None:
        """Drop what was remembered of nodes: after a transaction that was rolled back."""
        self._histories.clear()
        self._remembered = 0

    def get(self, number: int) -> bytes:
        """The content of a blob, as ``BlobReader.blob``."""
        return self._reader.blob(number)

    def put(self, data: bytes, key: bytes | None = None, *, base: int | None = None) -> Put:
        """Keep ``data`` once. ``key`` is its digest where it is known, ``base`` a blob that it resembles."""
        key = key or digest(data)
        row = self._connection.execute("SELECT id FROM blob WHERE digest = ?", (key,)).fetchone()
        if row is not None:
            return Put(row[0], fresh=False)
        dictionary = self._codec.current
        frame, base = self._frame(data, base)
        if base is not None:
            dictionary = None
        inserted = self._connection.execute(
            "INSERT INTO blob(digest, size, dictionary, base, data) VALUES (?, ?, ?, ?, ?)",
            (key, len(data), dictionary, base, frame),
        )
        self._since_training += len(data)
        number = inserted.lastrowid
        assert number is not None
        return Put(number, fresh=True, delta=base is not None and len(frame) < 64 + len(data) // 8)

    def _frame(self, data: bytes, base: int | None) -> tuple[bytes, int | None]:
        """The smaller one of the frames with the base and with the dictionary."""
        if base is not None:
            try:
                found = self._reader.base(base)
            except (KeyError, zstandard.ZstdError):
                found = None  # damaged or swept: told by verify; what is new does without it
            if found is not None and len(found[1]) <= LARGEST_BASE:
                base, content = found
                frame = self._codec.compress_with(data, content)
                if len(frame) < 32 + len(data) // 8:
                    return frame, base
                plain = self._codec.compress(data)
                return (frame, base) if len(frame) < len(plain) else (plain, None)
        return self._codec.compress(data), None

    def put_list(self, pieces: Sequence[Piece]) -> int | None:
        """Keep a run of system blocks or tools; None for an empty one."""
        if not pieces:
            return None
        key = hashlib.sha256(b"".join(_keys(pieces))).digest()[:16]
        row = self._connection.execute("SELECT id FROM list WHERE digest = ?", (key,)).fetchone()
        if row is not None:
            return int(row[0])
        items = [
            (self.put(p.canonical, p.digest).id, None if p.patch is None else base64.b64encode(p.patch).decode())
            for p in pieces
        ]
        inserted = self._connection.execute("INSERT INTO list(digest, items) VALUES (?, ?)", (key, to_json(items)))
        return inserted.lastrowid

    def put_history(
        self,
        messages: Sequence[Piece],
        *,
        base: int | None = None,
        fresh: Callable[[Piece, Put], None] | None = None,
        breathe: Callable[[], bool] | None = None,
    ) -> int | None:
        """Keep a request's messages; the node of the last one, None if there are none.

        ``base`` is the answer that the first new message may repeat. ``fresh`` is told of new blobs. ``breathe`` is
        called now and then, may commit and begin again, and says whether it did.
        """
        keys = b"".join(_keys(messages))
        depth, node, trail = self._longest_known(keys)
        nodes = trail.nodes[:depth] if trail is not None else array("q")
        chain = bytearray(trail.hashes[: depth * 16]) if trail is not None else bytearray()
        above = bytes(chain[-16:])
        while depth < len(messages):
            piece = messages[depth]
            above = _node_hash(above, piece)
            row = self._connection.execute("SELECT id FROM node WHERE hash = ?", (above,)).fetchone()
            if row is None:
                speaks = base is not None and piece.canonical.startswith(_ASSISTANT)
                put = self.put(piece.canonical, piece.digest, base=base if speaks else None)
                if put.fresh and fresh is not None:
                    fresh(piece, put)
                inserted = self._connection.execute(
                    "INSERT INTO node(hash, parent, depth, blob, patch) VALUES (?, ?, ?, ?, ?)",
                    (above, node, depth + 1, put.id, piece.patch),
                )
                node = inserted.lastrowid
            else:
                node = row[0]
            assert node is not None
            nodes.append(node)
            chain += above
            depth += 1
            if depth % BREATH == 0 and breathe is not None and breathe() and not self._stands(node, above):
                # Somebody swept the half-made history in between: once more, now in one go.
                self.forget()
                return self.put_history(messages, base=base, fresh=fresh)
        if node is not None:
            self._remember(node, _Known(keys, nodes, bytes(chain)), trail)
        return node

    def _longest_known(self, keys: bytes) -> tuple[int, int | None, _Known | None]:
        """How many of the messages are those of a remembered history that still stands, and the node of the last."""
        best, found = 0, None
        for known in self._histories.values():
            depth = _common(known.keys, keys)
            if depth > best:
                best, found = depth, known
        if found is not None:
            node, above = found.nodes[best - 1], found.hashes[best * 16 - 16 : best * 16]
            if self._stands(node, above):
                return best, node, found
            self.forget()
        return 0, None, None

    def _stands(self, node: int, above: bytes) -> bool:
        """A node with this hash stands only while all before it do."""
        row = self._connection.execute("SELECT hash FROM node WHERE id = ?", (node,)).fetchone()
        return row is not None and row[0] == above

    def _remember(self, tip: int, known: _Known, grown_from: _Known | None) -> None:
        old = self._histories.pop(tip, None)
        if old is not None:
            self._remembered -= len(old.nodes)
        if grown_from is not None and grown_from.nodes:
            end = grown_from.nodes[-1]
            # The last messages carry marks that move: a history that differs in its last few grew into this one.
            if _common(grown_from.keys, known.keys) >= len(grown_from.nodes) - _MARKED and end in self._histories:
                self._remembered -= len(self._histories.pop(end).nodes)
        self._histories[tip] = known
        self._remembered += len(known.nodes)
        while (self._remembered > REMEMBERED and len(self._histories) > 1) or len(self._histories) > _HISTORIES:
            self._remembered -= len(self._histories.popitem(last=False)[1].nodes)

    def wants_training(self) -> bool:
        """Was enough written since the last dictionary to learn from?"""
        made = (self._codec.current or 1) - 1
        return made < len(TRAIN_AFTER) and self._since_training >= TRAIN_AFTER[made]

    def samples(self) -> list[bytes]:
        """The newest contents of the file, to learn from, packed columns too: they are many and all alike."""
        found: list[bytes] = []
        rows = self._connection.execute(
            "SELECT request_headers, response_headers, evidence, route FROM exchange ORDER BY id DESC LIMIT 64"
        ).fetchall()
        for row in rows:
            with contextlib.suppress(KeyError, IndexError, zstandard.ZstdError):
                found += [self._codec.unpack_bytes(packed) for packed in row if packed]
        left = SAMPLE_BYTES
        rows = self._connection.execute("SELECT id, size FROM blob ORDER BY id DESC LIMIT 2000").fetchall()
        for number, size in rows:
            if 32 <= size <= 64 * 1024 and left > 0:
                left -= size
                with contextlib.suppress(KeyError, zstandard.ZstdError):
                    found.append(self._reader.blob(number))
        return found

    def add_dictionary(self, data: bytes, now: float) -> None:
        """Compress with ``data`` from now on. Two processes may train at once: the later one wins, both are kept."""
        frame = zstandard.ZstdCompressor(level=19).compress(data)
        self._connection.execute("INSERT INTO dictionary(made, data) VALUES (?, ?)", (now, frame))
        self._since_training = 0

    def trained(self) -> None:
        """Whatever came of a training: do not try again before as much again was written."""
        self._since_training = 0


def train(samples: Sequence[bytes]) -> bytes | None:
    """A dictionary of what ``samples`` have in common; None if that is too little. Some 0.1 s without the GIL."""
    if len(samples) < 16:
        return None
    try:
        return zstandard.train_dictionary(DICTIONARY_BYTES, list(samples)).as_bytes()
    except zstandard.ZstdError:
        return None


_ASSISTANT: Final = b'{"role":"assistant"'
_MARKED: Final = 8
_HISTORIES: Final = 256


@dataclass(frozen=True, slots=True)
class _Known:
    """A history whose nodes are known: 16 bytes a message of what it is and of its node's hash, and the node."""

    keys: bytes
    nodes: array[int]
    hashes: bytes


def _keys(pieces: Sequence[Piece]) -> Iterator[bytes]:
    """16 bytes for each piece as it was sent."""
    return (p.digest if p.patch is None else hashlib.sha256(p.digest + p.patch).digest()[:16] for p in pieces)


def _node_hash(parent: bytes, piece: Piece) -> bytes:
    patch = b"\0" if piece.patch is None else b"\1" + piece.patch
    return hashlib.sha256(parent + piece.digest + patch).digest()[:16]


def _common(one: bytes, other: bytes) -> int:
    """How many leading keys of 16 bytes are the same. By halving, since comparing is C and counting is not."""
    low, high = 0, min(len(one), len(other)) // 16
    if one[:16] != other[:16]:
        return 0
    while low < high:
        middle = (low + high + 1) // 2
        if one[: middle * 16] == other[: middle * 16]:
            low = middle
        else:
            high = middle - 1
    return low


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """One message of a history as it was sent, and where it is kept."""

    node: int
    blob: int
    canonical: bytes
    patch: bytes | None

    @property
    def exact(self) -> bytes:
        """The bytes that were sent."""
        return bodies.apply(self.canonical, self.patch)


class BlobReader:
    """Takes content out of the file. Raises KeyError for what is missing, ``zstandard.ZstdError`` for damage."""

    def __init__(self, connection: sqlite3.Connection, codec: Codec | None = None) -> None:
        self._connection = connection
        self.codec = codec or Codec(connection)

    def blob(self, number: int) -> bytes:
        """The content of a blob."""
        row = self._connection.execute(
            "SELECT b.dictionary, b.data, base.dictionary, base.data FROM blob b"
            " LEFT JOIN blob base ON base.id = b.base WHERE b.id = ?",
            (number,),
        ).fetchone()
        if row is None:
            raise KeyError(f"blob {number} is not in the file")
        return self._restore(*row)

    def base(self, number: int) -> tuple[int, bytes] | None:
        """The blob that others can be told from: ``number`` itself or its base. None if it is gone or large."""
        row = self._connection.execute(
            "SELECT coalesce(base.id, b.id), coalesce(base.size, b.size) FROM blob b"
            " LEFT JOIN blob base ON base.id = b.base WHERE b.id = ?",
            (number,),
        ).fetchone()
        if row is None or row[1] > LARGEST_BASE:
            return None
        return row[0], self.blob(row[0])

    def _restore(
        self, dictionary: int | None, frame: bytes, base_dictionary: int | None, base_frame: bytes | None
    ) -> bytes:
        base = None if base_frame is None else self.codec.restore(base_frame, base_dictionary)
        return self.codec.restore(frame, dictionary, base)

    def history(self, tip: int | None) -> Iterator[StoredMessage]:
        """The messages up to a node, first one first."""
        if tip is None:
            return
        rows = self._connection.execute(_HISTORY, (tip,)).fetchall()
        rows.reverse()
        if rows and rows[0][1] != 1:
            raise KeyError(f"a message before node {rows[0][0]} is not in the file")
        for node, _, patch, blob, *content in rows:
            yield StoredMessage(node, blob, self._restore(*content), patch)

    def pieces(self, number: int | None) -> tuple[Piece, ...]:
        """The items of a list."""
        if number is None:
            return ()
        row = self._connection.execute("SELECT items FROM list WHERE id = ?", (number,)).fetchone()
        if row is None:
            raise KeyError(f"list {number} is not in the file")
        found = []
        for blob, patch in json.loads(row[0]):
            canonical = self.blob(blob)
            found.append(Piece(canonical, b"", None if patch is None else base64.b64decode(patch)))
        return tuple(found)

    def body(
        self, kind: str, template: int | None, system_list: int | None, tool_list: int | None, tip: int | None
    ) -> bytes | None:
        """A request's body as it was sent; None if its ``body_kind`` keeps none."""
        if kind not in ("raw", "parts") or template is None:
            return None
        around = self.blob(template)
        if kind == "raw":
            return around
        messages = tuple(Piece(m.canonical, b"", m.patch) for m in self.history(tip))
        return bodies.put_together(Parts(around, self.pieces(system_list), self.pieces(tool_list), messages))

    def stream(self, number: int) -> list[tuple[float, bytes]]:
        """The pieces of an answer's body: milliseconds after the head, and bytes."""
        return unpack_stream(self.blob(number))


_HISTORY: Final = """
WITH RECURSIVE chain(id, parent, depth, blob, patch) AS (
  SELECT id, parent, depth, blob, patch FROM node WHERE id = ?
  UNION ALL SELECT n.id, n.parent, n.depth, n.blob, n.patch FROM chain c JOIN node n ON n.id = c.parent
)
SELECT c.id, c.depth, c.patch, c.blob, b.dictionary, b.data, base.dictionary, base.data
FROM chain c JOIN blob b ON b.id = c.blob LEFT JOIN blob base ON base.id = b.base
"""


def pack_stream(pieces: Sequence[tuple[float, bytes]]) -> bytes:
    """One blob of pieces and their times: a line of JSON, then the bytes."""
    index = [[round(at, 2), len(data)] for at, data in pieces]
    return to_json(index) + b"\n" + b"".join(data for _, data in pieces)


def unpack_stream(blob: bytes) -> list[tuple[float, bytes]]:
    """What ``pack_stream`` packed."""
    line, _, data = blob.partition(b"\n")
    found = []
    at = 0
    for when, length in json.loads(line):
        found.append((float(when), data[at : at + length]))
        at += length
    return found
