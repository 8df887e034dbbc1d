"""Settings: what each source may say, which one wins, and what a person is told."""

from __future__ import annotations

import dataclasses
import json
import os
import stat
import typing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbproxy.config import (
    HostPort,
    Section,
    Settings,
    SettingsError,
    core_table,
    load,
    plugin_setting,
    trust_project,
    values,
    with_settings,
)
from dbproxy.config.files import MAX_FILE_BYTES
from dbproxy.errors import ConfigError


def problems(*args, **options):
    with pytest.raises(SettingsError) as caught:
        load(*args, **options)
    return list(caught.value.problems)


def one(name, text, env):
    """The value of one setting given in the environment."""
    return getattr(load({}, env | {f"DBPROXY_{name.upper()}": text}, None).settings, name)


def test_defaults_are_those_of_the_contract(env, home):
    config = load({}, env, None)
    settings = config.settings
    assert settings.listen == (HostPort("127.0.0.1", 8080),)
    assert settings.dashboard_port is None
    assert settings.data_dir == home / ".local" / "share" / "dbproxy"
    assert settings.intercept == ("api.anthropic.com",)
    assert settings.upstream_url == "https://api.anthropic.com"
    assert (settings.passthrough, settings.buffer, settings.early_swap) == (False, "on", False)
    assert (settings.checkpoint_threshold, settings.swap_threshold) == (0.70, 0.80)
    assert (settings.compact_trigger_tokens, settings.conversation_ttl_seconds) == (50_000, 7200)
    assert (settings.log_level, settings.log_days, settings.control_token) == ("INFO", 7, None)
    assert settings.upstream_silence_timeout >= 900
    assert {str(config.origin(spec.name)) for spec in core_table().specs} == {"default"}


def test_every_default_is_a_value_that_its_own_kind_accepts():
    for spec in core_table().specs:
        if spec.default is not None:
            encoded = json.loads(json.dumps(spec.kind.encode(spec.default)))
            assert spec.kind.parse(encoded, values.Context()) == spec.default, spec.name


def test_the_order_of_the_sources(env, project, user_file):
    def seen(cli=None, **more):
        config = load(cli or {}, env | more, project)
        return config.settings.buffer, config.origin("buffer").source

    assert seen() == ("on", "default")
    user_file.write_text('buffer = "off"\n')
    assert seen() == ("off", "user")
    (project / "dbproxy.toml").write_text('buffer = "observe"\n')
    assert seen() == ("observe", "project")
    assert seen(DBPROXY_BUFFER="off") == ("off", "environment")
    assert seen({"buffer": "on"}, DBPROXY_BUFFER="off") == ("on", "command-line")
    assert seen({"buffer": None}, DBPROXY_BUFFER="off") == ("off", "environment")


def test_the_origin_names_the_exact_place(env, project, user_file):
    user_file.write_text("log_days = 3\n")
    (project / "dbproxy.toml").write_text("checkpoint_threshold = 0.5\n")
    config = load({"log_level": "debug"}, env | {"DBPROXY_POOL_SIZE": "3"}, project)
    assert str(config.origin("log_days")) == f"user ({user_file})"
    assert str(config.origin("checkpoint_threshold")) == f"project ({project / 'dbproxy.toml'})"
    assert str(config.origin("log_level")) == "command-line (--log-level)"
    assert str(config.origin("pool_size")) == "environment (DBPROXY_POOL_SIZE)"
    with pytest.raises(KeyError):
        config.origin("nothing")


@pytest.mark.parametrize(
    ("text", "value"),
    [("0.7", 0.7), ("70", 0.7), ("70%", 0.7), (" 70 % ", 0.7), ("1", 1.0), ("100", 1.0), ("0.5%", 0.005)],
)
def test_thresholds_in_every_spelling(env, text, value):
    config = load({"swap_threshold": "100%"}, env | {"DBPROXY_CHECKPOINT_THRESHOLD": text}, None)
    assert config.settings.checkpoint_threshold == value


@pytest.mark.parametrize("text", ["0", "101", "-1", "nan", "inf", "abc", "7O%", "%", "1e400"])
def test_thresholds_that_make_no_sense(env, text):
    (problem,) = problems({}, env | {"DBPROXY_CHECKPOINT_THRESHOLD": text}, None)
    assert problem.startswith("DBPROXY_CHECKPOINT_THRESHOLD: expected a fraction (0.7) or percentage")


@pytest.mark.parametrize("text", ["", " ", "\t"])
def test_an_empty_variable_is_an_unset_one(env, text):
    names = [name for spec in core_table().specs for name in spec.env] + ["DBPROXY_PROXY_PORT"]
    assert load({}, env | dict.fromkeys(names, text), None).settings == load({}, env, None).settings


@pytest.mark.parametrize("text", ["1", "true", "YES", "on", " On "])
def test_what_is_true(env, text):
    assert one("passthrough", text, env) is True


@pytest.mark.parametrize("text", ["0", "false", "No", "off"])
def test_what_is_false(env, text):
    assert one("passthrough", text, env) is False


def test_what_is_neither(env):
    assert problems({}, env | {"DBPROXY_PASSTHROUGH": "maybe"}, None) == [
        "DBPROXY_PASSTHROUGH: expected true or false (also 1/0, yes/no, on/off)"
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("127.0.0.1:8080", ("127.0.0.1", 8080)),
        ("[::1]:0", ("::1", 0)),
        ("localhost:65535", ("localhost", 65535)),
        ("9000", ("127.0.0.1", 9000)),
        ("LOCALHOST.:1", ("localhost", 1)),
    ],
)
def test_addresses(env, text, value):
    (found,) = one("listen", text, env)
    assert found == HostPort(*value)
    assert values.host_port(str(found)) == found


@pytest.mark.parametrize(
    "text", ["::1:8080", "host:", ":80", "host:65536", "host:-1", "a b:1", "[::1]", "x:٣", "http://x:1"]
)
def test_addresses_that_make_no_sense(env, text):
    (problem,) = problems({}, env | {"DBPROXY_LISTEN": text}, None)
    assert problem.startswith("DBPROXY_LISTEN: ")


def test_several_addresses_as_text_array_and_repeated_option(env, user_file):
    expected = (HostPort("127.0.0.1", 1), HostPort("::1", 1))
    assert one("listen", "127.0.0.1:1, [::1]:1", env) == expected
    assert load({"listen": ["127.0.0.1:1", "[::1]:1"]}, env, None).settings.listen == expected
    user_file.write_text('listen = ["127.0.0.1:1", "[::1]:1"]\n')
    assert load({}, env, None).settings.listen == expected
    user_file.write_text("listen = 8081\n")
    assert load({}, env, None).settings.listen == (HostPort("127.0.0.1", 8081),)


def test_the_proxy_port_sets_only_the_port(env):
    more = env | {"DBPROXY_PROXY_PORT": "9999"}
    config = load({}, more, None)
    assert config.settings.listen == (HostPort("127.0.0.1", 9999),)
    assert str(config.origin("listen")) == "environment (DBPROXY_PROXY_PORT)"
    both = load({}, more | {"DBPROXY_LISTEN": "127.0.0.1:1,[::1]:1,127.0.0.1:2"}, None).settings.listen
    assert both == (HostPort("127.0.0.1", 9999), HostPort("::1", 9999), HostPort("127.0.0.1", 2))
    assert load({"listen": "127.0.0.1:7"}, more, None).settings.listen == (HostPort("127.0.0.1", 7),)
    assert problems({}, env | {"DBPROXY_PROXY_PORT": "70000"}, None) == [
        "DBPROXY_PROXY_PORT: expected a port from 0 to 65535"
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("API.Anthropic.COM.", ("api.anthropic.com",)),
        ("a.example, b.example,,a.example", ("a.example", "b.example")),
        ("[::1],10.0.0.1", ("::1", "10.0.0.1")),
    ],
)
def test_intercepted_names_have_one_spelling(env, text, value):
    assert one("intercept", text, env) == value


@pytest.mark.parametrize(
    "text", ["https://x", "x:443", "*.example.com", "a b", "-x", "x" * 64, "a..b", "a/b", "ä.example"]
)
def test_names_that_cannot_be_intercepted(env, text):
    (problem,) = problems({}, env | {"DBPROXY_INTERCEPT": text}, None)
    assert problem.startswith("DBPROXY_INTERCEPT: ")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("https://gateway.example/anthropic/", "https://gateway.example/anthropic"),
        ("http://127.0.0.1:9", "http://127.0.0.1:9"),
        ("https://[::1]:9/x", "https://[::1]:9/x"),
    ],
)
def test_upstreams(env, text, value):
    assert one("upstream_url", text, env) == value


@pytest.mark.parametrize(
    "text",
    ["localhost:1234", "ftp://x", "https://", "https://u:pass@x", "https://x?y", "https://x#y", "https://x:99999"],
)
def test_upstreams_that_make_no_sense(env, text):
    (problem,) = problems({}, env | {"DBPROXY_UPSTREAM_URL": text}, None)
    assert problem.startswith("DBPROXY_UPSTREAM_URL: expected a URL (https:// or http://)")
    assert "pass@" not in problem


def test_silence_upstream_is_never_cut_under_15_minutes(env):
    assert one("upstream_silence_timeout", "900", env) == 900
    (problem,) = problems({}, env | {"DBPROXY_UPSTREAM_SILENCE_TIMEOUT": "899"}, None)
    assert "from 900" in problem


def test_numbers_are_checked_not_guessed(env, user_file):
    assert one("pool_size", "1_000", env) == 1000
    for text in ("1.5", "many", "-1", "0x10"):
        assert problems({}, env | {"DBPROXY_POOL_SIZE": text}, None)
    user_file.write_text("pool_size = true\nconnect_timeout = [1]\nlog_level = 3\ncontrol_token = 7\nlabels = 1\n")
    assert len(problems({}, env, None)) == 5


def test_paths_start_at_their_own_file_or_at_the_working_directory(env, home, user_file):
    user_file.write_text('upstream_ca = "corp.pem"\ndata_dir = "~/here"\n')
    settings = load({}, env, None).settings
    assert settings.upstream_ca == user_file.parent / "corp.pem"
    assert settings.data_dir == home / "here"
    assert load({"data_dir": "there"}, env, home).settings.data_dir == home / "there"
    assert "absolute" in problems({"data_dir": "there"}, env, None)[0]


def test_all_problems_are_told_at_once_each_with_its_place(env, user_file):
    user_file.write_text('log_levle = "info"\nbuffer = "maybe"\n[plugins]\ndisabld = []\n')
    found = problems({"swap_threshold": "2000"}, env | {"DBPROXY_LISEN": "1", "DBPROXY_POOL_SIZE": "x"}, None)
    assert found == [
        f"{user_file}: unknown setting log_levle; did you mean log_level?",
        f"{user_file}: buffer: expected one of on, observe, off",
        f"{user_file}: unknown setting plugins.disabld; did you mean plugins.disabled?",
        "DBPROXY_POOL_SIZE: expected a whole number from 0 to 10000",
        "DBPROXY_LISEN: unknown setting in the environment; did you mean DBPROXY_LISTEN?",
        "--swap-threshold: expected a fraction (0.7) or percentage (70 or 70%) above 0 and not above 100%",
    ]


def test_when_asked_not_to_be_strict_the_rest_still_holds(env):
    config = load({"nonsense": "1"}, env | {"DBPROXY_BUFFER": "x", "DBPROXY_LOG_LEVEL": "error"}, None, strict=False)
    assert len(config.problems) == 2
    assert (config.settings.buffer, config.settings.log_level) == ("on", "ERROR")


def test_variables_that_we_set_for_children_are_known(env):
    load({}, env | {"DBPROXY_ACTIVE": "1", "DBPROXY_URL": "http://127.0.0.1:8080"}, None)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"buffer = \n", "not valid TOML: Invalid value (at line 1, column 10)"),
        (b"a = 1\na = 2\n", "not valid TOML: Cannot overwrite a value (at line 2"),
        (b"\xff\xfe", "not UTF-8 text"),
        (b"#" * (MAX_FILE_BYTES + 1), "cannot be read: larger than 1 MiB"),
        (b"x = " + b"[" * 100_000, "not valid TOML"),
    ],
)
def test_a_broken_user_file_is_named_with_the_line_and_what_to_do(env, user_file, content, words):
    user_file.write_bytes(content)
    (problem,) = problems({}, env, None)
    assert problem.startswith(f"{user_file}: ")
    assert words in problem


def test_a_user_file_that_cannot_be_read_is_said(env, user_file):
    user_file.mkdir()
    (problem,) = problems({}, env, None)
    assert problem.startswith(f"{user_file}: cannot be read: ")


def test_a_byte_order_mark_is_no_problem(env, user_file):
    user_file.write_bytes(b'\xef\xbb\xbfbuffer = "off"\n')
    assert load({}, env, None).settings.buffer == "off"


# The project file comes with a clone.


def test_an_untrusted_project_file_may_set_thresholds_mode_and_labels(env, project):
    (project / "dbproxy.toml").write_text(
        'checkpoint_threshold = "50%"\nswap_threshold = 0.9\nbuffer = "observe"\ncompact_trigger_tokens = 7\n'
        '[labels]\nteam = "blue"\n'
    )
    config = load({}, env, project)
    settings = config.settings
    assert (settings.checkpoint_threshold, settings.swap_threshold, settings.buffer) == (0.5, 0.9, "observe")
    assert settings.labels == (("team", "blue"),)
    assert config.refused == ()
    assert config.project is not None
    assert config.project.notice == ""


def test_nothing_else_in_an_untrusted_project_file_has_an_effect(env, project):
    allowed = {"checkpoint_threshold", "swap_threshold", "buffer", "compact_trigger_tokens", "labels", "routes"}
    lines = {
        "listen": '"0.0.0.0:1"', "dashboard_port": "1", "data_dir": '"/x"', "intercept": '["x.example"]',
        "upstream_url": '"https://evil.example"', "upstream_ca": '"/x.pem"', "parent_proxy": '"http://evil.example:1"',
        "no_proxy": '["*"]', "passthrough": "true", "early_swap": "true", "log_level": '"DEBUG"',
        "control_token": '"chosen-by-the-clone"',
    }  # fmt: skip
    names = {spec.key for spec in core_table().specs} - allowed
    text = "".join(f"{name} = {lines.get(name, '1000')}\n" for name in sorted(names) if "." not in name)
    (project / "dbproxy.toml").write_text(
        f'{text}future = 1\n[plugins]\ndisabled = ["x"]\n[plugins.thing]\nurl = "https://evil.example"\n'
    )
    config = load({}, env, project)
    assert config.settings == load({}, env, None).settings
    assert dict(config.plugins) == {}
    assert {refusal.key for refusal in config.refused} == names | {"future", "plugins.thing"}
    assert config.project is not None
    assert "upstream_url" in config.project.notice
    assert config.project.notice.endswith(f"dbproxy config trust {project}")
    assert "evil" not in config.project.notice


@pytest.mark.parametrize(
    "content",
    [
        b"x = ",
        b"\xff",
        b"checkpoint_threshold = 7000\n",
        b"checkpoint_threshold = 0.99\n",
        b"swap_threshold = 0.1\n",
        b"labels = 3",
    ],
)
def test_a_broken_project_file_never_stops_a_launch(env, project, content):
    (project / "dbproxy.toml").write_bytes(content)
    config = load({}, env, project)
    assert config.settings == load({}, env, None).settings
    assert config.refused
    assert {origin.source for origin in config.origins.values()} == {"default"}
    assert config.project is not None
    assert config.project.notice


def test_trust_lets_everything_through_until_the_file_changes(env, project, home):
    file = project / "dbproxy.toml"
    file.write_text("passthrough = true\n[plugins.thing]\nx = 1\n")
    trusted = trust_project(project, env)
    config = load({}, env, project)
    assert config.settings.passthrough is True
    assert config.plugin("thing") == {"x": 1}
    assert config.project == trusted
    record = home / ".config" / "dbproxy" / "trusted.json"
    assert stat.S_IMODE(record.stat().st_mode) == 0o600
    file.write_text("passthrough = true \n")
    config = load({}, env, project)
    assert config.settings.passthrough is False
    assert [refusal.key for refusal in config.refused] == ["passthrough"]


def test_trust_is_for_one_place(env, project, home):
    text = "passthrough = true\n"
    (project / "dbproxy.toml").write_text(text)
    trust_project(project, env)
    other = home / "other"
    other.mkdir()
    (other / "dbproxy.toml").write_text(text)
    assert load({}, env, other).settings.passthrough is False
    (home / "link").symlink_to(project)
    assert load({}, env, home / "link").settings.passthrough is True


def test_errors_in_a_trusted_file_are_errors(env, project):
    (project / "dbproxy.toml").write_text("strange = 1\n")
    trust_project(project, env)
    assert problems({}, env, project) == [f"{project / 'dbproxy.toml'}: unknown setting strange"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"files": 3}', '{"files": {"x": 1}}'])
def test_a_broken_trust_record_trusts_nothing(env, project, home, content):
    (project / "dbproxy.toml").write_text("passthrough = true\n")
    (home / ".config" / "dbproxy" / "trusted.json").write_text(content)
    assert load({}, env, project).settings.passthrough is False
    trust_project(project, env)
    assert load({}, env, project).settings.passthrough is True


def test_what_cannot_be_trusted(env, project):
    with pytest.raises(ConfigError, match="cannot read"):
        trust_project(project, env)
    (project / "dbproxy.toml").write_text("x = ")
    with pytest.raises(ConfigError, match="not valid TOML"):
        trust_project(project, env)


def test_where_a_project_file_is_looked_for(env, project, home):
    deep = project / "a" / "b"
    deep.mkdir(parents=True)

    def seen(cwd):
        found = load({}, env, cwd).project
        return found.file if found else None

    (home / "dbproxy.toml").write_text("")
    assert seen(deep) is None  # the work tree's root ends the search, and the home is never asked from below
    assert seen(home) == home / "dbproxy.toml"
    (project / "dbproxy.toml").write_text("")
    assert seen(deep) == project / "dbproxy.toml"
    (project / "a" / "dbproxy.toml").write_text("")
    assert seen(deep) == project / "a" / "dbproxy.toml"
    assert load({}, env, None).project is None
    (project / ".git").rmdir()
    (project / "a" / "dbproxy.toml").unlink()
    (project / "dbproxy.toml").unlink()
    assert seen(deep) is None


def test_a_fifo_in_a_clone_does_not_hang(env, project, user_file):
    os.mkfifo(project / "dbproxy.toml")
    assert load({}, env, project).project is None
    os.mkfifo(user_file)
    assert "not a regular file" in problems({}, env, None)[0]


# The user's own proxy.


def test_the_users_proxy_is_taken_over_unless_something_is_said_to_us(env, user_file):
    more = env | {"HTTPS_PROXY": "http://corp:3128", "NO_PROXY": "localhost,.corp"}
    config = load({}, more, None)
    assert config.settings.parent_proxy == "http://corp:3128"
    assert config.settings.no_proxy == ("localhost", ".corp")
    assert str(config.origin("parent_proxy")) == "environment (HTTPS_PROXY)"
    assert load({}, more | {"https_proxy": "http://lower:1"}, None).settings.parent_proxy == "http://lower:1"
    user_file.write_text('parent_proxy = "http://mine:1"\n')
    assert load({}, more, None).settings.parent_proxy == "http://mine:1"


def test_inside_our_own_launch_we_are_not_our_own_parent(env):
    more = env | {"DBPROXY_URL": "http://127.0.0.1:8080", "HTTPS_PROXY": "http://id:secret@127.0.0.1:8080"}
    assert load({}, more, None).settings.parent_proxy is None
    assert load({}, more | {"ALL_PROXY": "http://corp:1"}, None).settings.parent_proxy == "http://corp:1"


# Secrets.


def test_a_secret_may_be_a_reference(env, tmp_path, user_file):
    assert one("control_token", "plain-token", env) == "plain-token"
    assert one("control_token", "env:MINE", env | {"MINE": "from-the-environment"}) == "from-the-environment"
    (tmp_path / "token").write_text("from-a-file\n")
    assert one("control_token", f"file:{tmp_path / 'token'}", env) == "from-a-file"
    (user_file.parent / "token").write_text("beside-it\n")
    user_file.write_text('control_token = "file:token"\n')
    assert load({}, env, None).settings.control_token == "beside-it"


@pytest.mark.parametrize(
    "text", ["env:NOWHERE", "file:/nowhere/at/all", "short", "has a blank in it", "ünicode-secret"]
)
def test_a_secret_that_cannot_be_used_is_named_and_not_repeated(env, text):
    (problem,) = problems({}, env | {"DBPROXY_CONTROL_TOKEN": text}, None)
    assert problem.startswith("DBPROXY_CONTROL_TOKEN: ")
    assert ":" in text or text not in problem


def test_no_secret_in_any_representation(env):
    more = env | {"DBPROXY_CONTROL_TOKEN": "open-sesame", "DBPROXY_PARENT_PROXY": "http://u:open-sesame@corp:1"}
    config = load({}, more, None)
    assert "open-sesame" not in repr(config)
    for spec in config.table.specs:
        assert "open-sesame" not in spec.kind.text(config.value(spec))


# Contradictions.


def test_the_checkpoint_comes_before_the_swap(env):
    (problem,) = problems({}, env | {"DBPROXY_SWAP_THRESHOLD": "0.5"}, None)
    assert problem == (
        "checkpoint_threshold (0.7, default) is above swap_threshold (0.5, environment (DBPROXY_SWAP_THRESHOLD)); "
        "the checkpoint must come first"
    )


def test_two_listeners_need_two_ports(env):
    assert "choose another" in problems({"dashboard_port": "8080"}, env, None)[0]


# Launch scopes.


def test_launch_values_survive_json_and_leave_process_settings_alone(env, tmp_path):
    cli = {
        "passthrough": True, "labels": "a=b,c=d", "upstream_ca": str(tmp_path / "x.pem"), "no_proxy": "a,b",
        "checkpoint_threshold": "0.123456789", "listen": "127.0.0.1:5",
    }  # fmt: skip
    settings = load(cli, env, None).settings
    kept = json.loads(json.dumps(settings.launch_values()))
    base = load({}, env, None).settings
    merged = base.with_launch_values(kept)
    assert merged == dataclasses.replace(settings, listen=base.listen)
    assert base.with_launch_values({"listen": ["0.0.0.0:1"], "from_the_future": 1}) == base
    with pytest.raises(ValueError):
        base.with_launch_values({"buffer": "sideways"})


# The table.


def test_plugins_sections_pass_through_until_their_settings_are_declared(env, user_file):
    user_file.write_text('[plugins.thing]\nspeed = "3"\nother = [1]\n')
    assert load({}, env, None).plugin("thing") == {"speed": "3", "other": [1]}
    spec = plugin_setting("thing", "speed", values.integer(1, 9), 5, help="How fast.")
    table = core_table().extended([spec])
    assert problems({}, env, None, table=table) == [f"{user_file}: unknown setting plugins.thing.other"]
    user_file.write_text('[plugins.thing]\nspeed = "3"\n[plugins.stranger]\nx = 1\n')
    config = load({}, env, None, table=table)
    assert config.plugin("thing") == {"speed": 3}
    assert config.plugin("stranger") == {"x": 1}
    assert config.value(spec) == 3
    assert load({}, env | {"DBPROXY_THING_SPEED": "4"}, None, table=table).plugin("thing") == {"speed": 4}
    user_file.unlink()
    assert load({}, env, None, table=table).plugin("thing") == {"speed": 5}
    assert load({}, env, None).plugin("thing") == {}


def test_a_plugin_may_allow_its_setting_to_projects(env, project):
    spec = plugin_setting("thing", "mode", values.choice("a", "b"), "a", help="x", project="allowed")
    other = plugin_setting("thing", "url", values.url("https"), None, help="x")
    (project / "dbproxy.toml").write_text('[plugins.thing]\nmode = "b"\nurl = "https://evil.example"\n')
    config = load({}, env, project, table=core_table().extended([spec, other]))
    assert config.plugin("thing") == {"mode": "b", "url": None}
    assert [refusal.key for refusal in config.refused] == ["plugins.thing.url"]


def test_every_field_is_a_documented_setting_with_unique_names():
    specs = core_table().specs
    assert [spec.name for spec in specs] == [field.name for field in dataclasses.fields(Settings)]
    variables = [name for spec in specs for name in spec.env]
    assert len(set(variables)) == len(variables)
    assert len({spec.option for spec in specs}) == len(specs)
    for spec in specs:
        assert spec.help.endswith(".")
        assert spec.env[0] == f"DBPROXY_{spec.name.upper()}"
    assert {spec.name for spec in specs if spec.secret} == {"client_key", "control_token", "parent_proxy"}


def test_each_value_has_the_type_that_its_field_promises(env):
    hints = typing.get_type_hints(Settings, localns={"Path": Path})
    settings = load({}, env, None).settings
    for name, hint in hints.items():
        value = getattr(settings, name)
        plain = {int: int, str: str, bool: bool, float: float, Path: Path}.get(hint)
        if plain is not None:
            assert type(value) is plain or isinstance(value, Path), name
        elif value is not None:
            assert isinstance(value, Section if hint is Section else tuple), name


def test_settings_can_be_made_for_tests(tmp_path, env):
    assert Settings(data_dir=tmp_path).listen == (HostPort("127.0.0.1", 8080),)
    assert with_settings(load({}, env, None), buffer="off").settings.buffer == "off"


raw = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@given(raw)
def test_no_value_makes_any_kind_fail_otherwise_than_by_saying_so(value):
    for spec in core_table().specs:
        try:
            parsed = spec.kind.parse(value, values.Context(Path("/base"), {}))
        except ValueError:
            continue
        else:
            spec.kind.text(parsed)
            json.dumps(spec.kind.encode(parsed))


@given(
    st.binary(max_size=60), st.sampled_from(["", "checkpoint_threshold = ", "labels = ", "plugins = ", "[plugins]\n"])
)
def test_no_project_file_raises(tmp_path_factory, content, start):
    folder = tmp_path_factory.getbasetemp() / "fuzzed"
    folder.mkdir(exist_ok=True)
    (folder / "dbproxy.toml").write_bytes(start.encode() + content)
    load({}, {"HOME": str(folder.parent)}, folder)
