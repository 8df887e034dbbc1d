"""What the double buffer learned of a client survives a restart."""

from __future__ import annotations

import json

import pytest
from buffertalk import HALF, until

CLIENTS_OWN = "Wrap your thoughts in <analysis></analysis>"


async def test_the_clients_own_instruction_is_known_after_a_restart(world):
    async with world(tls=False) as w:
        talk = w.talk()
        await w.turn(talk, HALF)
        await talk.compact("manual")  # the model's answer
        file = w.rig.data_dir / "plugin-data" / "double-buffer" / "instructions.json"
        await until(file.exists)
        assert file.stat().st_mode & 0o777 == 0o600
    async with world(tls=False) as w:
        talk = w.talk()
        await w.checkpointed(talk)
        (made,) = w.own()
        assert CLIENTS_OWN in json.dumps(made.json["messages"][-1])
        written = file.stat().st_mtime_ns
        await talk.compact("manual")
        await w.turn(talk, 3_000)
    assert file.stat().st_mtime_ns == written  # nothing new was learned


@pytest.mark.parametrize("kept", [b"", b"{", b"[]", b'{"instructions": 5}', b"\xff", b"[" * 100_000])
async def test_a_file_that_cannot_be_read_is_as_none(world, tmp_path, kept):
    file = tmp_path / "data" / "plugin-data" / "double-buffer" / "instructions.json"
    file.parent.mkdir(parents=True)
    file.write_bytes(kept)
    async with world() as w:
        talk = w.talk()
        await w.checkpointed(talk)
        (made,) = w.own()
        assert CLIENTS_OWN not in json.dumps(made.json["messages"][-1])
        assert not w.events("plugin_failed", "buffer_crashed")
