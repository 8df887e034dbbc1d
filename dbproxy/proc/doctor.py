"""What would break, found before it does: every check of ``dbproxy doctor``, as data.

Owns the checks and their words; the command prints them. Must never change anything, start the proxy, import trio, or
raise: a check that fails is itself a finding. Each finding says what, why and what to do.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import time
from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from dbproxy import __version__
from dbproxy.config import load
from dbproxy.errors import DbproxyError
from dbproxy.paths import Paths
from dbproxy.proc import child, client, daemon
from dbproxy.proc import env as environment
from dbproxy.state import http_get, is_alive, probe
from dbproxy.state import load as load_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from dbproxy.config import Config
    from dbproxy.state import DaemonState, Health

_DISK_WARN = 500_000_000
_DISK_FAIL = 20_000_000
_EXPIRY_WARN = 14 * 86_400
_NETWORK_TIMEOUT = 8.0
_CLIENT_TIMEOUT = 20.0
# Says whether Node accepts our certificate the way the Node-based clients do: CONNECT, then TLS with the variable.
_NODE_PROBE = """
const [host, port, name] = process.argv.slice(1);
const ask = `CONNECT ${name}:443 HTTP/1.1\\r\\nHost: ${name}:443\\r\\n\\r\\n`;
const s = require('net').connect(+port, host, () => s.write(ask));
const end = (text) => { console.log(text); process.exit(0); };
s.on('error', (e) => end(e.code || e.message));
s.once('data', () => {
  const how = { socket: s, servername: name, minVersion: 'TLSv1.3' };
  const t = require('tls').connect(how, () => t.write('\\r\\n', () => end('OK')));
  t.on('error', (e) => end(e.code || e.message));
});
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """One result. ``level`` is ok, warn or fail; ``advice`` is empty where there is nothing to do."""

    check: str
    level: str
    what: str
    why: str = ""
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Situation:
    """What the checks look at: configuration, the user's environment, and the daemon if one answers."""

    config: Config
    env: Mapping[str, str]
    cwd: Path | None
    state: DaemonState | None
    health: Health | None

    @property
    def paths(self) -> Paths:
        """The layout of the data directory."""
        return Paths(self.config.settings.data_dir)

    @property
    def url(self) -> str:
        """Where the proxy is, or would be."""
        return self.state.url if self.state and self.health else f"http://{self.config.settings.listen[0]}"


def examine(overrides: Mapping[str, object], env: Mapping[str, str], cwd: Path | None) -> Iterator[Finding]:
    """Every finding, in the order of the way of a request."""
    try:
        config = load(overrides, env, cwd, strict=False)
    except DbproxyError as error:
        yield Finding("settings", "fail", str(error), "dbproxy cannot find its own files", error.hint)
        return
    yield from _settings(config)
    state = load_state(Paths(config.settings.data_dir).daemon_state)
    health = probe(state, daemon.PROBE_TIMEOUT) if state is not None else None
    situation = Situation(config, env, cwd, state, health)
    for name, check in _CHECKS.items():
        try:
            yield from check(situation)
        except Exception as error:
            yield Finding(name, "warn", f"this check failed itself: {type(error).__name__}: {error}")


def _settings(config: Config) -> Iterator[Finding]:
    for problem in config.problems:
        yield Finding(
            "settings", "fail", problem, "while a setting is wrong, the agent starts without the proxy", "Mend it"
        )
    if config.project is not None and config.refused:
        yield Finding("settings", "warn", config.project.notice, "a project file comes with a clone")
    if not config.problems:
        yield Finding("settings", "ok", f"settings are sound (user file {config.user_file})")


def _disk(situation: Situation) -> Iterator[Finding]:
    folder = situation.paths.data_dir
    existing = next((path for path in (folder, *folder.parents) if path.exists()), Path("/"))
    if not os.access(existing, os.W_OK | os.X_OK):
        yield Finding(
            "disk",
            "fail",
            f"{existing} cannot be written to",
            "certificates and launch scopes live there",
            "Set DBPROXY_DATA_DIR to a folder that you can write to",
        )
        return
    free = shutil.disk_usage(existing).free
    level = "fail" if free < _DISK_FAIL else "warn" if free < _DISK_WARN else "ok"
    why = "a full disk stops the log and the record, never the traffic" if level != "ok" else ""
    advice = f"Free some space on the disk of {existing}" if level != "ok" else ""
    yield Finding("disk", level, f"{free / 1e9:.1f} GB free for {folder}", why, advice)


#: For problems that the proxy tells of itself: why they matter, and what to do.
_REMEDIES = {
    "worker": (
        "agents work, but nothing is seen or helped until the normal worker runs again; that is tried by itself",
        "`dbproxy logs` shows what crashed; DBPROXY_PLUGINS_DISABLED leaves a plugin out",
    ),
    "supervisor": ("traffic goes on", "`dbproxy restart` puts a new one in its place without losing a stream"),
}


def _proxy(situation: Situation) -> Iterator[Finding]:
    state, health = situation.state, situation.health
    wanted = str(situation.config.settings.listen[0])
    if state is not None and health is not None:
        yield Finding("proxy", "ok", f"running at {state.url} (pid {state.pid}, version {health.version})")
        if daemon.is_older(state.version):
            yield Finding(
                "proxy",
                "warn",
                f"the running proxy is {state.version}, this is {__version__}",
                "the next launch replaces it by itself",
                "`dbproxy restart` does it now",
            )
        for line in daemon.differences(situation.config, state):
            yield Finding("proxy", "warn", line, "process-wide settings hold for every client of the proxy")
        for name, reason in _mapping(health.body.get("problems")).items():
            yield Finding("proxy", "warn", f"{name}: {reason}", *_REMEDIES.get(name, ("the proxy goes on without it",)))
        return
    if state is not None and is_alive(state.pid, state.pid_identity):
        yield Finding(
            "proxy",
            "warn" if child.can_bind(state.listen[0]) else "fail",
            f"pid {state.pid} lives but does not answer",
            "it is finishing its last answers, or it hangs",
            "If it stays so: `dbproxy stop --force`",
        )
    elif state is not None:
        yield Finding("proxy", "ok", "a stale record of an ended proxy lies in run/; the next launch replaces it")
    if child.can_bind(wanted):
        yield Finding("proxy", "ok", f"not running; a launch starts it at {wanted}")
    else:
        yield Finding(
            "proxy",
            "warn",
            f"{wanted} is taken by another program",
            "the proxy will take a free port instead; only base-URL users notice",
            "Choose another port with DBPROXY_PROXY_PORT, or end that program",
        )


def _root(situation: Situation) -> Iterator[Finding]:
    bundle = situation.paths.ca / "bundle.pem"
    if not bundle.exists():
        level = "ok" if situation.health is None else "fail"
        yield Finding("root", level, f"no root certificate yet at {bundle}", "the proxy makes it when it first starts")
        return
    if bundle.parent.stat().st_mode & 0o077:
        yield Finding(
            "root", "fail", f"{bundle.parent} is open to others", "it holds a private key", f"chmod 700 {bundle.parent}"
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cafile=bundle)
    except (ssl.SSLError, OSError) as error:
        yield Finding("root", "fail", f"{bundle} cannot be read: {error}", "", "`dbproxy restart` writes it anew")
        return
    ends = max((ssl.cert_time_to_seconds(str(item["notAfter"])) for item in context.get_ca_certs()), default=0.0)
    left = ends - time.time()
    level = "fail" if left <= 0 else "warn" if left < _EXPIRY_WARN else "ok"
    advice = "" if level == "ok" else "`dbproxy certs rotate` makes a new one"
    yield Finding("root", level, f"root certificate valid for {left / 86_400:.0f} days", "", advice)


def _trusted(situation: Situation) -> Iterator[Finding]:
    """A real handshake through the real proxy, with the certificates that a child is given."""
    state, bundle = situation.state, situation.paths.ca / "bundle.pem"
    if state is None or situation.health is None or not state.intercept:
        return
    name = state.intercept[0]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # The proxy learns per kind of ClientHello who takes its certificate; ours must not speak for other Python programs.
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(cafile=bundle)
        with _tunnel(state.address, name, 443) as raw, context.wrap_socket(raw, server_hostname=name) as secure:
            # Leaving without a byte is how some clients reject a certificate; a blank line before a request is legal.
            secure.sendall(b"\r\n")
            yield Finding("trust", "ok", f"our certificate for {name} verifies with {bundle}")
    except OSError as error:
        yield Finding(
            "trust",
            "fail",
            f"our certificate for {name} does not verify: {error}",
            "clients would reject it and be tunnelled unread",
            "`dbproxy restart`; if it stays so: `dbproxy certs rotate`",
        )
        return
    node = shutil.which("node", path=situation.env.get("PATH"))
    if node is None:
        return
    host, port = state.address
    answer = subprocess.run(
        [node, "-e", _NODE_PROBE, host, str(port), name],
        env={**situation.env, "NODE_EXTRA_CA_CERTS": str(bundle)},
        capture_output=True,
        timeout=_CLIENT_TIMEOUT,
        check=False,
    )
    said = answer.stdout.decode("utf-8", "replace").strip() or answer.stderr.decode("utf-8", "replace").strip()[-200:]
    if said == "OK":
        yield Finding("trust", "ok", "node accepts our certificate through NODE_EXTRA_CA_CERTS")
    else:
        yield Finding("trust", "fail", f"node rejects our certificate: {said}", "so would Node-based clients")


def _client(situation: Situation) -> Iterator[Finding]:
    try:
        program = child.find_program("claude", situation.env)
    except DbproxyError as error:
        yield Finding("client", "warn", str(error).partition(". ")[0], "`dbproxy claude` needs it", error.hint)
        return
    try:
        answer = subprocess.run(
            [program, "--version"], env=dict(situation.env), capture_output=True, timeout=_CLIENT_TIMEOUT, check=False
        )
        said = answer.stdout.decode("utf-8", "replace").strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        yield Finding("client", "warn", f"{program} --version failed: {error}", "", "Reinstall Claude Code")
        return
    found = re.search(r"(\d+)\.(\d+)\.(\d+)", said)
    if found is None:
        yield Finding("client", "warn", f"{program} does not say its version: {said[:80]!r}")
    elif tuple(map(int, found.groups())) < (1, 0, 128):
        yield Finding(
            "client",
            "warn",
            f"Claude Code {found[0]} at {program}",
            "dbproxy was tried with 1.0.128 to 2.1.329 only",
            "Update it: claude update",
        )
    else:
        yield Finding("client", "ok", f"Claude Code {found[0]} at {program}")


def _overrides(situation: Situation) -> Iterator[Finding]:
    files = client.settings_files(situation.env, situation.cwd)
    for file in files:
        if file.problem:
            yield Finding("client settings", "warn", f"{file.path}: {file.problem}", "Claude Code may ignore it, too")
    intercept = situation.config.settings.intercept
    bundle = str(situation.paths.ca / "bundle.pem")
    found = client.conflicts(situation.env, files, url=situation.url, intercept=intercept, root=bundle)
    for conflict in found:
        yield Finding(
            "client settings", "fail", f"{conflict.variable} in {conflict.where}", conflict.effect, conflict.advice
        )
    if not found:
        read = ", ".join(file.path for file in files) or "none found"
        yield Finding("client settings", "ok", f"nothing leads Claude Code past the proxy (settings files: {read})")


def _variables(situation: Situation) -> Iterator[Finding]:
    env = situation.env
    no_proxy = environment.user_no_proxy(env)
    intercept = situation.config.settings.intercept
    gone = [
        item for item in re.split(r"[\s,]+", no_proxy) if item and not environment.without_covering(item, intercept)
    ]
    if gone and not environment.is_nested(env):
        yield Finding(
            "NO_PROXY",
            "ok",
            f"NO_PROXY names {', '.join(gone)}, which would exempt {', '.join(intercept)}",
            "launched children get your list without it; our own way out still honours it",
        )
    for name in environment.BUNDLE_VARIABLES:
        value = env.get(name, "")
        if value and not value.startswith(str(situation.paths.data_dir)):
            yield Finding(
                "CA variables",
                "warn",
                f"{name} is yours ({value}) and stays",
                f"tools that the agent starts and that read it will reject our certificate for {', '.join(intercept)}",
                f"Append {situation.paths.ca / 'bundle.pem'} to that file if such tools must reach the API",
            )
    if environment.is_nested(env):
        yield Finding("nesting", "ok", "this shell itself runs through dbproxy")


def _upstream(situation: Situation) -> Iterator[Finding]:
    settings = situation.config.settings
    target = urlsplit(settings.upstream_url)
    host, port = target.hostname or "", target.port or (443 if target.scheme == "https" else 80)
    parent = settings.parent_proxy
    exempt = any(environment.covers(entry, host) for entry in settings.no_proxy)
    way = ""
    try:
        if parent and not exempt:
            parts = urlsplit(parent if "://" in parent else f"http://{parent}")
            way = f" through {parts.scheme}://{parts.hostname}:{parts.port or 80}"
            if parts.scheme != "http":
                yield from _other_parent(parts.scheme, parts.hostname or "", parts.port or 443)
                return
            raw = _tunnel(
                (parts.hostname or "", parts.port or 80), host, port, _credentials(parts.username, parts.password)
            )
        else:
            raw = socket.create_connection((host, port), timeout=_NETWORK_TIMEOUT)
        with raw:
            if target.scheme == "https":
                with _upstream_context(situation).wrap_socket(raw, server_hostname=host):
                    pass
        yield Finding("upstream", "ok", f"{host}:{port} answers{way}")
    except OSError as error:
        reason = getattr(error, "verify_message", "") or error.strerror or str(error)
        yield Finding(
            "upstream",
            "fail",
            f"{host}:{port} cannot be reached{way}: {reason}",
            "without it the agent cannot work, with or without dbproxy",
            "Check the network, HTTPS_PROXY, and DBPROXY_UPSTREAM_CA where a company inspects TLS",
        )


def _other_parent(scheme: str, host: str, port: int) -> Iterator[Finding]:
    if scheme != "https":
        yield Finding(
            "upstream",
            "warn",
            f"your proxy is {scheme}://, which dbproxy does not speak: it connects directly",
            "only http:// and https:// proxies with basic authentication are understood",
            "Name one with DBPROXY_PARENT_PROXY if direct connections are blocked",
        )
        return
    with socket.create_connection((host, port), timeout=_NETWORK_TIMEOUT):
        yield Finding("upstream", "ok", f"your proxy https://{host}:{port} answers")


def _upstream_context(situation: Situation) -> ssl.SSLContext:
    context = ssl.create_default_context()
    # The bundle for children holds the system's roots as the proxy found them, which Python alone may not.
    bundle = situation.paths.ca / "child-bundle.pem"
    extra = [bundle, situation.config.settings.upstream_ca, situation.env.get("NODE_EXTRA_CA_CERTS")]
    for file in extra:
        if file and Path(file).is_file():
            context.load_verify_locations(cafile=file)
    return context


def _rejections(situation: Situation) -> Iterator[Finding]:
    if situation.health is None:
        return
    status = _status(situation)
    if status is None:
        yield Finding(
            "rejections",
            "warn",
            "the proxy does not tell its status",
            "its control token does not fit, or it failed to answer",
            "`dbproxy restart`, unless DBPROXY_CONTROL_TOKEN differs from the one it was started with",
        )
        return
    rejections = status.get("rejections")
    for item in rejections if isinstance(rejections, list) else []:
        facts = _mapping(item)
        yield Finding(
            "rejections",
            "warn",
            f"a client rejected our certificate for {facts.get('host', '?')} {facts.get('failures', 1)} times",
            "after the second time it is tunnelled unread for ten minutes; "
            f"launch {facts.get('scope') or 'unknown'}, kind {str(facts.get('kind', '?'))[:12]}",
            "Start it with `dbproxy run`, and check that it reads NODE_EXTRA_CA_CERTS or SSL_CERT_FILE",
        )
    if not rejections:
        yield Finding("rejections", "ok", "no client rejected our certificate")


def _plugins(situation: Situation) -> Iterator[Finding]:
    if situation.health is None:
        return
    plugins = _mapping(situation.health.body.get("plugins"))
    for name, raw in plugins.items():
        facts = _mapping(raw)
        state = str(facts.get("state", ""))
        if facts.get("error") or state in ("failed", "quarantined", "error"):
            yield Finding(
                "plugins",
                "warn",
                f"plugin {name} is {state or 'failing'}: {facts.get('error', 'see the log')}",
                "the proxy goes on without it",
                f"`dbproxy logs` shows more; DBPROXY_PLUGINS_DISABLED={name} leaves it out",
            )
    yield Finding("plugins", "ok", f"{len(plugins)} plugins: {', '.join(sorted(plugins)) or 'none'}")


def _background(situation: Situation) -> Iterator[Finding]:
    bundle = situation.paths.ca / "bundle.pem"
    outside = _outside()
    what = (
        f"Claude Code runs outside of dbproxy: pid {', '.join(map(str, outside))}"
        if outside
        else "agents that Claude Code runs in the background do not inherit a shell's environment"
    )
    yield Finding(
        "background agents",
        "warn" if outside else "ok",
        what,
        "desktop and IDE clients, and agents that a background service of Claude Code starts, get their environment "
        "from that service, so their traffic is not seen",
        f'End them and start them from `dbproxy claude`; or, as long as the proxy runs, put "env": {{"HTTPS_PROXY": '
        f'"{situation.url}", "NODE_EXTRA_CA_CERTS": "{bundle}"}} into {client.user_settings_path(situation.env)}',
    )


def _outside() -> list[int]:
    """Processes of this user that look like Claude Code and have none of our variables (Linux)."""
    found: list[int] = []
    try:
        entries = [entry for entry in os.scandir("/proc") if entry.name.isdigit()]
    except OSError:
        return found
    for entry in entries:
        try:
            words = Path(entry.path, "cmdline").read_bytes().split(b"\0")
            name = words[0].rpartition(b"/")[2]
            script = words[1].rpartition(b"/")[2] if name in (b"node", b"bun") and len(words) > 1 else b""
            if b"claude" not in (name, script):
                continue
            if b"DBPROXY_ACTIVE=" not in Path(entry.path, "environ").read_bytes():
                found.append(int(entry.name))
        except (OSError, IndexError):
            continue
    return found


def _status(situation: Situation) -> dict[str, object] | None:
    if situation.state is None or situation.health is None:
        return None
    try:
        token = situation.config.settings.control_token or situation.paths.control_token.read_text().strip()
    except OSError:
        return None
    body = http_get(
        situation.state.address,
        "/api/status",
        timeout=daemon.PROBE_TIMEOUT,
        headers={"Authorization": f"Bearer {token}"},
    )
    try:
        return _mapping(json.loads(body)) if body is not None else None
    except ValueError:
        return None


def _tunnel(address: tuple[str, int], host: str, port: int, authorization: str = "") -> socket.socket:
    """A socket behind a proxy's CONNECT. OSError when the proxy refuses or breaks off."""
    raw = socket.create_connection(address, timeout=_NETWORK_TIMEOUT)
    try:
        target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        extra = f"Proxy-Authorization: {authorization}\r\n" if authorization else ""
        raw.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{extra}\r\n".encode("latin-1"))
        head = b""
        while b"\r\n\r\n" not in head and len(head) < 65_536:
            chunk = raw.recv(1)
            if not chunk:
                raise ConnectionResetError("the proxy closed the connection")
            head += chunk
        status = head.split(b"\r\n", 1)[0].decode("latin-1")
        if status.split(" ")[1:2] != ["200"]:
            raise ConnectionRefusedError(f"the proxy answered {status}")
    except BaseException:
        raw.close()
        raise
    return raw


def _credentials(user: str | None, password: str | None) -> str:
    if not user:
        return ""
    return "Basic " + b64encode(f"{unquote(user)}:{unquote(password or '')}".encode()).decode()


def _mapping(value: object) -> dict[str, object]:
    return {str(name): item for name, item in value.items()} if isinstance(value, dict) else {}


_CHECKS: dict[str, Callable[[Situation], Iterator[Finding]]] = {
    "disk": _disk,
    "proxy": _proxy,
    "root": _root,
    "rejections": _rejections,
    "trust": _trusted,
    "client": _client,
    "client settings": _overrides,
    "variables": _variables,
    "upstream": _upstream,
    "plugins": _plugins,
    "background agents": _background,
}
