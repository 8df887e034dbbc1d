"""The example on the page about plugins is a plugin that works."""

from __future__ import annotations

import json
import re
from pathlib import Path

import trio
from rig import read_head

PAGE = Path(__file__).resolve().parents[2] / "docs" / "plugins.md"


async def test_the_example_reports_a_slow_answer(rig, tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    folder = tmp_path / "data" / "plugins"
    folder.mkdir(parents=True, mode=0o700)
    (folder / "slow_answers.py").write_text(code.replace("waited > 10", "waited > -1"))
    async with rig() as r:
        rows = {row.name: row for row in r.proxy.dispatch.manager.rows()}
        assert rows["slow_answers"].state == "loaded", rows["slow_answers"].error
        stream = await r.plain()
        await stream.send_all(b"GET /api/hello HTTP/1.1\r\nHost: x\r\n\r\n")
        await read_head(stream)
        with trio.fail_after(5):
            while not (found := [line for line in _lines(r) if line["event"] == "slow_answer"]):
                await trio.sleep(0.02)
        assert found[0]["host"] == "127.0.0.1"


def _lines(rig):
    log = rig.data_dir / "logs" / "dbproxy.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
