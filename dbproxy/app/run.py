"""Composition: builds a proxy from its configuration, runs it, and lets it go gracefully.

Owns start and stop order, signals and the periodic chores. Invariants: the listening sockets exist before anything slow
happens; what is said in ``run/daemon.json`` is true; running requests finish when we are told to stop, up to
``drain_timeout``.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from dbproxy import __version__
from dbproxy.app import careful
from dbproxy.app.archive import Archive
from dbproxy.app.crash import CRASHES, describe_crash
from dbproxy.app.egress import Egresses
from dbproxy.app.journal import Journal
from dbproxy.app.memory import settle
from dbproxy.app.pipeline import Pipeline
from dbproxy.app.proxy import Proxy
from dbproxy.app.reload import FileSettings, Reloader
from dbproxy.app.routing.registry import Routing
from dbproxy.app.server import Server
from dbproxy.app.services import ProxyServices
from dbproxy.app.sessions import Sessions
from dbproxy.config.following import FollowedFiles
from dbproxy.errors import CertificateError, DbproxyError
from dbproxy.hooks.dispatch import Dispatcher
from dbproxy.hooks.manager import PluginManager
from dbproxy.hooks.specs import App, Emit
from dbproxy.hooks.taps import TapHub
from dbproxy.net import trust
from dbproxy.net.ca import Authority
from dbproxy.net.rootfile import ROOT_RENEWAL
from dbproxy.net.watch import HangupWatch
from dbproxy.paths import Paths, write_private
from dbproxy.proc.daemon import describe
from dbproxy.proc.listen import addresses, names
from dbproxy.proc.listen import bind as bind  # for those who make a proxy of their own
from dbproxy.scope import Scopes
from dbproxy.state import DaemonState, is_alive

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Mapping, Sequence

    from dbproxy.config import Config, Settings
    from dbproxy.hooks.services import Redactor, Storage

_FILES = 65536  # open files that we ask for; macOS starts a process with 256
CERTIFICATE_VARIABLES = ("NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE")
_BREATH = 0.1  # seconds after the start in which whoever waited for us comes first
_RETENTION_EVERY = 900  # seconds
_FRESH = 1.0  # seconds for a client that connected just before the end to say what it wants
_LAST_WORDS = 5.0  # seconds for taps, observers and the log when everything else has ended


def raise_file_limit() -> int:
    """Ask for as many open files as we may have, within reason; how many that are, 0 where nobody tells."""
    try:
        import resource
    except ImportError:
        return 0
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return 0 if soft == resource.RLIM_INFINITY else soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):
        return soft
    return wanted


def control_token(settings: Settings, paths: Paths) -> str:
    """The token for whatever reads content or changes state; a random one is kept in ``run/control-token``."""
    token = settings.control_token
    if token is None:
        try:
            token = paths.control_token.read_text("ascii").strip()
        except (OSError, ValueError):  # not there yet, or no text
            token = ""
        token = token or secrets.token_urlsafe(24)
    write_private(paths.control_token, token + "\n")
    return token


class Running:
    """A proxy that serves. After ``stop`` leaving the block lets running requests finish; otherwise it ends them."""

    def __init__(self, proxy: Proxy, server: Server) -> None:
        self.proxy = proxy
        self.server = server
        self.stopping = False

    @property
    def port(self) -> int:
        """The port of the first listener."""
        return self.proxy.listening[0][1]

    def stop(self) -> None:
        """Let running requests finish when the block is left."""
        self.stopping = True


@dataclass(frozen=True, slots=True)
class _Keep:
    """What plugins bring for the capture."""

    storage: Storage | None
    redactors: Sequence[Redactor]


def _emitter(journal: Journal) -> Emit:
    def emit(event: str, *, level: str = "info", **fields: object) -> None:
        journal.emit(event, level=level, **fields)

    return emit


def _manager(settings: Settings, paths: Paths, plugins: tuple[tuple[str, object], ...]) -> PluginManager:
    manager = PluginManager(disabled=settings.plugins_disabled)
    manager.discover(paths.plugins if paths.plugins.is_dir() else None)
    for name, plugin in plugins:
        manager.register(plugin, name)
    return manager


@asynccontextmanager
async def open_proxy(
    config: Config,
    *,
    sockets: list[socket.socket] | None = None,
    plugins: tuple[tuple[str, object], ...] = (),
    user_files: Sequence[str] = (),
    file_limit: int = 0,
    instance: str = "",
    degraded: str = "",
    env: Mapping[str, str] | None = None,
) -> AsyncIterator[Running]:
    """Run a proxy in the calling task's event loop for as long as the block lasts.

    ``sockets`` are listening sockets made by ``bind``; ``plugins`` are (name, object) pairs to register beside the
    installed ones; ``user_files`` are certificate files that the user trusts beside the system's; ``file_limit`` is
    how many files we may open, 0 if unknown. ``instance`` names the supervised proxy that this is a worker of: its
    supervisor keeps the record then. ``degraded`` says why to be careful ("" for not): no plugin, every CONNECT a blind
    tunnel, and what is broken on disk is done without. With ``env``, the environment that settings refer to, the
    files of settings are followed. Leaving the block ends everything at once, after ``stop`` gracefully. Raises
    DbproxyError when something that it cannot do without is missing.
    """
    settings = config.settings
    paths = Paths(settings.data_dir)
    paths.create()
    sockets = bind(addresses(settings)) if sockets is None else sockets
    journal = Journal(paths.log_file, settings.log_level, days=settings.log_days)
    try:
        if degraded:
            settings = careful.usable(settings)
            manager, authority = PluginManager(), await trio.to_thread.run_sync(careful.any_authority, paths, settings)
        else:
            manager, authority = _manager(settings, paths, plugins), Authority.open(paths.ca, settings.intercept)
            authority.write_child_bundle(trust.system_bundle())
            await trio.to_thread.run_sync(authority.prepare)
            _note_certificates(paths, authority)

        def failed(plugin: str, hook: str, error: str, quarantined: bool) -> None:
            journal.emit(
                "plugin_failed", level="error", plugin=plugin, hook=hook, message=error, quarantined=quarantined
            )

        dispatch = Dispatcher(manager, on_failure=failed)
        services = ProxyServices()
        app = App(__version__, paths.data_dir, _emitter(journal), services)
        await dispatch.startup(app)
        storage = await dispatch.decide("open_storage", app=app) if dispatch.has("open_storage") else None
        redactors = [redact for _, redact in await dispatch.collect("redactor", app=app)]
        async with trio.open_nursery() as background:
            keep = _Keep(storage, redactors)
            proxy = _assemble(
                settings, paths, journal, dispatch, authority, background, tuple(user_files), degraded, keep
            )
            proxy.files = FileSettings.of(config)
            services.attach(proxy)
            await proxy.routing.collect(app)
            proxy.file_limit = file_limit
            proxy.listening[:] = [sock.getsockname()[:2] for sock in sockets]
            pipeline = Pipeline(proxy)
            background.start_soon(proxy.watch.run)
            background.start_soon(_close_at_end, proxy)
            background.start_soon(_warm_up, proxy)
            proxy.archive.start()
            await background.start(proxy.taps.run)
            await background.start(dispatch.run_services, app)
            background.start_soon(_chores, proxy, pipeline)
            background.start_soon(_report_notices, proxy)
            if env is not None and not degraded:  # there is no plugin then that would route
                reloader = Reloader(proxy, FollowedFiles(config.user_file, env))
                reloader.on_change.append(lambda: background.start_soon(_collect_again, proxy, app))
                background.start_soon(reloader.run)
            # Two nurseries: accepting ends at once, what was accepted may finish (ended below when nobody waits).
            async with trio.open_nursery() as connections:
                server = Server(proxy, pipeline, connections)
                running = Running(proxy, server)
                async with trio.open_nursery() as accepting:
                    for sock in sockets:
                        accepting.start_soon(server.accept, sock)
                    state = None if instance else _write_state(proxy, config, sockets)
                    proxy.instance = instance if state is None else state.instance
                    journal.emit("server_listening", listen=list(names(sockets)), pid=os.getpid(), version=__version__)
                    if degraded:
                        journal.emit("degraded", level="error", reason=degraded, pid=os.getpid())
                    try:
                        yield running
                    finally:
                        if state is not None:
                            state.forget(paths.daemon_state)
                        accepting.cancel_scope.cancel()
                        for sock in sockets:
                            trio.lowlevel.notify_closing(sock)
                            sock.close()
                if running.stopping:
                    await _drain(proxy, server)
                connections.cancel_scope.cancel()
            await proxy.taps.drain(_LAST_WORDS)
            await proxy.archive.close(_LAST_WORDS)
            await dispatch.drain(_LAST_WORDS)
            await dispatch.shutdown(app)
            background.cancel_scope.cancel()
    finally:
        for sock in sockets:
            sock.close()
        journal.emit("server_stopped", pid=os.getpid())
        journal.close(_LAST_WORDS)


def _assemble(
    settings: Settings,
    paths: Paths,
    journal: Journal,
    dispatch: Dispatcher,
    authority: Authority,
    background: trio.Nursery,
    user_files: tuple[str, ...],
    degraded: str,
    keep: _Keep,
) -> Proxy:
    watch = HangupWatch()
    listening: list[tuple[str, int]] = []

    def notice(text: str) -> None:
        journal.emit("notice", level="warning", message=text)

    egresses = Egresses(
        settings,
        watch=watch,
        nursery=background,
        own_listeners=lambda: listening,
        own_pem=lambda: authority.bundle_pem,
        notice=notice,
        user_files=user_files,
    )
    sessions = Sessions(paths.status, settings.conversation_ttl_seconds)
    proxy = Proxy(
        settings=settings,
        paths=paths,
        journal=journal,
        dispatch=dispatch,
        taps=TapHub(dispatch),
        authority=authority,
        egresses=egresses,
        watch=watch,
        scopes=Scopes(paths.scopes),
        sessions=sessions,
        archive=Archive(
            settings,
            paths,
            journal=journal,
            sessions=sessions,
            intercepted=lambda: proxy.intercepted,
            storage=keep.storage,
            redactors=keep.redactors,
            active=not degraded,  # whatever made the worker crash may lie there
            has_policies=lambda: dispatch.has("intercept_request") or dispatch.has("transform_request"),
        ),
        routing=Routing(dispatch),
        handshakes=trio.CapacityLimiter(settings.handshake_concurrency),
        token=_token(settings, paths, degraded),
        listening=listening,
        degraded=degraded,
    )
    if settings.upstream_ca is not None:
        egresses.default()  # so that a broken one is said at start
    return proxy


def _token(settings: Settings, paths: Paths, degraded: str) -> str:
    try:
        return control_token(settings, paths)
    except DbproxyError:
        if not degraded:
            raise
        return careful.passing_token()


def _write_state(proxy: Proxy, config: Config, sockets: list[socket.socket]) -> DaemonState:
    state = DaemonState.of_this_process(
        listen=names(sockets),
        data_dir=proxy.paths.data_dir,
        intercept=tuple(sorted(proxy.intercepted)),
        settings=describe(config),
        dashboard=f"https://localhost:{proxy.settings.dashboard_port}" if proxy.settings.dashboard_port else "",
    )
    state.save(proxy.paths.daemon_state)
    return state


async def _drain(proxy: Proxy, server: Server) -> None:
    """Close what is idle, let the rest finish, and end what is left after ``drain_timeout``."""
    proxy.draining = True
    for client in list(server.connections):
        if client.idle is not None and not client.is_about_to_ask():
            client.idle.cancel()
    with trio.move_on_after(proxy.settings.drain_timeout):
        with trio.move_on_after(_FRESH):
            await server.wait_empty()
            return
        proxy.closing = True
        for client in list(server.connections):
            if client.idle is not None:
                client.idle.cancel()
        await server.wait_empty()


async def _collect_again(proxy: Proxy, app: App) -> None:
    """Ask for the providers again: the settings are others."""
    try:
        await proxy.routing.collect(app)
    except CRASHES as error:  # those that are known go on
        proxy.counters.crashes_total += 1
        proxy.journal.emit("reload_crashed", level="error", error=describe_crash(error))


async def _chores(proxy: Proxy, pipeline: Pipeline) -> None:
    """What has to be looked after from time to time."""
    round_number = 0
    while True:
        await trio.sleep(1.0)
        round_number += 1
        try:
            await _chore(proxy, pipeline, round_number)
        except CRASHES as error:  # the proxy goes on without the chore
            proxy.counters.crashes_total += 1
            proxy.journal.emit("chore_crashed", level="error", error=describe_crash(error))


async def _chore(proxy: Proxy, pipeline: Pipeline, round_number: int) -> None:
    """One second's chores."""
    horizon = trio.current_time() - proxy.settings.upstream_silence_timeout
    for flight in list(pipeline.flights.values()):
        if 0.0 < flight.waiting < horizon:
            flight.give_up()
    try:
        await trio.to_thread.run_sync(proxy.sessions.write_status, proxy.settings.passthrough)
    except (OSError, DbproxyError):
        pass  # the status line is a convenience; doctor tells about the folder
    if round_number % 10 == 0:
        proxy.egresses.expire()
        proxy.sessions.expire(time.time())
        proxy.archive.expire(time.time())
    if round_number % _RETENTION_EVERY == 0:
        await proxy.archive.retain()
    if round_number % 60 == 0:
        await trio.to_thread.run_sync(_look_after_files, proxy)


def _look_after_files(proxy: Proxy) -> None:
    """Certificates that want renewing, scopes that nobody uses. Runs in a thread."""
    proxy.scopes.collect_garbage(time.time(), is_alive)
    try:
        proxy.authority.refresh()
        proxy.authority.prepare()
        if not proxy.degraded:
            _note_certificates(proxy.paths, proxy.authority)
        proxy.authority.prune({scope.root for scope in proxy.scopes.all()})
    except (CertificateError, OSError) as error:
        proxy.journal.emit("certificate_failed", level="error", message=str(error))


def _note_certificates(paths: Paths, authority: Authority) -> None:
    """Say for which names the files in ``ca/`` are good and until when, so that no launcher waits for us to check."""
    known = {"names": sorted(authority.names), "until": authority.current.not_after - ROOT_RENEWAL}
    with suppress(DbproxyError):
        write_private(paths.run / "certificates.json", json.dumps(known))


async def _warm_up(proxy: Proxy) -> None:
    """Have the costly TLS context (26 to 32 ms, performance facts 5) before the first request, but after we accept.

    A start is not delayed by it, and who asks for something in the first moment gets it built then.
    """
    await trio.sleep(_BREATH)
    with suppress(DbproxyError):  # said to who needs it
        proxy.egresses.default()


async def _close_at_end(proxy: Proxy) -> None:
    """Close the pooled connections however the proxy ends, also by an error."""
    try:
        await trio.sleep_forever()
    finally:
        proxy.egresses.close()


async def _report_notices(proxy: Proxy) -> None:
    """Say in the log what the certificate store wants a person to know."""
    while True:
        for text in proxy.authority.take_notices():
            proxy.journal.emit("notice", level="warning", message=text)
        await trio.sleep(5.0)


def serve_forever(config: Config, env: Mapping[str, str]) -> int:
    """``dbproxy serve``: run until SIGINT or SIGTERM, then drain; a second signal ends it at once. Exit code 0.

    ``env`` is this process's environment: the certificate files that it names are trusted upstream. Raises
    DbproxyError when the proxy cannot start.
    """
    file_limit = raise_file_limit()
    sockets = bind(addresses(config.settings))
    user_files = tuple(value for name in CERTIFICATE_VARIABLES if (value := env.get(name)))

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(_serve_until_signal, config, sockets, user_files, file_limit, env)

    trio.run(main, strict_exception_groups=True)
    return 0


async def _serve_until_signal(
    config: Config,
    sockets: list[socket.socket],
    user_files: tuple[str, ...],
    file_limit: int,
    env: Mapping[str, str],
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    watched = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    with trio.open_signal_receiver(*watched) as signals, trio.CancelScope() as at_once:
        async with trio.open_nursery() as nursery:

            async def second_signal() -> None:
                async for _ in signals:
                    at_once.cancel()

            async with open_proxy(
                config, sockets=sockets, user_files=user_files, file_limit=file_limit, env=env
            ) as running:
                settle()
                task_status.started()
                host, port = running.proxy.listening[0]
                shown = f"[{host}]" if ":" in host else host
                os.write(2, f"dbproxy {__version__} listens on http://{shown}:{port}\n".encode())
                async for _ in signals:
                    break
                running.stop()
                nursery.start_soon(second_signal)
            nursery.cancel_scope.cancel()
