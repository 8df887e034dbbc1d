"""Our own command line, split without guessing: options that stand before the command, the command, and the rest.

Owns the split, because everything behind ``claude`` or ``run`` belongs to the child and must reach it untouched, which
argparse cannot promise. Must never import trio or the network. Invariant: the rest is returned exactly as given.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class UsageError(Exception):
    """The command line makes no sense; exit code 2."""


@dataclass(frozen=True, slots=True)
class SettingOption:
    """One setting as an option: ``flag VALUE``, repeatable for lists, or ``flag`` alone when ``is_flag``."""

    name: str
    flag: str
    is_flag: bool
    is_list: bool
    help: str


@dataclass(slots=True)
class CommandLine:
    """The parsed front of a command line. ``overrides`` maps setting names to the text given."""

    command: str | None = None
    rest: list[str] = field(default_factory=list)
    overrides: dict[str, str] = field(default_factory=dict)
    debug: bool = False
    help: bool = False
    version: bool = False


def setting_options() -> dict[str, SettingOption]:
    """Every setting that can be given on the command line, by its flag, from the one table of settings."""
    from dbproxy.config import core_table

    return {
        spec.option: SettingOption(spec.name, spec.option, spec.kind.flag, spec.kind.many, spec.help)
        for spec in core_table().specs
    }


def split(argv: Sequence[str], line: CommandLine) -> None:
    """Take our own options off the front of ``argv`` into ``line``; the first word that is none is the command.

    Raises UsageError for an unknown option, naming the nearest known one.
    """
    options: Mapping[str, SettingOption] | None = None
    index = 0
    while index < len(argv):
        word = argv[index]
        if not word.startswith("-") or word == "-":
            line.command = word
            line.rest = list(argv[index + 1 :])
            break
        if options is None and word not in _OWN:
            options = setting_options()
        index = _take(argv, index, line, options or {})


def take_settings(argv: Sequence[str], line: CommandLine) -> list[str]:
    """Take settings given behind the command (``serve --listen ...``) out of ``argv``; the remainder is returned."""
    remainder: list[str] = []
    options: Mapping[str, SettingOption] | None = None
    index = 0
    while index < len(argv):
        word = argv[index]
        if word == "--":
            remainder.extend(argv[index:])
            break
        if not word.startswith("--"):
            remainder.append(word)
            index += 1
            continue
        options = setting_options() if options is None else options
        flag = word.partition("=")[0]
        if word == "--debug" or flag in options or _negated(flag, options):
            index = _take(argv, index, line, options)
        else:
            remainder.append(word)
            index += 1
    return remainder


_OWN = frozenset({"--debug", "-h", "--help", "--version", "-V"})


def _take(argv: Sequence[str], index: int, line: CommandLine, options: Mapping[str, SettingOption]) -> int:
    word = argv[index]
    flag, equals, value = word.partition("=")
    if word == "--debug":
        line.debug = True
    elif word in ("-h", "--help"):
        line.help = True
    elif word in ("-V", "--version"):
        line.version = True
    elif (negated := _negated(flag, options)) is not None and not equals:
        line.overrides[negated.name] = "false"
    elif (option := options.get(flag)) is None:
        raise UsageError(_unknown(flag, options))
    elif option.is_flag:
        line.overrides[option.name] = value if equals else "true"
    else:
        if not equals:
            index += 1
            if index >= len(argv):
                raise UsageError(f"{flag} needs a value")
            value = argv[index]
        previous = line.overrides.get(option.name)
        # Lists add up; for anything else the last one wins, as everywhere.
        line.overrides[option.name] = f"{previous},{value}" if previous is not None and option.is_list else value
    return index + 1


def _negated(flag: str, options: Mapping[str, SettingOption]) -> SettingOption | None:
    if not flag.startswith("--no-"):
        return None
    option = options.get("--" + flag[5:])
    return option if option is not None and option.is_flag and flag not in options else None


def _unknown(flag: str, options: Mapping[str, SettingOption]) -> str:
    import difflib

    near = difflib.get_close_matches(flag, [*options, *_OWN], n=1, cutoff=0.6)
    advice = f" Did you mean {near[0]}?" if near else ""
    return f"unknown option {flag}.{advice} Options of the agent stand behind the word claude or run"
