"""A provider as the proxy sees it: whether it can be used, what its models can do, and each request in its words.

Owns the choice of dialect, the URL and the header fields. Imports `dbproxy.api` only. Invariants: the fields are made
from scratch, so that nothing of the client's goes along; a key stands in the fields of its own call and among that
call's secrets, and nowhere else; what raises is `Unroutable` with a reason.
"""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

from dbproxy.api import Fields, ProviderCall
from dbproxy.api.models import bare_model, capabilities
from dbproxy_providers import servers, urls
from dbproxy_providers.declines import lacking, lacking_as_client, lacking_at_home
from dbproxy_providers.keys import filled
from dbproxy_providers.urls import Base, endpoint, read_base

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbproxy.api.codecs import Codec, Request, Translation
    from dbproxy.api.models import Capabilities
    from dbproxy_providers.keys import Environment
    from dbproxy_providers.tables import Table

_DIALECTS: Final = {
    servers.GEMINI: urls.GEMINI,
    servers.ANTHROPIC: urls.MESSAGES,
    servers.MESSAGES: urls.MESSAGES,
}
_OPENAI_HOST: Final = read_base(servers.SERVERS["openai"].base).host
#: The version of the Messages API whose requests the codec writes.
_MESSAGES_VERSION: Final = b"2023-06-01"


def codec_of(api: str) -> Codec:
    """The dialect of this name; all of them are loaded with the first."""
    from dbproxy.api.dialects import CHAT, GEMINI, NATIVE, RESPONSES

    codecs: dict[str, Codec] = {
        urls.CHAT: CHAT,
        urls.RESPONSES: RESPONSES,
        urls.GEMINI: GEMINI,
        urls.MESSAGES: NATIVE,
    }
    return codecs[api]


class Configured:
    """One provider, by its table. ``env`` gives the variables as they are now; ``version`` is that of dbproxy."""

    def __init__(self, table: Table, env: Callable[[], Environment], version: str) -> None:
        self.table = table
        self.name = table.name
        self.limits = table.limits
        self._env = env
        self._agent = f"dbproxy/{version}".encode()

    # ---- can it be used

    def unready(self) -> str:
        """Why it cannot be used, and what to do; "" if it can."""
        if self.table.problems:
            return "; ".join(self.table.problems)
        if self.table.as_client:
            return ""
        try:
            base = self._base()
        except ValueError as error:
            return f"{self.table.server.base_variable}: {error}"
        found = self.table.key.read(self._env())
        if found.problem:
            return found.problem
        if not found.key and self._needs_key(base):
            return self._no_key()
        for name, template in self.table.headers:
            if problem := filled(template, self._env())[2]:
                return f"the header {name}: {problem}"
        return ""

    @property
    def keyless(self) -> bool:
        """Does no key of ours go with its requests? Then it may serve whoever talks to the proxy."""
        table = self.table
        return table.as_client or not (table.brings_credential or table.key.read(self._env()).key)

    def warnings(self) -> list[str]:
        """What is unwise about it, for the log."""
        if self.table.as_client or self.unready():
            return []
        found = [self.table.key.file.warning()] if self.table.key.file is not None else []
        if self._base().plain and (self.table.key.read(self._env()).key or self.table.brings_credential):
            found.append(f"its key goes over plain HTTP to {self._base().host}: write https:// in base_url")
        return [warning for warning in found if warning]

    def _base(self) -> Base:
        table = self.table
        if table.base is not None:
            return table.base
        server = table.server
        given = self._env().get(server.base_variable, "").strip() if server.base_variable else ""
        return read_base(given or server.usual_base(table.kind))

    def _needs_key(self, base: Base) -> bool:
        """A vendor's own host wants a key; a gateway or a server of one's own may do without."""
        server = self.table.server
        if not server.needs_key or self.table.brings_credential:
            return False
        usual = server.usual_base(self.table.kind)
        return bool(usual) and base.host == read_base(usual).host

    def _no_key(self) -> str:
        variables = " or ".join(self.table.key.variables)
        where = f"key_env or key_file in [providers.{self.name}]"
        return f"no key: set {variables} for the proxy, or {where}" if variables else f"no key: set {where}"

    # ---- what its models can do

    def capabilities(self, model: str) -> Capabilities:
        """The table's row, as far as this server is that model's home, with what the user says on top."""
        table = self.table
        can = capabilities(table.section, bare_model(model))
        if table.kind in (servers.OPENAI, servers.COMPATIBLE):
            told = table.api if table.api != "auto" else self._told(model)
            if told or not self._at_openai():
                # Only OpenAI's own Responses API is known to search, and only there does a model choose its dialect.
                can = replace(can, api=told or urls.CHAT, web_search=can.web_search and told == urls.RESPONSES)
        else:
            can = replace(can, api=_DIALECTS[table.kind])
        for changes in self._overrides(model):
            can = can.overridden(changes, f"[providers.{self.name}.models]")
        return can

    def _overrides(self, model: str) -> list[dict[str, object]]:
        name = bare_model(model).lower()
        return [dict(changes) for pattern, changes in self.table.models if fnmatchcase(name, pattern)]

    def _told(self, model: str) -> str:
        told = [str(changes["api"]) for changes in self._overrides(model) if "api" in changes]
        return told[-1] if told and told[-1] in (urls.CHAT, urls.RESPONSES) else ""

    def _at_openai(self) -> bool:
        try:
            base = self._base()
        except ValueError:
            return False
        return self.table.kind == servers.OPENAI and base.host == _OPENAI_HOST

    def decline(self, request: Request, model: str) -> str:
        """Why this request cannot be served faithfully; "" if it can."""
        can = self.capabilities(model)
        if self.table.as_client:
            return lacking_as_client(request, model, can)
        if self.table.kind == servers.ANTHROPIC:
            return lacking_at_home(request, model, can)
        return lacking(request, model, can)

    # ---- a request

    def call(self, request: Request, translation: Translation) -> ProviderCall:
        """The request, ready to be sent. Raises Unroutable."""
        from dbproxy.api.codecs import Unroutable
        from dbproxy_providers.claude import for_another_account, for_another_claude  # with all the dialects

        problem = self.unready()
        if problem:
            raise Unroutable(problem)
        translation.model = bare_model(translation.model)
        if self.table.as_client:
            return ProviderCall(for_another_claude(request, translation), as_client=True)
        api = self.dialect(request, translation.capabilities)
        codec = codec_of(api)
        body, betas = codec.write(request, translation), b""
        if self.table.kind == servers.ANTHROPIC:
            body, betas = for_another_account(body, request)
        url = endpoint(self._base(), api, translation.model, stream=request.stream)
        fields, secrets = self._fields(api, betas, stream=request.stream)
        return ProviderCall(body, url, fields, codec, secrets)

    def dialect(self, request: Request, can: Capabilities) -> str:
        """The dialect for this request: Responses where Chat would refuse it, or have to leave something out."""
        kind = self.table.kind
        if kind in _DIALECTS:
            return _DIALECTS[kind]
        if can.api == urls.RESPONSES or self.table.api != "auto" or not self._at_openai():
            return urls.RESPONSES if can.api == urls.RESPONSES else urls.CHAT
        # Where tools and an effort exclude each other on Chat, the newest models even refuse tools without a word about
        # effort, since they have one by default (litellm PR#34569).
        on_chat = can.tools_with_effort or not request.tools
        return urls.CHAT if on_chat and not request.server_tools else urls.RESPONSES

    def _fields(self, api: str, betas: bytes, *, stream: bool) -> tuple[Fields, tuple[str, ...]]:
        env = self._env()
        lines = {
            b"content-type": b"application/json",
            b"accept": b"text/event-stream" if stream else b"application/json",
            b"user-agent": self._agent,
        }
        if api == urls.MESSAGES:
            lines[b"anthropic-version"] = _MESSAGES_VERSION
        if betas:
            lines[b"anthropic-beta"] = betas
        secrets: list[str] = []
        key = self.table.key.read(env).key
        if key:
            secrets.append(key)
            auth = self.table.server.auth_for(self.table.kind)
            if auth == servers.BEARER:
                lines[b"authorization"] = f"Bearer {key}".encode()
            else:
                lines[auth.encode()] = key.encode()
        for name, template in self.table.headers:
            value, hidden, problem = filled(template, env)
            if problem:
                from dbproxy.api.codecs import Unroutable

                raise Unroutable(f"the header {name}: {problem}")
            lines[name.lower().encode()] = value.encode()
            secrets.extend(hidden)
        return Fields.of(lines.items()), tuple(secrets)
