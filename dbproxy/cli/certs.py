"""``dbproxy certs show / path / rotate``: what the interception root is, where it lies, and a new one.

Owns the wording only; the work is in ``dbproxy.net.ca``, imported when it is needed.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from dbproxy.cli.common import load_config, print_json
from dbproxy.paths import Paths

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from dbproxy.config import Settings
    from dbproxy.net.rootfile import Root


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare ``certs`` and its three actions."""
    parser = subparsers.add_parser(
        "certs",
        help="show or rotate the interception root",
        description="The certificate authority with which the proxy reads what its own clients send. It is trusted by "
        "the programs that dbproxy starts and by nothing else, and can sign for the intercepted names only.",
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    show = actions.add_parser("show", help="subject, fingerprint, dates, what it may sign for, files")
    show.add_argument("--json", action="store_true", help="for scripts")
    path = actions.add_parser("path", help="print the file for NODE_EXTRA_CA_CERTS, making the root if there is none")
    path.add_argument(
        "--with-system-roots",
        action="store_true",
        help="print the file for SSL_CERT_FILE instead, which replaces the system's roots and so contains them",
    )
    rotate = actions.add_parser(
        "rotate",
        help="make a new root for new launches; running ones keep theirs",
        description="Makes a new root. Running sessions keep the one that they were given, new launches get the new "
        "one; a running proxy takes it up by itself.",
    )
    rotate.add_argument(
        "--forget-old",
        action="store_true",
        help="also delete the older roots at once, because a key may have been stolen: running sessions are no longer "
        "read until they are started again",
    )
    rotate.add_argument("--json", action="store_true", help="for scripts")


def run(args: argparse.Namespace) -> int:
    """0 when done; raises CertificateError or ConfigError."""
    settings = load_config(args.overrides).settings
    folder = Paths(settings.data_dir).ca
    if args.action == "show":
        return _show(folder, settings, as_json=args.json)
    if args.action == "path":
        return _path(folder, settings, with_system_roots=args.with_system_roots)
    return _rotate(folder, settings, forget_old=args.forget_old, as_json=args.json)


def _show(folder: Path, settings: Settings, *, as_json: bool) -> int:
    """Reads only: nothing is made, renewed or repaired by looking."""
    from dbproxy.net import rootfile

    now = time.time()
    roots, broken = rootfile.inspect(folder)
    current = rootfile.choose(roots, rootfile.normalised(settings.intercept), now)
    if as_json:
        print_json(
            {
                "folder": str(folder),
                "intercept": list(settings.intercept),
                "current": current.fingerprint if current else None,
                "roots": [_facts(root, current, now) for root in roots],
                "broken": [{"file": str(path), "reason": reason} for path, reason in broken],
                "bundle": str(folder / "bundle.pem"),
                "child_bundle": str(folder / "child-bundle.pem"),
            }
        )
        return 0
    if current is None:
        print(f"No interception root for {', '.join(settings.intercept)} yet: the first start of the proxy makes one.")
    for root in sorted(roots, key=lambda root: (root is not current, -root.sequence)):
        _print_root(root, current, now)
    for path, reason in broken:
        print(f"Unusable file\n  {path}: {reason}\n")
    print("Files for clients")
    print(f"  NODE_EXTRA_CA_CERTS  {folder / 'bundle.pem'}")
    print(f"  SSL_CERT_FILE        {folder / 'child-bundle.pem'}")
    return 0


def _facts(root: Root, current: Root | None, now: float) -> dict[str, object]:
    from dbproxy.net import mint

    return {
        "fingerprint": root.fingerprint,
        "subject": mint.subject_of(root.pem),
        "state": _state(root, current, now),
        "not_before": _stamp(root.not_before),
        "not_after": _stamp(root.not_after),
        "permitted": list(mint.permitted_names(root.pem)),
        "file": str(root.path),
    }


def _state(root: Root, current: Root | None, now: float) -> str:
    if current is not None and root.fingerprint == current.fingerprint:
        return "current"
    if now < root.not_before:
        return "not valid yet"
    return "older" if root.valid(now) else "expired"


def _print_root(root: Root, current: Root | None, now: float) -> None:
    facts = _facts(root, current, now)
    permitted = facts["permitted"]
    names = ", ".join(permitted) if isinstance(permitted, list) and permitted else "no name at all"
    print(f"Interception root ({facts['state']})")
    print(f"  subject      {facts['subject']}")
    print(f"  fingerprint  SHA-256 {root.fingerprint}")
    print(f"  valid        {facts['not_before']} to {facts['not_after']}")
    print(f"  may sign     {names} (and, as X.509 has it, names below a host name); nothing else")
    print(f"  file         {root.path} (with the private key: keep it to yourself)\n")


def _stamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _path(folder: Path, settings: Settings, *, with_system_roots: bool) -> int:
    from dbproxy.net.ca import Authority

    authority = Authority.open(folder, settings.intercept)
    if with_system_roots:
        from dbproxy.net import trust

        print(authority.write_child_bundle(trust.system_bundle()))
    else:
        print(authority.bundle_path)
    return 0


def _rotate(folder: Path, settings: Settings, *, forget_old: bool, as_json: bool) -> int:
    from dbproxy.net import ca

    authority = ca.rotate(folder, settings.intercept)
    dropped = authority.prune((), grace=0.0) if forget_old else ()
    if authority.child_bundle_path.exists():
        from dbproxy.net import trust

        authority.write_child_bundle(trust.system_bundle())
    notices = authority.take_notices()
    if as_json:
        print_json(
            {
                "current": authority.current.fingerprint,
                "file": str(authority.current.path),
                "deleted": [root.fingerprint for root in dropped],
                "notices": notices,
            }
        )
        return 0
    print(f"New root: SHA-256 {authority.current.fingerprint}")
    print(f"  {authority.current.path}")
    if forget_old:
        print(f"Deleted {len(dropped)} older; sessions that run are not read until they are started again.")
    else:
        print("Sessions that run keep the root that they were given; new launches get this one.")
    for text in notices:
        print(f"Note: {text}")
    return 0
