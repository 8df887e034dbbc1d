"""`dbproxy selftest` must be able to fail: each thing that it looks at, broken."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from dbproxy.testing import selftest

WELL = selftest.Result("", 1, 1, 1, 0.1, (("token-meter", "0.1.0", "loaded"),))


async def test_the_round_trip_is_well(tmp_path):
    result = await selftest.round_trip(tmp_path)
    assert result.trouble == ""
    assert result.events > 5
    assert result.up > 100
    assert result.down > len(selftest._ANSWER)
    assert ("token-meter", "loaded") in [(name, state) for name, _, state in result.plugins]


async def test_a_byte_that_changes_on_the_way_is_found(tmp_path, monkeypatch):
    compare = selftest.compare

    def altered(attempts, requests, **how):
        requests[0].sent.body = bytes(requests[0].sent.body).replace(b"pieces", b"pieceS", 1)
        return compare(attempts, requests, **how)

    monkeypatch.setattr(selftest, "compare", altered)
    assert "answer body" in (await selftest.round_trip(tmp_path)).trouble


async def test_a_proxy_that_refuses_is_found(tmp_path):
    result = await selftest.round_trip(tmp_path, {"DBPROXY_INTERCEPT": "other.example"})
    assert result.trouble != ""


def test_no_end_is_an_end(monkeypatch):
    monkeypatch.setattr(selftest, "SECONDS", 0.0)
    assert "did not end" in selftest.run().trouble


@pytest.mark.parametrize(
    ("result", "made_of", "well"),
    [
        (WELL, {"trio": "1"}, True),
        (WELL, {"trio": "missing"}, False),
        (selftest.Result("broken"), {"trio": "1"}, False),
        (selftest.Result("", plugins=(("x", "1", "failed"),)), {"trio": "1"}, False),
        (selftest.Result("", plugins=(("x", "1", "disabled"),)), {"trio": "1"}, True),
    ],
)
def test_what_counts_as_well(result, made_of, well):
    assert selftest.is_well(result, made_of) is well
    assert selftest.about(result, made_of)["ok"] is well


def start(*words, **variables):
    return subprocess.run(
        [sys.executable, "-m", "dbproxy", "selftest", *words],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_command():
    done = start()
    assert (done.returncode, done.stderr) == (0, "")
    assert "every byte identical" in done.stdout
    told = json.loads(start("--json").stdout)
    assert told["ok"] is True
    assert told["versions"]["kind"] == "package"
    assert "missing" not in told["versions"].values()


def test_the_persons_settings_do_not_matter():
    done = start(DBPROXY_LISTEN="nonsense", HTTPS_PROXY="http://127.0.0.1:1", DBPROXY_UPSTREAM_CA="/nowhere")
    assert done.returncode == 0, done
