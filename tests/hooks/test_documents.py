"""The small files that plugins keep: private, whole or not there."""

from __future__ import annotations

import json
import stat

import pytest

from dbproxy.api import append_line, read_document, stamp_of, write_document


def test_the_file_is_private_and_whole_or_not_there(tmp_path):
    file = tmp_path / "plugin-data" / "pins.json"
    assert read_document(file) == {}
    assert stamp_of(file) is None
    write_document(file, {"a": 1})
    first = stamp_of(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    with pytest.raises(TypeError):
        write_document(file, {"a": object()})
    assert read_document(file) == {"a": 1}
    assert [path.name for path in file.parent.iterdir()] == ["pins.json"]
    write_document(file, {"a": 2})
    assert stamp_of(file) != first
    for text in ("[1]", "{", ""):
        file.write_text(text)
        assert read_document(file) == {}


def test_lines_are_added_to_a_private_file(tmp_path):
    file = tmp_path / "kept" / "lines.jsonl"
    for number in range(3):
        append_line(file, {"number": number})
    assert [json.loads(line)["number"] for line in file.read_text().splitlines()] == [0, 1, 2]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
