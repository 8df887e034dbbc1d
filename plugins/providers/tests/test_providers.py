"""The plugin as the proxy uses it: which providers there are, what each declines, and the requests that they make."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from dbproxy_providers import Providers
from dbproxy_providers.servers import SERVERS

from dbproxy.api import App, ProviderCall
from dbproxy.api.codecs import Translation, Unroutable, parse_target, read_request
from dbproxy.api.dialects import CHAT, GEMINI, NATIVE, RESPONSES

if TYPE_CHECKING:
    from pathlib import Path

    from dbproxy.api import Provider
    from dbproxy.api.codecs import Request

TOOL = {"name": "Read", "description": "Reads.", "input_schema": {"type": "object", "properties": {}}}
PICTURE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
PDF = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "AAAA"}}
ACCOUNT = "11111111-2222-3333-4444-555555555555"
USER = json.dumps({"device_id": "d" * 64, "account_uuid": ACCOUNT, "session_id": "s" * 36, "more": "x" * 60})


class Settings:
    """What the running proxy offers: its settings, as they are at the moment."""

    def __init__(self, providers: object = None) -> None:
        self.values: dict[str, object] = {} if providers is None else {"providers": providers}

    def settings(self, exchange: object) -> dict[str, object]:
        assert exchange is None
        return self.values


class Proxy:
    """The plugin in an environment, with what it emitted."""

    def __init__(self, tmp_path: Path, tables: object = None, env: dict[str, str] | None = None) -> None:
        self.env = {} if env is None else env
        self.plugin = Providers(lambda: self.env)
        self.settings = Settings(tables)
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.app = App("1.2.3", tmp_path, self._emit, self.settings)  # type: ignore[arg-type]

    def _emit(self, event: str, *, level: str = "info", **fields: object) -> None:
        self.events.append((event, {"level": level, **fields}))

    def __call__(self, name: str) -> Provider:
        return {provider.name: provider for provider in self.plugin.providers(self.app)}[name]


@pytest.fixture
def proxy(tmp_path: Path) -> Any:
    return lambda tables=None, **env: Proxy(tmp_path, tables, env)


def body(**changes: object) -> dict[str, Any]:
    found: dict[str, Any] = {
        "model": "claude-opus-5-5",
        "max_tokens": 64000,
        "messages": [{"role": "user", "content": "hello"}],
        "stream": True,
        **changes,
    }
    return {name: value for name, value in found.items() if value is not None}


def request(**changes: object) -> Request:
    return read_request(json.dumps(body(**changes)).encode())


def call(provider: Provider, model: str, **changes: object) -> tuple[ProviderCall, Translation]:
    asked = request(**changes)
    can = provider.capabilities(model)
    translation = Translation(asked.model, model, "routed_x", capabilities=can, family=can.family or provider.name)
    return provider.call(asked, translation), translation


def sent(provider: Provider, model: str, **changes: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(call(provider, model, **changes)[0].body)
    return found


# ---- which there are


def test_all_known_servers_are_there_without_a_setting(proxy):
    here = proxy()
    assert [provider.name for provider in here.plugin.providers(here.app)] == list(SERVERS)
    assert here.events == []
    health = here.plugin.health()
    assert health["anthropic"] == health["ollama"] == "ready"
    assert health["openai"] == "no key: set OPENAI_API_KEY for the proxy, or key_env or key_file in [providers.openai]"
    assert "GEMINI_API_KEY or GOOGLE_API_KEY" in health["gemini"]


@pytest.mark.parametrize(
    ("name", "variable"),
    [
        ("openai", "OPENAI_API_KEY"),
        ("gemini", "GEMINI_API_KEY"),
        ("gemini", "GOOGLE_API_KEY"),
        ("openrouter", "OPENROUTER_API_KEY"),
        ("deepseek", "DEEPSEEK_API_KEY"),
        ("moonshot", "MOONSHOT_API_KEY"),
        ("zai", "ZAI_API_KEY"),
        ("minimax", "MINIMAX_API_KEY"),
        ("ollama-cloud", "OLLAMA_API_KEY"),
    ],
)
def test_case_39_a_provider_is_unready_until_its_key_is_there(proxy, name, variable):
    here = proxy()
    provider = here(name)
    assert variable in provider.unready()
    with pytest.raises(Unroutable, match="no key"):
        call(provider, "any-model")
    here.env[variable] = "test-key"
    assert provider.unready() == ""
    assert call(provider, "any-model", max_tokens=100)[0].secrets == ("test-key",)
    del here.env[variable]
    assert provider.unready()


def test_case_39_the_clients_credential_is_in_no_call(proxy):
    """A provider sees the body alone; the client's own variables are none of its places either."""
    here = proxy(
        {"gateway": {"kind": "messages", "base_url": "https://gw.example"}, "other": {"base_url": "https://o.example"}},
        ANTHROPIC_API_KEY="the-clients-own",
        ANTHROPIC_AUTH_TOKEN="the-clients-own",
        CLAUDE_CODE_OAUTH_TOKEN="the-clients-own",
    )
    for provider in here.plugin.providers(here.app):
        if not provider.unready():
            made, _ = call(provider, "some-model")
            assert b"the-clients-own" not in b"\n".join(made.fields.lines) + made.body, provider.name
            assert made.secrets == ()


def test_a_reload_needs_no_restart(proxy):
    here = proxy({"x": {"base_url": "https://one.example"}})
    assert call(here("x"), "m")[0].url == "https://one.example/v1/chat/completions"
    here.settings.values["providers"] = {"x": {"base_url": "https://two.example"}, "y": {"base_url": "three.example"}}
    assert call(here("x"), "m")[0].url == "https://two.example/v1/chat/completions"
    assert call(here("y"), "m")[0].url == "https://three.example/v1/chat/completions"
    here.settings.values.clear()
    assert [provider.name for provider in here.plugin.providers(here.app)] == list(SERVERS)


def test_a_bad_provider_harms_no_other_and_its_reason_is_shown(proxy):
    here = proxy({"bad": {"base_url": "ftp://x"}, "worse": 7, "good": {"base_url": "https://g.example"}})
    assert here("good").unready() == ""
    assert "only http:// and https://" in here("bad").unready()
    with pytest.raises(Unroutable, match="only http"):
        call(here("bad"), "m")
    assert here("worse").capabilities("m").context == 0
    shown = {fields["provider"]: fields["reason"] for event, fields in here.events if event == "provider_unready"}
    assert set(shown) == {"bad", "worse"}
    assert here.plugin.health()["bad"] == shown["bad"]
    assert here.plugin.health()["good"] == "ready"


def test_settings_that_are_no_table_are_as_none(proxy, tmp_path):
    here = proxy("nonsense")
    assert [provider.name for provider in here.plugin.providers(here.app)] == list(SERVERS)
    alone = App("1.2.3", tmp_path, here._emit, None)
    assert [provider.name for provider in here.plugin.providers(alone)] == list(SERVERS)


def test_a_table_takes_the_place_of_a_known_server(proxy):
    here = proxy({"OpenAI": {"base_url": "http://localhost:1234"}})
    names = [provider.name for provider in here.plugin.providers(here.app)]
    assert "OpenAI" in names
    assert "openai" not in names


def test_what_is_unwise_is_said_in_the_log(proxy, tmp_path):
    path = tmp_path / "key"
    path.write_text("test-key")
    path.chmod(0o644)
    here = proxy(
        {
            "openai": {"key_file": str(path)},
            "far": {"base_url": "http://far.example", "key_env": "FAR_KEY"},
            "near": {"base_url": "http://10.0.0.7", "key_env": "FAR_KEY"},
            "open": {"base_url": "http://open.example"},
        },
        FAR_KEY="far-key",
    )
    here("openai")
    said = {fields["provider"]: fields["reason"] for event, fields in here.events if event == "provider_unwise"}
    assert set(said) == {"openai", "far"}
    assert "chmod 600" in said["openai"]
    assert "https://" in said["far"]
    assert "key" not in json.dumps(said).replace("key's file", "").replace("its key", "").replace(str(path), "")
    assert here("openai").unready() == ""


# ---- the head


@pytest.mark.parametrize(
    ("name", "model", "field", "value"),
    [
        ("openai", "gpt-4o", b"authorization", b"Bearer k"),
        ("gemini", "gemini-2.5-pro", b"x-goog-api-key", b"k"),
        ("deepseek", "deepseek-v4-pro", b"x-api-key", b"k"),
        ("openrouter", "openai/gpt-6-sol", b"authorization", b"Bearer k"),
        ("anthropic", "claude-haiku-4-5", b"x-api-key", b"k"),
        ("other", "m", b"authorization", b"Bearer k"),
        ("gateway", "m", b"authorization", b"Bearer k"),
        ("ollama", "m", b"authorization", b"Bearer k"),
    ],
)
def test_case_40_a_head_is_made_from_scratch(proxy, name, model, field, value):
    tables = {
        "openai": {"key_env": "K"},
        "gemini": {"key_env": "K"},
        "deepseek": {"key_env": "K"},
        "openrouter": {"key_env": "K"},
        "anthropic": {"key_env": "K"},
        "other": {"base_url": "https://o.example", "key_env": "K"},
        "gateway": {"kind": "messages", "base_url": "https://gw.example", "key_env": "K"},
        "ollama": {"key_env": "K"},
    }
    here = proxy(tables, K="k")
    fields = call(here(name), model)[0].fields
    assert fields.get(field) == value
    assert fields.get(b"user-agent") == b"dbproxy/1.2.3"
    assert fields.get(b"accept") == b"text/event-stream"
    known = {b"content-type", b"accept", b"user-agent", field}
    if here(name).capabilities(model).api == "messages":
        known.add(b"anthropic-version")
        assert fields.get(b"anthropic-version") == b"2023-06-01"
    assert set(fields.names) == known
    assert call(here(name), model, stream=False)[0].fields.get(b"accept") == b"application/json"


@pytest.mark.parametrize("name", ["ollama", "lmstudio", "llama.cpp", "vllm"])
def test_a_server_on_this_machine_gets_no_key(proxy, name):
    provider = proxy(OLLAMA_API_KEY="k", OPENAI_API_KEY="k")(name)
    made, _ = call(provider, "some-model")
    assert b"authorization" not in made.fields.names
    assert made.secrets == ()
    assert made.url.endswith("/v1/messages")
    assert made.url.startswith("http://localhost:")


def test_headers_of_ones_own_take_the_place_of_ours(proxy):
    table = {
        "base_url": "https://o.example",
        "headers": {"Api-Key": "${AZURE}", "X-Team": "blue", "User-Agent": "mine"},
    }
    here = proxy({"azure": table}, AZURE="azure-key")
    made, _ = call(here("azure"), "m")
    assert made.fields.get(b"api-key") == b"azure-key"
    assert made.fields.get(b"x-team") == b"blue"
    assert made.fields.get_all(b"user-agent") == [b"mine"]
    assert made.secrets == ("azure-key",)
    here.env.clear()
    assert here("azure").unready() == "the header Api-Key: the variable AZURE is not set"


def test_a_credential_in_a_header_makes_a_key_unnecessary(proxy):
    here = proxy({"openai": {"headers": {"authorization": "Bearer ${SESSION}"}}}, SESSION="session-key")
    assert here("openai").unready() == ""
    assert call(here("openai"), "gpt-4o")[0].fields.get_all(b"authorization") == [b"Bearer session-key"]


# ---- addresses


def test_case_38_the_variable_of_seed_001_moves_openai(proxy):
    here = proxy(OPENAI_API_KEY="k", OPENAI_BASE_URL="api.gateway.example/v1/")
    assert call(here("openai"), "gpt-4o")[0].url == "https://api.gateway.example/v1/chat/completions"
    here.env["OPENAI_BASE_URL"] = "ftp://x"
    assert here("openai").unready().startswith("OPENAI_BASE_URL: the address begins with ftp://")
    assert here("openai").capabilities("gpt-4o").api == "chat"
    here = proxy(
        {"openai": {"base_url": "https://table.example"}}, OPENAI_API_KEY="k", OPENAI_BASE_URL="https://no.example"
    )
    assert call(here("openai"), "gpt-4o")[0].url == "https://table.example/v1/chat/completions"


def test_an_address_of_ones_own_wants_no_key(proxy):
    here = proxy({"openai": {"base_url": "http://localhost:1234"}, "work": {"kind": "openai"}})
    assert here("openai").unready() == ""
    assert "OPENAI_API_KEY" in here("work").unready()


@pytest.mark.parametrize(
    ("name", "table", "url", "codec"),
    [
        ("openrouter", {}, "https://openrouter.ai/api/v1/messages", NATIVE),
        ("openrouter", {"api": "chat"}, "https://openrouter.ai/api/v1/chat/completions", CHAT),
        ("openrouter", {"api": "responses"}, "https://openrouter.ai/api/v1/responses", RESPONSES),
        ("deepseek", {"kind": "compatible"}, "https://api.deepseek.com/v1/chat/completions", CHAT),
        ("zai", {"api": "chat"}, "https://api.z.ai/api/paas/v4/chat/completions", CHAT),
        ("llama.cpp", {"api": "chat"}, "http://localhost:8080/v1/chat/completions", CHAT),
        ("ollama", {"base_url": "gpu-box:11434"}, "http://gpu-box:11434/v1/messages", NATIVE),
        (
            "gemini",
            {"kind": "compatible"},
            "https://generativelanguage.googleapis.com/v1beta/openai/chat/completions",
            CHAT,
        ),
        (
            "groq",
            {"base_url": "https://api.groq.com/openai/v1"},
            "https://api.groq.com/openai/v1/chat/completions",
            CHAT,
        ),
        ("mine", {"base_url": "localhost:4000", "api": "responses"}, "http://localhost:4000/v1/responses", RESPONSES),
    ],
)
def test_case_38_each_dialect_has_its_address(proxy, name, table, url, codec):
    here = proxy({name: {**table, "key_env": "K"}}, K="k")
    made, _ = call(here(name), "some-model")
    assert (made.url, made.codec) == (url, codec)


def test_case_38_a_gemini_request(proxy):
    here = proxy(GEMINI_API_KEY="k")
    made, _ = call(here("gemini"), "models/gemini-3.8-flash")
    base = "https://generativelanguage.googleapis.com/v1beta/models/gemini-3.8-flash"
    assert (made.url, made.codec) == (f"{base}:streamGenerateContent?alt=sse", GEMINI)
    assert call(here("gemini"), "gemini-3.8-flash", stream=False)[0].url == f"{base}:generateContent"


# ---- models and dialects


@pytest.mark.parametrize("text", ["gpt-5[1m]", "openai:gpt-5", "openai,gpt-5", "openai/gpt-5"])
def test_case_37_every_spelling_asks_the_same_model(proxy, text):
    name, model = parse_target(text, SERVERS)
    provider = proxy(OPENAI_API_KEY="k")(name)
    assert sent(provider, model)["model"] == "gpt-5"
    # A route of somebody else's plugin may still bear the client's mark.
    assert sent(provider, f"{model}[1m]")["model"] == "gpt-5"


@pytest.mark.parametrize("model", ["gpt-5.4", "gpt-5.4-mini", "gpt-5.5", "gpt-5.6-terra", "gpt-6-sol"])
@pytest.mark.parametrize("effort", ["low", "max", None])
def test_case_27_tools_and_effort_go_to_responses(proxy, model, effort):
    provider = proxy(OPENAI_API_KEY="k")("openai")
    config = {"effort": effort} if effort else None
    made, translation = call(provider, model, tools=[TOOL], thinking={"type": "adaptive"}, output_config=config)
    assert (made.url, made.codec) == ("https://api.openai.com/v1/responses", RESPONSES)
    assert json.loads(made.body)["reasoning"]["effort"] in translation.capabilities.efforts
    # Even unasked: the newest think by default, and Chat refuses tools then (litellm PR#34569).
    assert call(provider, model, tools=[TOOL])[0].codec is RESPONSES
    assert call(provider, model, thinking={"type": "adaptive"})[0].codec is CHAT


def test_case_27_others_stay_on_chat(proxy):
    provider = proxy(OPENAI_API_KEY="k")("openai")
    made, _ = call(provider, "gpt-5", tools=[TOOL], thinking={"type": "adaptive"}, output_config={"effort": "high"})
    assert (made.url, made.codec) == ("https://api.openai.com/v1/chat/completions", CHAT)
    assert json.loads(made.body)["reasoning_effort"] == "high"


def test_case_27_who_is_told_a_dialect_keeps_to_it(proxy):
    here = proxy({"openai": {"api": "chat"}}, OPENAI_API_KEY="k")
    assert call(here("openai"), "gpt-5.4", tools=[TOOL], thinking={"type": "adaptive"})[0].codec is CHAT
    here = proxy({"openai": {"api": "responses"}}, OPENAI_API_KEY="k")
    assert call(here("openai"), "gpt-4o")[0].codec is RESPONSES
    here = proxy({"openai": {"models": {"gpt-4*": {"api": "responses"}}}}, OPENAI_API_KEY="k")
    assert call(here("openai"), "gpt-4o")[0].codec is RESPONSES
    assert call(here("openai"), "gpt-5")[0].codec is CHAT
    # Somebody else's server speaks Chat, whatever the model would do at home.
    here = proxy({"openai": {"base_url": "https://gw.example/v1"}}, OPENAI_API_KEY="k")
    assert call(here("openai"), "gpt-5.4", tools=[TOOL], thinking={"type": "adaptive"})[0].codec is CHAT
    assert call(here("openai"), "gpt-5-codex")[0].codec is CHAT


def test_models_of_responses_alone_and_searches_go_there(proxy):
    provider = proxy(OPENAI_API_KEY="k")("openai")
    assert call(provider, "gpt-5.3-codex")[0].codec is RESPONSES
    search = {"type": "web_search_20250305", "name": "web_search"}
    assert provider.decline(request(tools=[search]), "gpt-4o") == ""
    made, _ = call(provider, "gpt-4o", tools=[search])
    assert made.codec is RESPONSES
    assert json.loads(made.body)["tools"] == [{"type": "web_search"}]


def test_a_search_is_declined_where_the_dialect_has_none(proxy):
    search = {"type": "web_search_20250305", "name": "web_search"}
    for table in ({"api": "chat"}, {"base_url": "https://gw.example/v1"}):
        provider = proxy({"openai": table}, OPENAI_API_KEY="k")("openai")
        assert "searches the web" in provider.decline(request(tools=[search]), "gpt-4o"), table
    table = {"base_url": "https://gw.example/v1", "api": "responses", "models": {"gpt-4o": {"web_search": True}}}
    assert proxy({"openai": table}, OPENAI_API_KEY="k")("openai").decline(request(tools=[search]), "gpt-4o") == ""


def test_case_24_what_gpt_4o_can_write_is_all_that_is_asked_for(proxy):
    made, translation = call(proxy(OPENAI_API_KEY="k")("openai"), "gpt-4o", max_tokens=64000)
    assert json.loads(made.body)["max_tokens"] == 16384
    assert any("16384" in note for note in translation.notes)


def test_case_23_what_gpt_5_refuses_is_not_sent(proxy):
    provider = proxy(OPENAI_API_KEY="k")("openai")
    found = sent(provider, "gpt-5", temperature=0.5, top_p=0.9, stop_sequences=["END"])
    assert found["max_completion_tokens"] == 64000
    assert {"max_tokens", "temperature", "top_p", "stop"}.isdisjoint(found)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("openai", "gpt-4o"),
        ("openai", "gpt-5.4"),
        ("gemini", "gemini-3.8-flash"),
        ("openrouter", "x/y"),
        ("ollama", "m"),
    ],
)
def test_case_28_and_29_nothing_of_the_client_goes_along(proxy, name, model):
    here = proxy(OPENAI_API_KEY="k", GEMINI_API_KEY="k", OPENROUTER_API_KEY="k")
    made, _ = call(
        here(name),
        model,
        system=[
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=2; cch=abcde;"},
            {"type": "text", "text": "Be."},
        ],
        metadata={"user_id": USER},
        tools=[TOOL],
        top_k=5 if name in ("openai", "ollama") else None,
        context_management={"edits": []},
        an_unknown_key={"x": 1},
    )
    found = json.loads(made.body)
    assert ACCOUNT.encode() not in made.body
    assert b"dddddddd" not in made.body
    assert b"billing" not in made.body
    assert {"context_management", "an_unknown_key"}.isdisjoint(found)
    if name == "openai":
        assert "top_k" not in found


def test_what_the_user_says_of_a_model_wins(proxy):
    here = proxy({"ollama": {"models": {"qwen3*": {"context": 32768}, "qwen3:8b": {"images": True, "context": 40960}}}})
    provider = here("ollama")
    assert provider.capabilities("qwen3:4b").context == 32768
    assert provider.capabilities("Qwen3:8B[1m]").context == 40960
    assert provider.capabilities("qwen3:8b").images
    assert not provider.capabilities("qwen3:8b").reliable_json
    assert provider.capabilities("llama4").context == 0


# ---- what stays with Claude

SERVER_TOOL = {"type": "code_execution_20250825", "name": "code_execution"}
SEARCH = {"type": "web_search_20250305", "name": "web_search"}


@pytest.mark.parametrize(
    ("name", "model", "changes", "said"),
    [
        ("openai", "gpt-4o", {}, ""),
        ("openai", "gpt-4o", {"tools": [TOOL]}, ""),
        (
            "openai",
            "gpt-4o",
            {"tools": [SERVER_TOOL]},
            "the server tool code_execution, which only Claude's own API runs",
        ),
        (
            "openai",
            "gpt-4.1-nano",
            {"tools": [SEARCH]},
            "searches the web (server tool web_search), and gpt-4.1-nano cannot",
        ),
        ("ollama", "m", {"tools": [SEARCH]}, "searches the web"),
        ("gemini", "gemini-3.8-flash", {"tools": [SEARCH]}, ""),
        (
            "openai",
            "gpt-4o",
            {"tools": [{"type": "computer_20250124", "name": "computer"}]},
            "the tool computer_20250124",
        ),
        (
            "openai",
            "gpt-4o",
            {"tools": [{"type": "bash_20250124", "name": "bash"}]},
            "which only Claude knows how to call",
        ),
        ("ollama", "m", {"messages": [{"role": "user", "content": [PICTURE]}]}, "holds pictures, and m takes none"),
        ("ollama", "qwen3-vl", {"messages": [{"role": "user", "content": [PICTURE]}]}, ""),
        ("openai", "gpt-4o", {"messages": [{"role": "user", "content": [PICTURE, PDF]}]}, ""),
        ("deepseek", "deepseek-v4-pro", {"messages": [{"role": "user", "content": [PDF]}]}, "holds documents (PDF)"),
        ("openai", "chatgpt-4o-latest", {"tools": [TOOL]}, "offers tools, and chatgpt-4o-latest calls none"),
        ("openai", "gpt-4o", {"thread": {"type": "continue", "previous_message_id": "msg_1"}}, "message thread"),
        ("openai", "gpt-4o", {"mcp_servers": [{"url": "https://m.example"}]}, "MCP servers"),
        ("openai", "gpt-4o", {"container": "c1"}, "a container of the client's own upstream"),
        (
            "openai",
            "gpt-4o",
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image", "source": {"type": "file", "file_id": "f"}}]}
                ]
            },
            "files that were uploaded",
        ),
        (
            "gemini",
            "gemini-3.8-flash",
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "{"}]},
            "begins the answer itself (prefill)",
        ),
        ("anthropic", "claude-haiku-4-5", {"tools": [SERVER_TOOL], "container": "c1"}, ""),
        ("anthropic", "claude-haiku-4-5", {"thread": {"type": "create"}}, "message thread"),
        (
            "anthropic",
            "claude-sonnet-5-5",
            {"tools": [TOOL], "tool_choice": {"type": "any"}},
            "demands the call of a tool",
        ),
        ("own", "claude-haiku-4-5", {"tools": [SERVER_TOOL]}, ""),
        ("own", "claude-haiku-4-5", {"container": "c1"}, "a container"),
    ],
)
def test_what_cannot_be_served_faithfully_is_declined(proxy, name, model, changes, said):
    here = proxy(
        {"own": {"kind": "anthropic", "key_env": "K"}},
        OPENAI_API_KEY="k",
        GEMINI_API_KEY="k",
        DEEPSEEK_API_KEY="k",
        K="k",
    )
    reason = here(name).decline(request(**changes), model)
    assert said in reason
    assert bool(reason) == bool(said)


@pytest.mark.parametrize(
    ("name", "tables", "env", "keyless"),
    [
        ("ollama", None, {}, True),
        ("anthropic", None, {}, True),
        ("openai", None, {"OPENAI_API_KEY": "dummy-key"}, False),
        ("anthropic", {"anthropic": {"key_env": "CLAUDE_KEY"}}, {"CLAUDE_KEY": "dummy-key"}, False),
        ("mine", {"mine": {"base_url": "http://localhost:1/v1"}}, {}, True),
        ("mine", {"mine": {"base_url": "http://localhost:1/v1", "key_env": "MINE"}}, {"MINE": "dummy-key"}, False),
        ("mine", {"mine": {"base_url": "http://localhost:1", "headers": {"authorization": "${MINE}"}}}, {}, False),
    ],
)
def test_whether_a_key_of_ours_goes_along(proxy, name, tables, env, keyless):
    assert proxy(tables, **env)(name).keyless is keyless
