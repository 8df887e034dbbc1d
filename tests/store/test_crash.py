"""The process is killed at any moment: the file is whole, and what was flushed is in it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from storekit import assert_sound, make_id, opened, rows, store_at, talk

SUPPORT = Path(__file__).resolve().parent.parent / "support"
WRITER = """
import sys
from pathlib import Path
from storekit import *
import longtalk
path, first, mode = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
words = longtalk.Words(first)
texts = []
with store_at(path) as store:
    number = first
    while True:
        texts.append(words.prose(600))
        store.append(opened(number, talk(*texts), link=link(number, f"c-{first}")))
        store.append(closed(number, words.prose(300)))
        if mode == "flush" or number % 4 == 0:
            assert store.flush(20)
            print(number, flush=True)
        number += 1
        if len(texts) > 60:
            texts = texts[:20]
"""


def writer(path, first, mode):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SUPPORT), str(SUPPORT.parent.parent)])}
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(first), mode], env=environment, stdout=subprocess.PIPE
    )


def killed(process, seconds):
    """Kill it that long after its first record; the numbers that it had flushed."""
    try:
        first = process.stdout.readline()
        threading.Event().wait(seconds)
    finally:
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read()
        process.stdout.close()
        process.wait(20)
    return [int(line) for line in (first + rest).split(b"\n") if line.strip()]


@pytest.mark.parametrize("mode", ["flush", "batches"])
def test_kill_at_any_moment(tmp_path, mode):
    path = tmp_path / "dbproxy.sqlite"
    chance = random.Random(mode)
    for attempt in range(6):
        first = 1 + attempt * 100_000
        flushed = killed(writer(path, first, mode), chance.random() * 0.4)
        assert flushed
        (whole,) = rows(path, "SELECT count(*) FROM exchange WHERE id BETWEEN ? AND ?", _between(first, flushed[-1]))
        assert whole == (flushed[-1] - first + 1,), "a flushed record is gone"
        assert assert_sound(path) > 0
    with store_at(path) as store:  # and it is written on
        store.append(opened(9_999_999, talk("after")))
        assert store.flush(10)
        assert store.counts.failures == 0
    assert list(path.parent.glob("*corrupt*")) == []


def test_one_of_two_writers_is_killed(tmp_path):
    path = tmp_path / "dbproxy.sqlite"
    victim, other = writer(path, 1, "batches"), writer(path, 500_000, "flush")
    gone = killed(victim, 0.3)
    alive = killed(other, 0.3)
    for numbers, first in ((gone, 1), (alive, 500_000)):
        (whole,) = rows(path, "SELECT count(*) FROM exchange WHERE id BETWEEN ? AND ?", _between(first, numbers[-1]))
        assert whole == (numbers[-1] - first + 1,)
    assert assert_sound(path) > 0


def _between(first, last):
    return make_id(first), make_id(last)
