"""A signal in the moments between the record and the supervisor's handlers ends the proxy in order, not by accident."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("delay", [0.0, 0.01, 0.03, 0.06, 0.1])
def test_whoever_reads_the_record_may_signal(tmp_path, number, delay):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DBPROXY_")}
    env = {**kept, "DBPROXY_DATA_DIR": str(tmp_path / "data"), "DBPROXY_LISTEN": "127.0.0.1:0"}
    proxy = subprocess.Popen([sys.executable, "-m", "dbproxy", "serve"], env=env, stderr=subprocess.PIPE)
    try:
        record = tmp_path / "data" / "run" / "daemon.json"
        deadline = time.monotonic() + 20
        while not record.exists() and proxy.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)  # noqa: TID251 - another process is waited for
        time.sleep(delay)  # noqa: TID251 - the moment is the test
        proxy.send_signal(number)
        _, stderr = proxy.communicate(timeout=20)
        assert proxy.returncode == 0, stderr
        assert b"Traceback" not in stderr
    finally:
        proxy.kill()
        proxy.wait(20)
