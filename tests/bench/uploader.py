"""Sends the turns of a long conversation through a proxy, so many a second, and checks that each is answered.

    python uploader.py PORT CA_FILE RATE SECONDS SEED

Bodies of 900 KB and more, each the one before and a turn, as in tests/support/longtalk.py. Prints a line when it is
ready and begins when it is told to by a line on its standard input; then one JSON object.
"""

from __future__ import annotations

import json
import socket
import ssl
import sys
import time
import uuid
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "support"), str(Path(__file__).resolve().parents[2])]

import longtalk  # noqa: E402

HOST = "api.anthropic.com"
FIRST = 200  # turns before those that are sent
# The load tool's server looks at the end of a body.
TAIL = b',"fallbacks":[{"model":"claude-opus-5"}]}'


def connected(port: int, ca_file: str) -> ssl.SSLSocket:
    raw = socket.create_connection(("127.0.0.1", port), timeout=30)
    raw.sendall(f"CONNECT {HOST}:443 HTTP/1.1\r\nHost: {HOST}:443\r\n\r\n".encode())
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = raw.recv(1)
        if not byte:
            raise SystemExit("the tunnel was refused")
        head += byte
    return ssl.create_default_context(cafile=ca_file).wrap_socket(raw, server_hostname=HOST)


def ask(stream: ssl.SSLSocket, body: bytes, session: str) -> None:
    """Send a body and read its answer to the end."""
    head = (
        f"POST /v1/messages?beta=true HTTP/1.1\r\nHost: {HOST}\r\nUser-Agent: claude-cli/2.1.329 (external, cli)\r\n"
        f"x-claude-code-session-id: {session}\r\nx-claude-code-request-class: main\r\nx-bench-answer: sse:40\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    stream.sendall(head.encode() + body)
    seen = b""
    while not seen.endswith(b"\r\n0\r\n\r\n"):
        data = stream.recv(65536)
        if not data:
            raise SystemExit("the answer was cut")
        seen += data
    if not seen.startswith(b"HTTP/1.1 200 "):
        raise SystemExit(f"answered {seen[:60]!r}")


def main() -> None:
    port, ca_file, rate, seconds, seed = sys.argv[1:]
    count = int(float(rate) * float(seconds))
    session = str(uuid.UUID(int=int(seed) + 1))
    turns = longtalk.Talk(int(seed), session=session).take(FIRST + count + 1)
    bodies = [turn.body[:-1] + TAIL for turn in turns][FIRST:]
    stream = connected(int(port), ca_file)
    ask(stream, bodies[0], session)
    print("ready", flush=True)
    sys.stdin.readline()
    began = time.monotonic()
    for number, body in enumerate(bodies[1:]):
        time.sleep(max(0.0, began + number / float(rate) - time.monotonic()))  # noqa: TID251  no event loop here
        ask(stream, body, session)
    print(json.dumps({"sent": count, "seconds": time.monotonic() - began, "bytes": len(bodies[-1])}))


if __name__ == "__main__":
    main()
