"""``dbproxy log export / verify / prune``: what writes the captured elsewhere, checks it, or makes it smaller.

Owns the forms of an export and the words of the two others. An export is private: its file is 0600.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

from dbproxy.cli.captured import database, filters, open_reader
from dbproxy.cli.common import print_json, say
from dbproxy.cli.options import UsageError
from dbproxy.cli.tables import clean, size, stamp
from dbproxy.errors import DbproxyError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator
    from typing import BinaryIO

    from dbproxy.store.reader import Reader
    from dbproxy.store.rows import ExchangeRow

_SHOWN = 20  # differences that are listed


# ---- export


def export(args: argparse.Namespace) -> int:
    """JSON lines, or transcripts in Markdown."""
    with open_reader(args) as reader:
        chosen = _chosen(args, reader)
        redact = _redactor(args.redact)
        with _output(args.output) as out:
            if args.format == "jsonl":
                for row in chosen:
                    out.write(_line(reader, row, redact))
            else:
                _transcripts(args, reader, chosen, out, redact)
    if args.output:
        say(f"written: {args.output}")
    return 0


def _chosen(args: argparse.Namespace, reader: Reader) -> Iterator[ExchangeRow]:
    """The exchanges meant, oldest first. Checked at once, read as they are written."""
    if args.exchange:
        given = [
            name for name in ("conversation", "kind", "model", "outcome", "since") if getattr(args, name) is not None
        ]
        if given:
            raise UsageError(f"--{given[0]} and an exchange cannot be given together")
        return iter([reader.exchange(text).exchange for text in args.exchange])
    known = filters(args, reader)
    if args.format == "markdown" and args.conversation is None:
        raise UsageError("a transcript is of one exchange or conversation: give an id, or --conversation ID")
    return known.oldest_first(reader)


def _redactor(wanted: bool) -> Callable[[bytes], bytes]:
    """What takes credentials out of JSON text. A gap holds no character that JSON would escape."""
    if not wanted:
        return lambda data: data
    from dbproxy.model.redact import redact_text

    return lambda data: redact_text(data.decode("utf-8", "surrogateescape"))[0].encode("utf-8", "surrogateescape")


@contextlib.contextmanager
def _output(name: str | None) -> Iterator[BinaryIO]:
    if name is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    try:
        handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o600)
        with open(handle, "wb") as file:
            yield file
    except OSError as error:
        raise DbproxyError(f"cannot write {name}: {error.strerror or error}") from None


def _line(reader: Reader, row: ExchangeRow, redact: Callable[[bytes], bytes]) -> bytes:
    """One exchange as a line: its facts, and the JSON of request and answer as they are kept."""
    import json

    from dbproxy.store.rows import as_json

    facts = json.dumps(as_json(row)).encode()
    request = _value(reader.request_body(row.id), redact)
    message = _value(reader.response_message(row.id), redact)
    return b'{"exchange": %s, "request": %s, "response": %s}\n' % (facts, request, message)


def _value(raw: bytes | None, redact: Callable[[bytes], bytes]) -> bytes:
    """``raw`` as a JSON value on one line: itself where it is JSON, else as text in Base64."""
    import base64
    import json

    if raw is None:
        return b"null"
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return json.dumps({"base64": base64.b64encode(raw).decode()}).encode()
    if b"\n" in raw or b"\r" in raw:  # only between values: within strings they are escaped
        raw = json.dumps(value, separators=(",", ":")).encode()
    return redact(raw)


def _transcripts(
    args: argparse.Namespace,
    reader: Reader,
    chosen: Iterator[ExchangeRow],
    out: BinaryIO,
    redact: Callable[[bytes], bytes],
) -> None:
    """Given exchanges one by one; a conversation as the last turn of each of its branches."""
    rows = list(chosen)
    if not args.exchange:
        last = {
            (row.thread, row.branch): row for row in rows if row.kind in _SPEAKING and row.outcome in ("ok", "local")
        }
        rows = sorted(last.values(), key=lambda row: (row.thread != "main", row.id))
    if not rows:
        raise DbproxyError("there is nothing to write", hint="`dbproxy log list` shows what was captured")
    for number, row in enumerate(rows):
        out.write((b"\n" if number else b"") + redact(_transcript(reader, row).encode("utf-8", "replace")))


_SPEAKING = frozenset({"main", "subagent", "nested", "after-compaction"})


def _transcript(reader: Reader, row: ExchangeRow) -> str:
    from dbproxy.app.transcript import markdown

    detail = reader.exchange(row.id)
    who = "main" if row.thread in ("", "main") else detail.agent.label if detail.agent else row.thread
    title = f"Conversation {row.conversation}: {who}" if row.conversation else f"Exchange {row.id}"
    facts = [("exchange", row.id), ("time", stamp(row.started, 0.0)), ("model", row.model or row.model_asked)]
    facts += [("project", row.project), ("branch", str(row.branch) if row.branch > 1 else "")]
    return markdown(title, [(name, value) for name, value in facts if value], reader.history(row.id))


# ---- verify


def verify(args: argparse.Namespace) -> int:
    """0 if every body is what was sent, 1 otherwise."""
    found: Counter[str] = Counter()
    wrong = []
    lively = sys.stderr.isatty() and not args.json
    with open_reader(args) as reader:
        for check in reader.verify():
            found[check.result] += 1
            if check.result == "wrong":
                wrong.append(check)
            if lively and found.total() % 500 == 0:
                sys.stderr.write(f"\r{found.total()} checked")
        whole = reader.size()
    if lively and found.total() >= 500:
        sys.stderr.write("\r\x1b[K")
    if args.json:
        facts: dict[str, Any] = {name: found[name] for name in ("exact", "inexact", "absent", "wrong")}
        facts["differences"] = [{"exchange": check.exchange, "detail": check.detail} for check in wrong]
        facts["file_bytes"], facts["body_bytes"] = whole.file_bytes, whole.body_bytes
        print_json(facts)
        return 1 if wrong else 0
    print(f"{found['exact']} request bodies rebuilt byte for byte as they were sent")
    if found["inexact"]:
        print(f"{found['inexact']} were changed by a redaction before they were written")
    if found["absent"]:
        print(f"{found['absent']} exchanges without a body")
    print(f"{size(whole.body_bytes)} of bodies in a file of {size(whole.file_bytes)}")
    for check in wrong[:_SHOWN]:
        print(f"WRONG {check.exchange}: {clean(check.detail)}")
    if len(wrong) > _SHOWN:
        print(f"WRONG {len(wrong) - _SHOWN} more; --json lists all")
    return 1 if wrong else 0


# ---- prune


def prune(args: argparse.Namespace) -> int:
    """Say what was removed, or would be."""
    if args.older_than is None and args.max_size is None:
        raise UsageError("say what may go: --older-than 30d, --max-size 500MB, or both")
    from dbproxy.store.retention import prune as remove
    from dbproxy.store.rows import as_json

    with open_reader(args):
        pass  # a file that is missing, newer or damaged is said so, and not touched
    removed = remove(
        database(args),
        older_than=args.older_than,
        max_bytes=args.max_size,
        keep_facts=not args.facts,
        dry_run=args.dry_run,
    )
    if args.json:
        print_json(as_json(removed))
        return 0
    print(removed)
    return 0
