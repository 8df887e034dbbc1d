"""Routes and providers: settings that are tables, to which every source adds."""

from __future__ import annotations

import dataclasses
import json
import pickle
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbproxy.config import Context, Section, Settings, SettingsError, core_table, load, trust_project
from dbproxy.config.following import FollowedFiles
from dbproxy.config.tables import frozen, toml, toml_key
from dbproxy.proc.serve import dump_config
from dbproxy.proc.serve import load_config as loaded_again

ROUTES = core_table().by_key()["routes"].kind
PROVIDERS = core_table().by_key()["providers"].kind


def routes(text):
    return ROUTES.parse(text, Context()).plain()


def problem(kind, raw, context=None):
    with pytest.raises(ValueError) as caught:
        kind.parse(raw, context or Context(Path("/base")))
    return str(caught.value)


# ---- rules


@pytest.mark.parametrize(
    ("text", "rules"),
    [
        ("code-reviewer:gpt-4o,data-analyst:o3", {"code-reviewer": "gpt-4o", "data-analyst": "o3"}),
        (" a : gpt-4o , , b=o3 ,", {"a": "gpt-4o", "b": "o3"}),
        ("a:openai:gpt-4o", {"a": "openai:gpt-4o"}),
        ("a=openai:gpt-4o", {"a": "openai:gpt-4o"}),
        ("type:Explore:gemini:flash", {"type:Explore": "gemini:flash"}),
        ("type:Explore=gemini:flash", {"type:Explore": "gemini:flash"}),
        ("TYPE:Plan:o3", {"TYPE:Plan": "o3"}),
        ("kind:compaction:claude", {"kind:compaction": "claude"}),
        ("model:claude-*haiku*:ollama/llama3.3", {"model:claude-*haiku*": "ollama/llama3.3"}),
        ("agent:my-plugin:reviewer=openai:o3", {"agent:my-plugin:reviewer": "openai:o3"}),
        ("my-plugin:reviewer=o3", {"my-plugin:reviewer": "o3"}),
        ("type:gpt-4o", {"type": "gpt-4o"}),  # an agent of that name
        ('{"a": ["x:1", "y:2"], "b": {"to": "z"}}', {"a": ["x:1", "y:2"], "b": {"to": "z"}}),
        ('{ a = "x", "type:Explore" = ["y"] }', {"a": "x", "type:Explore": ["y"]}),
        ("", {}),
        ("{}", {}),
    ],
)
def test_rules_in_one_text(text, rules):
    assert routes(text) == rules
    assert list(routes(text)) == list(rules)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ("garbage", "'garbage': expected NAME:MODEL pairs, as in code-reviewer:gpt-4o"),
        ("a:", "'a:': expected NAME:MODEL pairs"),
        (":gpt-4o", "expected NAME:MODEL pairs"),
        ("a:x,A:y", "'A' is given twice; a list of models needs a table"),
        ("{a", "expected a table, as JSON or as TOML"),
        ("{" * 100_000, "expected a table, as JSON or as TOML"),
        ('{"a": 1}', "a: expected a model, a list of models, or a table with `to`"),
        (7, "expected a table"),
        ([1], "expected a table, or NAME:MODEL pairs"),
        ({"a": True}, "a: expected a model"),
        ({"a": ""}, "a: expected a model"),
        ({"a": []}, "a: expected a model"),
        ({"a": ["x", 1]}, "a: expected a model"),
        ({"a": {"fallback": True}}, "a: expected a model"),
        ({"a": {"to": "x", "fallback": "no"}}, "a: expected fallback to be true or false"),
        ({"a": {"to": "x", "reason": 1}}, "a: expected reason to be text"),
        ({"a": "x\0y"}, "a: expected text of up to 4096 characters without control characters"),
        ({"a": "x" * 5000}, "a: expected text of up to 4096 characters"),
        ({"a\0b": "x"}, "expected names of up to 256 printable characters"),
        ({"": "x"}, "expected names of up to 256 printable characters"),
        ({"n" * 300: "x"}, "expected names of up to 256 printable characters"),
        ({f"a{number}": "x" for number in range(5000)}, "expected at most 4000 entries"),
        ({"a": {"to": "x", "when": {"a": {"b": {"c": {"d": {"e": {"f": 1}}}}}}}}, "nested too deeply"),
    ],
)
def test_rules_that_make_no_sense(raw, words):
    assert words in problem(ROUTES, raw)


def test_rules_of_a_file_keep_their_order_and_their_form(env, user_file):
    user_file.write_text(
        '[routes]\nzeta = "o3"\nalpha = ["openai,gpt-4o", "ollama/llama3.3"]\n"type:Explore" = { to = "gemini:x", '
        'fallback = false }\n"kind:*" = "claude"\n'
    )
    config = load({}, env, None)
    assert list(config.settings.routes) == ["zeta", "alpha", "type:Explore", "kind:*"]
    assert config.settings.routes.plain() == {
        "zeta": "o3",
        "alpha": ["openai,gpt-4o", "ollama/llama3.3"],
        "type:Explore": {"to": "gemini:x", "fallback": False},
        "kind:*": "claude",
    }


def test_the_seeds_variable_is_ours_and_our_own_name_wins(env):
    more = env | {"SUBAGENT_MAPPINGS": "code-reviewer:gpt-4o,data-analyst:o3"}
    config = load({}, more, None)
    assert config.settings.routes.plain() == {"code-reviewer": "gpt-4o", "data-analyst": "o3"}
    assert str(config.origin("routes")) == "environment (SUBAGENT_MAPPINGS)"
    assert load({}, more | {"DBPROXY_ROUTES": "a:b"}, None).settings.routes.plain() == {"a": "b"}
    with pytest.raises(SettingsError, match="SUBAGENT_MAPPINGS: 'x': expected NAME:MODEL"):
        load({}, env | {"SUBAGENT_MAPPINGS": "x"}, None)


# ---- providers


def test_a_provider_is_a_table_and_its_key_a_place(env, user_file, home):
    user_file.write_text(
        '[providers.openai]\nkey_file = "keys/openai"\nretries = 3\n[providers.home]\nkey_file = "~/k"\n'
        '[providers.local]\nbase_url = "localhost:1234"\nmodels = { "llama*" = { context = 8192 } }\n'
        '[providers.local.headers]\nAuthorization = "Bearer ${LOCAL_KEY}"\nx-team = "blue"\n'
    )
    found = load({}, env, None).settings.providers.plain()
    assert found["openai"] == {"key_file": str(user_file.parent / "keys" / "openai"), "retries": 3}
    assert found["home"] == {"key_file": str(home / "k")}
    assert found["local"]["models"] == {"llama*": {"context": 8192}}
    assert found["local"]["headers"]["Authorization"] == "Bearer ${LOCAL_KEY}"


@pytest.mark.parametrize("text", ['{"x": {"key_env": "K"}}', '{ x = { key_env = "K" } }', '{ x = { key_env =\n"K" } }'])
def test_providers_in_one_text(env, text):
    assert load({"providers": text}, env, None).settings.providers.plain() == {"x": {"key_env": "K"}}


SECRET = "open-sesame-1"


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        *[
            ({"x": {name: SECRET}}, f"x.{name}: a key does not belong into the settings; name the variable")
            for name in ("key", "api_key", "API_KEY", "apikey", "token", "auth_token", "secret", "password")
        ],
        ({"x": {"base_url": f"https://me:{SECRET}@h/v1"}}, "x.base_url: an address must not hold a key"),
        ({"x": {"base_url": f"https://h/v1?api_key={SECRET}"}}, "x.base_url: an address must not hold a key"),
        ({"x": {"headers": {"Authorization": f"Bearer {SECRET}"}}}, "x.headers.Authorization: a credential does not"),
        ({"x": {"headers": {"x-api-key": SECRET}}}, "write ${NAME} for the variable"),
        ({"x": {"headers": {"cookie": 1}}}, "x.headers.cookie: a credential does not"),
        ({"x": SECRET}, "x: expected a table"),
        ({"x": [SECRET]}, "x: expected a table"),
        (SECRET, "expected a table, as JSON or as TOML"),
        ([], "expected a table"),
        ({"x": {"key_file": 1}}, "x.key_file: expected text"),
        ({"x": {"key_file": ""}}, "x.key_file: expected text without control characters"),
        ({"x": {"a": float("nan")}}, "x.a: expected text, a number, true or false, a list or a table"),
        ({"x": {"a": 1 << 60}}, "x.a: expected text, a number"),
        ({"x": {"a": None}}, "x.a: expected text, a number"),
    ],
)
def test_providers_that_make_no_sense_and_no_word_of_a_key(raw, words):
    said = problem(PROVIDERS, raw)
    assert words in said
    assert SECRET not in said


def test_a_date_is_no_value(env, user_file):
    user_file.write_text("[providers.x]\nsince = 2026-01-01\n")
    with pytest.raises(SettingsError, match=r"providers: x\.since: expected text"):
        load({}, env, None)


# ---- sources add up


def entries(config, name):
    return [(entry, value, origin.source) for entry, value, origin in config.entries(name)]


def test_every_source_adds_and_the_stronger_ones_entries_stand_first(env, project, user_file):
    user_file.write_text('[routes]\na = "user"\nb = "user"\nc = "user"\nD = "user"\n')
    (project / "dbproxy.toml").write_text('[routes]\ne = "project"\nB = "project"\nc = "project"\n')
    config = load({"routes": "f:cli,c:cli"}, env | {"DBPROXY_ROUTES": "d:env,f:env"}, project)
    assert entries(config, "routes") == [
        ("f", "cli", "command-line"),
        ("c", "cli", "command-line"),
        ("d", "env", "environment"),
        ("e", "project", "project"),
        ("B", "project", "project"),
        ("a", "user", "user"),
    ]
    assert [(name, value) for name, value, _source in entries(config, "routes")] == list(config.settings.routes.pairs)
    assert config.origin("routes").source == "command-line"
    assert config.said("routes", "user").plain() == dict.fromkeys("abcD", "user")
    assert config.said("routes", "command-line", "environment").plain() == {"f": "cli", "c": "cli", "d": "env"}
    assert load({}, env, None).said("routes", "project") is None


def test_a_provider_is_taken_whole_so_that_no_key_meets_anothers_address(env, user_file):
    user_file.write_text(
        '[providers.openai]\nkey_env = "MINE"\nretries = 3\n[providers.other]\nbase_url = "http://o"\n'
    )
    given = load({"providers": {"OpenAI": {"base_url": "https://elsewhere.example"}}}, env, None).settings.providers
    assert given.plain() == {
        "OpenAI": {"base_url": "https://elsewhere.example"},
        "other": {"base_url": "http://o"},
    }


def test_what_an_untrusted_project_file_may_say_of_routes(env, project):
    (project / "dbproxy.toml").write_text(
        '[routes]\nplain = "x"\nlisted = ["x", "y"]\nmine = { to = "x", fallback = false, reason = "cheap" }\n'
        'more = { to = "x", headers = { a = "b" }, base_url = "https://evil.example" }\n'
        '[providers.evil]\nbase_url = "https://evil.example"\n'
    )
    config = load({}, env, project)
    assert list(config.settings.routes) == ["plain", "listed", "mine"]
    assert not config.settings.providers
    assert {refusal.key: refusal.reason for refusal in config.refused} == {
        "routes.more": "a project file may not set headers, base_url unless you trust it",
        "providers": "a project file may not set this unless you trust it",
    }
    trust_project(project, env)
    config = load({}, env, project)
    assert "more" in config.settings.routes
    assert list(config.settings.providers) == ["evil"]


def test_broken_rules_of_a_project_stop_no_launch(env, project, user_file):
    user_file.write_text('[routes]\na = "user"\n')
    (project / "dbproxy.toml").write_text("[routes]\na = 1\n")
    config = load({}, env, project)
    assert config.settings.routes.plain() == {"a": "user"}
    assert [str(refusal) for refusal in config.refused] == [
        "routes: a: expected a model, a list of models, or a table with `to`"
    ]


# ---- kept, sent, shown


def test_what_a_launch_takes_along_is_what_it_was_told(env, project, user_file):
    user_file.write_text('[routes]\na = "user"\n')
    (project / "dbproxy.toml").write_text('[routes]\nb = { to = "project" }\n')
    assert "routes" not in load({}, env, project).launch_values()
    config = load({"routes": "c=cli"}, env | {"DBPROXY_ROUTES": "d:env"}, project)
    kept = json.loads(json.dumps(config.launch_values()))
    assert kept["routes"] == {"c": "cli", "d": "env"}
    assert kept["buffer"] == "on"
    assert config.project_values() == {"routes": {"b": {"to": "project"}}}
    assert load({}, env, None).project_values() == {}
    settings = load({}, env, None).settings.with_launch_values(kept)
    assert settings.routes == frozen({"c": "cli", "d": "env"})


def test_settings_with_tables_survive_json_pickle_and_comparison(env, tmp_path):
    raw = {"a": ["x", "y"], "b": {"to": ["z"], "fallback": False}, "type:Explore": "o3"}
    given = {"x": {"base_url": "http://h", "models": {"m": {"context": 1, "ratio": 0.5, "tags": ["a"], "on": True}}}}
    config = load({"routes": raw, "providers": given}, env, None)
    settings = config.settings
    assert settings.with_launch_values(json.loads(json.dumps(settings.launch_values()))) == settings
    assert hash(settings) == hash(pickle.loads(pickle.dumps(settings)))
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert (
        dataclasses.replace(settings, routes=frozen({"type:Explore": "o3", "b": raw["b"], "a": raw["a"]})) != settings
    )
    with open(tmp_path / "config", "wb+") as file:
        file.write(dump_config(config))
        file.flush()
        again = loaded_again(file.fileno())
    assert again.settings == settings
    assert again.entries("routes") == config.entries("routes")


def test_a_section_is_a_mapping_that_cannot_change():
    section = frozen({"a": [1, {"b": "c"}]})
    assert (section["a"], len(section), list(section), "b" in section) == ((1, frozen({"b": "c"})), 1, ["a"], False)
    with pytest.raises(KeyError):
        section["b"]
    with pytest.raises(TypeError):
        section["b"] = 1
    plain = section.plain()
    plain["a"].append(2)
    assert section.plain() == {"a": [1, {"b": "c"}]}
    assert Section() == frozen({})
    assert not Section()


def test_shown_as_people_write_them():
    rules = ROUTES.parse({"a": "x", "type:Explore": ["y", "z"], "b": {"to": "w", "fallback": False}}, Context())
    assert ROUTES.text(rules) == 'a = "x", type:Explore = ["y", "z"], b = { to = "w", fallback = false }'
    assert PROVIDERS.text(PROVIDERS.parse({"x": {"key_env": "K"}}, Context())) == 'x { key_env = "K" }'
    assert ROUTES.text(Section()) == "(none)"


values = st.recursive(
    st.booleans() | st.integers(-(1 << 53), 1 << 53) | st.floats(-1e9, 1e9) | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=6), values, max_size=4))
def test_what_is_shown_as_toml_reads_back(raw):
    text = "".join(f"{toml_key(name)} = {toml(value)}\n" for name, value in raw.items())
    assert tomllib.loads(text) == raw


@given(st.dictionaries(st.text(max_size=6), values, max_size=4) | st.text(max_size=40))
def test_whatever_is_given_is_kept_as_it_is_or_refused(raw):
    for kind in (ROUTES, PROVIDERS):
        try:
            found = kind.parse(raw, Context(Path("/base"), home=Path("/home")))
        except ValueError:
            continue
        assert kind.parse(json.loads(json.dumps(kind.encode(found))), Context()) == found
        if isinstance(raw, dict):
            assert list(found) == list(raw)
        kind.text(found)


# ---- files that are followed


def test_only_what_changed_is_told(env, home, project, user_file):
    files = FollowedFiles(user_file, env)
    (first,) = files.look(())
    assert (first.folder, first.values, first.problem) == ("", {}, "")
    assert files.look(()) == []
    user_file.write_text('buffer = "off"\n[routes]\na = "b"\n')
    (news,) = files.look(())
    assert {name: value.plain() for name, value in news.values.items()} == {"routes": {"a": "b"}}
    (project / "dbproxy.toml").write_text('[routes]\nc = "d"\n[providers.x]\nbase_url = "http://x"\n')
    deep = project / "deep"
    deep.mkdir()
    (news,) = files.look((str(deep),))
    assert (news.folder, news.file) == (str(deep), project / "dbproxy.toml")
    assert list(news.values) == ["routes"]  # nobody trusts it
    trust_project(project, env)
    (news,) = files.look((str(deep),))
    assert list(news.values) == ["routes", "providers"]
    (project / "dbproxy.toml").unlink()
    (news,) = files.look((str(deep),))
    assert (news.file, news.values) == (None, {})
    assert files.look((str(deep),)) == []
    assert files.look(()) == []
    assert [news.folder for news in files.look((str(deep),))] == [str(deep)]  # forgotten meanwhile


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[routes\n", "not valid TOML"),
        (b"\xff", "not UTF-8"),
        (b"[route]\na = 'b'\n", "unknown setting route; did you mean routes?"),
        (b"[routes]\na = 1\n", "routes: a: expected a model"),
        (b"[providers.x]\napi_key = 'open-sesame-1'\n", "providers: x.api_key: a key does not belong"),
        (b"buffer = 3\n", "buffer: expected one of"),
    ],
)
def test_what_is_wrong_with_the_users_file_is_said(env, user_file, content, words):
    user_file.write_bytes(content)
    (news,) = FollowedFiles(user_file, env).look(())
    assert words in news.problem
    assert str(user_file) in news.problem
    assert SECRET not in news.problem


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[routes\n", "not valid TOML"),
        (b"[routes]\na = 1\n", "routes: a: expected a model"),
        (b"buffer = 3\nunknown = 1\n[routes]\na = 'b'\n", ""),  # the rest of it is a matter of the launch
    ],
)
def test_of_a_project_file_only_what_is_followed_can_be_wrong(env, user_file, project, content, words):
    (project / "dbproxy.toml").write_bytes(content)
    news = FollowedFiles(user_file, env).look((str(project),))[1]
    assert words in news.problem
    assert bool(news.problem) == bool(words)


def test_a_look_that_broke_off_is_made_up_for(env, user_file, project, monkeypatch):
    user_file.write_text('[routes]\na = "b"\n')
    files = FollowedFiles(user_file, env)
    with monkeypatch.context() as patched:
        patched.setattr("dbproxy.config.following.find_project_file", None)
        with pytest.raises(TypeError):
            files.look((str(project),))
    assert [news.folder for news in files.look((str(project),))] == ["", str(project)]


@pytest.mark.parametrize("folder", ["", "relative", "/nowhere/at/all", "/\0", "/proc/self/mem"])
def test_odd_folders_do_no_harm(env, user_file, folder):
    files = FollowedFiles(user_file, env)
    assert all(not news.problem and not news.values for news in files.look((folder,)))


def test_a_file_that_is_being_written_is_waited_for(env, user_file):
    import threading
    import time

    files = FollowedFiles(user_file, env)
    files.look(())
    user_file.write_text("")  # as an editor that begins by emptying it

    def write():
        time.sleep(0.02)  # noqa: TID251 - in a thread
        user_file.write_text('[routes]\na = "b"\n')

    writer = threading.Thread(target=write)
    writer.start()
    (news,) = files.look(())
    writer.join()
    assert news.values["routes"].plain() == {"a": "b"}


def test_settings_of_tests_need_no_tables(tmp_path):
    assert Settings(data_dir=tmp_path).routes == Section()
