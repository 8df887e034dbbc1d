"""The client's settings files: precedence, conflicts in plain words, and nothing broken is fatal."""

from __future__ import annotations

import json

import pytest

from dbproxy.proc.client import conflicts, effective, settings_files, user_settings_path

URL = "http://127.0.0.1:8080"
HOSTS = ("api.anthropic.com",)


@pytest.fixture
def place(tmp_path):
    (tmp_path / "home" / ".claude").mkdir(parents=True)
    (tmp_path / "work" / ".claude").mkdir(parents=True)
    return tmp_path


def put(path, **variables):
    path.write_text(json.dumps({"env": variables, "other": [1]}))
    return path


def read(place, arguments=(), managed=(), **env):
    return settings_files({"HOME": str(place / "home"), **env}, place / "work", arguments, managed=managed)


def found(place, env=None, **options):
    return conflicts(env or {}, read(place, **options), url=URL, intercept=HOSTS, root="/ca/bundle.pem")


def test_the_strongest_file_wins(place):
    put(place / "home/.claude/settings.json", A="user", B="user", C="user", D="user", E="user")
    put(place / "work/.claude/settings.json", A="project", B="project", C="project", D="project")
    put(place / "work/.claude/settings.local.json", A="local", B="local", C="local")
    put(place / "flag.json", A="flag", B="flag")
    managed = [put(place / "managed.json", A="managed", Z="first"), put(place / "drop-in.json", Z="second")]
    files = read(place, ["--settings", str(place / "flag.json")], managed)
    values = {name: value for name, (value, _) in effective(files).items()}
    expected = {"A": "managed", "B": "flag", "C": "local", "D": "project", "E": "user", "Z": "second"}
    assert values == expected


def test_the_config_folder_of_the_client_is_honoured(place):
    other = place / "other"
    other.mkdir()
    put(other / "settings.json", A="b")
    assert user_settings_path({"HOME": "/h", "CLAUDE_CONFIG_DIR": str(other)}) == other / "settings.json"
    assert [file.path for file in read(place, CLAUDE_CONFIG_DIR=str(other))] == [str(other / "settings.json")]


def test_settings_as_json_on_the_command_line(place):
    files = read(place, ["-p", "x", '--settings={"env":{"HTTPS_PROXY":"http://corp:1"}}'])
    assert effective(files)["HTTPS_PROXY"][0] == "http://corp:1"
    assert read(place, ["--", "--settings", '{"env":{"A":"b"}}']) == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"env": []}', '{"env": "x"}', "\xff\xfe", "[" * 100_000])
def test_a_broken_file_is_a_problem_and_never_fatal(place, text):
    (place / "home/.claude/settings.json").write_text(text, "latin-1")
    (file,) = read(place)
    assert file.problem
    assert file.env == {}


def test_unreadable_places_are_problems_too(place):
    (place / "home/.claude/settings.json").mkdir()
    (file,) = read(place)
    assert file.problem


def test_a_byte_order_mark_and_numbers_are_understood(place):
    (place / "home/.claude/settings.json").write_text('\ufeff{"env": {"A": 1, "B": true}}', "utf-8")
    assert {name: value for name, (value, _) in effective(read(place)).items()} == {"A": "1", "B": "true"}


@pytest.mark.parametrize(
    ("variables", "names"),
    [
        ({"HTTPS_PROXY": "http://corp:1"}, ["HTTPS_PROXY"]),
        ({"https_proxy": "http://corp:1"}, ["https_proxy"]),
        ({"HTTPS_PROXY": "http://x:y@127.0.0.1:8080"}, []),
        ({"HTTP_PROXY": "http://corp:1"}, []),
        ({"NO_PROXY": "a.example,.anthropic.com"}, ["NO_PROXY"]),
        ({"NO_PROXY": "a.example"}, []),
        ({"no_proxy": "*"}, ["no_proxy"]),
        ({"NODE_EXTRA_CA_CERTS": "/corp.pem"}, ["NODE_EXTRA_CA_CERTS"]),
        ({"NODE_EXTRA_CA_CERTS": ""}, []),
        ({"ANTHROPIC_BASE_URL": "https://gw.example/a"}, ["ANTHROPIC_BASE_URL"]),
        ({"ANTHROPIC_BASE_URL": "https://API.anthropic.com."}, []),
        ({"ANTHROPIC_BASE_URL": "http://api.anthropic.com"}, ["ANTHROPIC_BASE_URL"]),
        ({"ANTHROPIC_BASE_URL": URL + "/s"}, []),
        ({"ANTHROPIC_BASE_URL": "http://["}, ["ANTHROPIC_BASE_URL"]),
        ({"CLAUDE_CODE_USE_BEDROCK": "1"}, ["CLAUDE_CODE_USE_BEDROCK"]),
        ({"CLAUDE_CODE_USE_BEDROCK": "0"}, []),
        (
            {"CLAUDE_CODE_USE_VERTEX": "true", "CLAUDE_CODE_USE_FOUNDRY": "1"},
            ["CLAUDE_CODE_USE_VERTEX", "CLAUDE_CODE_USE_FOUNDRY"],
        ),
    ],
)
def test_what_leads_past_us_is_named_with_its_file(place, variables, names):
    file = put(place / "work/.claude/settings.json", **variables)
    listed = found(place)
    assert [conflict.variable for conflict in listed] == names
    for conflict in listed:
        assert str(file) in str(conflict)
        assert "\n" not in str(conflict)
        assert conflict.advice


def test_the_environment_counts_where_no_file_overrules_it(place):
    env = {"ANTHROPIC_BASE_URL": "https://user:secret@gw.example/?k=1", "CLAUDE_CODE_USE_VERTEX": "1"}
    listed = found(place, env)
    assert [conflict.where for conflict in listed] == ["your environment"] * 2
    assert "secret" not in str(listed[0])
    put(place / "home/.claude/settings.json", CLAUDE_CODE_USE_VERTEX="0", ANTHROPIC_BASE_URL="")
    assert found(place, env) == []


def test_the_persons_own_proxy_in_the_environment_is_no_conflict(place):
    assert found(place, {"HTTPS_PROXY": "http://corp:1", "NO_PROXY": "*", "NODE_EXTRA_CA_CERTS": "/x"}) == []
