"""What the double buffer costs and how quick it is, measured in a process of its own.

    python swapping.py swap|beside|idle|decide FOLDER

Prints one JSON object. A real proxy with the plugin, the fake API and the clients share one event loop here, so that
the times are upper bounds.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

import trio  # noqa: E402
from buffertalk import FULL, OVER, Model, World, open_world  # noqa: E402
from dbproxy_double_buffer.buffers import Buffer, Checkpoint  # noqa: E402
from dbproxy_double_buffer.prompt import OWN_INSTRUCTION, checkpoint_body, checkpoint_head  # noqa: E402
from dbproxy_double_buffer.trigger import Answer, State, Thresholds, decide  # noqa: E402
from dbproxy_double_buffer.wall import Client, wall  # noqa: E402

from dbproxy.api import Fields, RequestHead  # noqa: E402
from dbproxy.testing.origin import say  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = 900_000
SWAPS, ORDINARY, IDLE, DECISIONS = 25, 300, 1000, 20_000


async def exchange(stream: trio.SocketStream, request: bytes) -> tuple[float, float, bytes]:
    """Milliseconds from the request's last byte to the answer's first and last one, and the answer."""
    await stream.send_all(request)
    began = time.perf_counter()
    got = await stream.receive_some()
    first = time.perf_counter()
    head, _, body = got.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    length = next(int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length"))
    while len(body) < length:
        body += await stream.receive_some()
    return (first - began) * 1e3, (time.perf_counter() - began) * 1e3, body


def raw(head: RequestHead, body: bytes) -> bytes:
    fields = head.fields.without(frozenset({b"content-length"})).plus(b"Content-Length", b"%d" % len(body))
    return b"POST /v1/messages?beta=true HTTP/1.1\r\n" + b"\r\n".join(fields.lines) + b"\r\n\r\n" + body


def last_turn(world: World) -> tuple[RequestHead, bytes]:
    """The newest turn as the client sent it."""
    request = next(r for r in reversed(world.origin.requests) if r.is_messages and r.role == "main")
    return RequestHead(b"POST", b"/v1/messages?beta=true", b"HTTP/1.1", Fields.of(request.fields)), request.body


async def swap(folder: Path) -> dict[str, Any]:
    """Compact requests of 900 KB answered from a checkpoint that is ready."""
    async with open_world(folder) as world:
        talk = world.talk()
        await world.turn(talk, 10_000, "word " * (SIZE // 5))
        await world.checkpointed(talk)
        for number in range(6):
            await world.turn(talk, FULL - 30_000 + number, f"another {number}: " + "more words " * 400)
        head, live = last_turn(world)
        body = checkpoint_body(live, OWN_INSTRUCTION)
        assert body is not None
        request = raw(checkpoint_head(head), body)
        before = len(world.origin.requests)
        stream = await world.rig.plain()
        taken = [await exchange(stream, request) for _ in range(SWAPS)]
        assert all(b"<summary>" in answer for _, _, answer in taken)
        assert len(world.origin.requests) == before, "a compact request reached the API"
    return {
        "bytes": len(body),
        "first": statistics.median(first for first, _, _ in taken),
        "whole": statistics.median(whole for _, whole, _ in taken),
    }


async def beside(folder: Path) -> dict[str, Any]:
    """First bytes of ordinary answers while a checkpoint runs, and while none does."""
    model = Model()
    model.summaries = [say("never", head_delay=60.0)]
    async with open_world(folder, model=model) as world:
        talk, other = world.talk(), world.talk()
        await world.turn(other, 1_000)
        head, body = last_turn(world)
        request = raw(head, body)
        stream = await world.rig.plain()

        async def measure(count: int) -> list[float]:
            found = []
            for _ in range(count):
                await stream.send_all(request)
                began = time.perf_counter()
                got = await stream.receive_some()
                found.append((time.perf_counter() - began) * 1e3)
                while b"0\r\n\r\n" not in got[-5:]:
                    got = got[-5:] + await stream.receive_some()
            return found

        await measure(50)
        times: dict[str, list[float]] = {"without": [], "with": []}
        times["without"] += await measure(ORDINARY)
        await world.turn(talk, OVER, "word " * (SIZE // 5))
        await world.reach(talk, "CHECKPOINTING")
        await trio.sleep(0.5)
        times["with"] += await measure(ORDINARY)
        assert world.phase(talk) == "CHECKPOINTING"
        world.plugin.buffers.drop(world.buffer(talk))
        await trio.sleep(0.2)
        times["without"] += await measure(ORDINARY)
    return {
        name: {"p50": statistics.median(found), "p99": statistics.quantiles(found, n=100)[98]}
        for name, found in times.items()
    }


async def idle(folder: Path) -> dict[str, Any]:
    """Memory of a thousand conversations, each with a checkpoint of 8 KB, as the plugin holds them."""
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    kept = []
    for number in range(IDLE):
        buffer = Buffer(f"session-{number:032d}", "main")
        text = f"{number} " + "what was done and why " * 370
        facts = {"exchange": "e" * 18, "model": "claude-opus-5-5", "account": "a" * 16}
        buffer.add(
            Checkpoint(
                f"{number:016x}", number.to_bytes(16, "big"), 400, **facts,
                analysis="", summary=text, tokens=700_000, made=1.0, seconds=40.0,
            )
        )  # fmt: skip
        kept.append(buffer)
    return {"bytes": tracemalloc.get_traced_memory()[0] - before, "count": len(kept)}


async def decision(folder: Path) -> dict[str, Any]:
    """One answer's decision: the wall and what follows from it."""
    client = Client((2, 1, 329), "claude-opus-5-5", 1_000_000, 128_000, {"CLAUDE_AUTOCOMPACT_PCT_OVERRIDE": "90"})
    state, thresholds = State(), Thresholds()
    began = time.perf_counter()
    for number in range(DECISIONS):
        decide(state, Answer(600_000 + number), wall(client), thresholds)
    return {"us": (time.perf_counter() - began) / DECISIONS * 1e6}


WHAT: dict[str, Callable[[Path], Any]] = {"swap": swap, "beside": beside, "idle": idle, "decide": decision}

if __name__ == "__main__":
    print(json.dumps(trio.run(WHAT[sys.argv[1]], Path(sys.argv[2]))))
