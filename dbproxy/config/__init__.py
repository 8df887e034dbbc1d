"""Settings: one table, and everything that reads it.

``load`` gives a ``Config``; its ``settings`` are plain typed values. ``values`` holds the kinds of values, ``settings``
the table, ``load`` the sources and the trust in project files; ``legacy`` and ``docs`` are imported by who needs them.
Imports ``dbproxy.errors`` and ``dbproxy.paths`` only.
"""

from __future__ import annotations

from dbproxy.config.load import (
    PROJECT_FILE,
    Config,
    Origin,
    Project,
    Refusal,
    SettingsError,
    find_project_file,
    forget_project,
    load,
    suggestion,
    trust_project,
    with_settings,
)
from dbproxy.config.settings import KNOWN_ENVIRONMENT, Settings, Spec, Table, core_table, plugin_setting, setting
from dbproxy.config.values import Context, HostPort, Kind, mask_userinfo

__all__ = [
    "KNOWN_ENVIRONMENT",
    "PROJECT_FILE",
    "Config",
    "Context",
    "HostPort",
    "Kind",
    "Origin",
    "Project",
    "Refusal",
    "Settings",
    "SettingsError",
    "Spec",
    "Table",
    "core_table",
    "find_project_file",
    "forget_project",
    "load",
    "mask_userinfo",
    "plugin_setting",
    "setting",
    "suggestion",
    "trust_project",
    "with_settings",
]
