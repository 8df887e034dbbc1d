"""The figures of routing: a translated stream, a translated request, and a whole request beside litellm's proxy.

What needs no other process is measured by translating.py in one of its own. Beside litellm both proxies are asked in
the base-URL way, one request after the other on a kept connection, for the same model at the same fake OpenAI server,
which gives a stream of twenty words; "added" is against the server itself in the same round.
"""

from __future__ import annotations

import json
import secrets
import socket
import sys
import time
import urllib.request
from contextlib import suppress
from statistics import median
from typing import TYPE_CHECKING

import tools
from contestants import HERE, Contestant, _pause, free_port
from scenarios import Bench, Figure, Invalid

if TYPE_CHECKING:
    from collections.abc import Callable

_KEY = secrets.token_hex(24)  # ours for a client, litellm's for everybody
_REQUESTS = {"direct": 100, "dbproxy": 100, "litellm": 20}


def stream(bench: Bench) -> list[Figure]:
    """CPU per event, and the time to the first one."""
    runs = [bench.alone("route", "translating.py", "stream") for _ in range(bench.rounds(3))]
    firsts = [bench.alone("route", "translating.py", "first") for _ in range(bench.rounds(5))]
    figures = []
    for name in ("chat", "responses", "gemini"):
        taken = median(run[name] for run in runs)
        figures.append(Figure(f"translated stream ({name}), CPU per event", "us", taken, "30 us", taken <= 30))
    added = median(run["through"] - run["direct"] for run in firsts)
    figures.append(Figure("translated stream, first word, added", "ms", added, "1 ms", added <= 1.0))
    return figures


def request(bench: Bench) -> list[Figure]:
    """CPU to put a request into another dialect."""
    runs = [bench.alone("route", "translating.py", "request") for _ in range(bench.rounds(3))]
    figures = []
    for label, reach in (("200 KB", 3), ("2 MB", 25)):
        for name in ("chat", "responses", "gemini"):
            taken = median(run[label][name] for run in runs)
            title = f"request of {label} into {name}, CPU"
            figures.append(Figure(title, "ms", taken, f"{reach} ms", taken <= reach))
    return figures


# ---- beside litellm


def _ours(bench: Bench, upstream: int) -> Contestant:
    """Our proxy as it is installed, with one rule and one provider."""
    field = bench.field
    home = field.folder / "routing"
    (home / ".config" / "dbproxy").mkdir(parents=True)
    settings = [
        f'client_key = "{_KEY}"',
        "[providers.openai]",
        f'base_url = "http://127.0.0.1:{upstream}/v1"',
        'key_env = "BENCH_OPENAI_KEY"',
        "[routes]",
        '"model:claude-haiku-4-5" = "openai:gpt-4o"',
    ]
    file = home / ".config" / "dbproxy" / "config.toml"
    file.write_text("\n".join(settings) + "\n")
    file.chmod(0o600)
    port = free_port()
    env = {
        "HOME": str(home),
        "DBPROXY_LISTEN": f"127.0.0.1:{port}",
        "DBPROXY_DATA_DIR": str(home / "data"),
        "DBPROXY_UPSTREAM_URL": f"http://127.0.0.1:{field.plain_port}",
        "BENCH_OPENAI_KEY": "x-bench",
    }
    return field.launch("dbproxy-routing", [sys.executable, "-m", "dbproxy", "serve"], port, env=env)


def _litellm(bench: Bench, upstream: int) -> Contestant:
    """litellm's proxy, one worker, the same model at the same server."""
    field = bench.field
    config = field.folder / "litellm.yaml"
    config.write_text(f"""
model_list:
  - model_name: claude-haiku-4-5
    litellm_params:
      model: openai/gpt-4o
      api_base: http://127.0.0.1:{upstream}/v1
      api_key: x-bench
litellm_settings:
  drop_params: true
  use_chat_completions_url_for_anthropic_messages: true
""")
    port = free_port()
    command = [
        tools.litellm(),
        "--config",
        str(config),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--num_workers",
        "1",
    ]
    env = {
        "LITELLM_MASTER_KEY": _KEY,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOG": "ERROR",
        "DISABLE_ADMIN_UI": "True",
        "PYTHONPATH": "",
    }
    one = field.launch("litellm", command, port, env=env)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(120):
        with suppress(OSError), opener.open(f"http://127.0.0.1:{port}/health/liveliness", timeout=5):
            return one
        _pause(0.5)
    raise Invalid("litellm does not answer")


def _timed(port: int, raw: bytes, mark: bytes, count: int) -> float:
    """The median time of a request on a kept connection (ms)."""
    taken = []
    with socket.create_connection(("127.0.0.1", port), timeout=60) as sock:
        for number in range(count + 5):
            began = time.perf_counter()
            sock.sendall(raw)
            got = b""
            while not got.endswith(b"0\r\n\r\n"):
                piece = sock.recv(65536)
                if not piece:
                    raise Invalid(f"port {port} hung up: {got[-300:]!r}")
                got += piece
            if number >= 5:
                taken.append((time.perf_counter() - began) * 1e3)
            if mark not in got:
                raise Invalid(f"port {port} answered something else: {got[:300]!r}")
    return median(taken)


def _raw(path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nx-api-key: {_KEY}\r\n"
    head += f"anthropic-version: 2023-06-01\r\nx-dbproxy-key: {_KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def litellm(bench: Bench) -> list[Figure]:
    """A whole request, translated both ways, by us and by litellm."""
    field = bench.field
    upstream = free_port()
    server = field.launch("openai", [sys.executable, str(HERE / "translating.py"), "serve", str(upstream)], upstream)
    said = {"model": "claude-haiku-4-5", "max_tokens": 64, "stream": True}
    body = json.dumps({**said, "messages": [{"role": "user", "content": "hi"}]}).encode()
    ours, theirs = _ours(bench, upstream), _litellm(bench, upstream)
    times: dict[str, list[float]] = {"direct": [], "dbproxy": [], "litellm": []}
    cpu: dict[str, list[float]] = {"dbproxy": [], "litellm": []}
    try:
        for _ in range(bench.rounds(5)):
            run = {"scenario": "route-litellm"}
            times["direct"].append(_timed(upstream, _raw("/v1/chat/completions", body), b"[DONE]", _REQUESTS["direct"]))
            for one, name in ((ours, "dbproxy"), (theirs, "litellm")):
                count = _REQUESTS[name]
                before = one.cpu()
                times[name].append(_timed(one.port, _raw("/v1/messages", body), b"message_stop", count))
                cpu[name].append((one.cpu() - before) / (count + 5) * 1e3)
            bench.raw.append(run | {name: values[-1] for name, values in times.items()})
    finally:
        for one in (ours, theirs, server):
            field.stop(one)
    added = {
        name: median(a - b for a, b in zip(times[name], times["direct"], strict=True))
        for name in ("dbproxy", "litellm")
    }
    work = {name: median(values) for name, values in cpu.items()}
    return [
        Figure(
            "translated request, added p50", "ms", added["dbproxy"], "1/20 of litellm",
            added["dbproxy"] * 20 <= added["litellm"], "litellm", added["litellm"],
        ),
        Figure("translated request, CPU", "ms", work["dbproxy"], "", True, "litellm", work["litellm"]),
    ]  # fmt: skip


ALL: dict[str, Callable[[Bench], list[Figure]]] = {
    "route-stream": stream,
    "route-request": request,
    "route-litellm": litellm,
}
