"""Where EMQX's HTTP API is reached, out of the EMQX component's own configuration, and what is missing of it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from client_device_pruner.config.finding import Finding
from client_device_pruner.config.settings import Settings

EMQX = "aws.greengrass.clientdevices.mqtt.EMQX"  # the component's name

_PORT = 18083  # EMQX's usual one
_USUAL_LOGIN = ("admin", "public")  # EMQX's, where none is configured
_LOGIN = {"default_username": "pruner", "default_password": "CHANGE-ME"}
_DOCKER_OPTIONS = "-p 8883:8883"  # the EMQX component's default
_BIND = re.compile(r"(?:(.*):)?([0-9]{1,5})(?:\.0)?")
_PUBLISHED = re.compile(
    r"(?<!\S)(?:-p|--publish)[ =]*['\"]?(?:(?P<address>[\d.]+\.\d+|\[.*?\]):)?(?:(?P<port>\d+):)?(?P<inside>\d+)"
    r"(?:/tcp)?['\"]?(?!\S)"
)
_HOST_NETWORK = re.compile(r"--net(?:work)?[ =]+['\"]?host['\"]?(?!\S)")
_LOOPBACK = re.compile(r"localhost|127\.[0-9.]+|\[::1\]")


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach the API; with `credentials_file` empty, by user name and password."""

    url: str
    username: str
    password: str = field(repr=False)
    credentials_file: str


@dataclass(frozen=True, slots=True)
class NoAccess:
    """Why the API is not used; `finding` is there if the user can mend it.

    `off` if a configuration, ours or EMQX', switches the API off, so that no answer is expected.
    """

    reason: str
    finding: Finding | None = None
    off: bool = False


def client_list_access(settings: Settings, emqx: Mapping[str, Any] | None) -> Access | NoAccess:
    """Work out how to reach the API that lists the connected clients; `emqx` None: EMQX is not deployed."""
    wanted = settings.presence.client_list
    if not wanted.url:
        return NoAccess("presence.clientList.url is empty", off=True)
    if wanted.url != "auto" and wanted.credentials_file:
        return Access(wanted.url, "", "", wanted.credentials_file)
    if wanted.url != "auto":
        reason = "presence.clientList.url is set without presence.clientList.credentialsFile"
        remedy = 'Give the absolute path of a file with key:secret or user:password, or set the URL to "auto".'
        return NoAccess(reason, Finding(f"The client list cannot be asked for: {reason}", remedy))
    if emqx is None:
        return NoAccess("EMQX is not deployed")
    bind = _at(emqx, "emqxConfig", "dashboard", "listeners", "http", "bind")
    host, port = bound.groups() if (bound := _BIND.fullmatch(str(bind))) else (None, "0")
    if int(port) == 0:
        reason = "EMQX's HTTP API is off"
        return NoAccess(reason, _mend(emqx, "is off", _PORT, off=True), off=True)
    options = emqx.get("dockerOptions")
    if _is_on_host(options):
        reached = [(host or "0.0.0.0", port)]  # noqa: S104 - a bare port is on all addresses
    elif host and _LOOPBACK.fullmatch(host):
        reached = []  # the container's own
    else:
        published = [found for found in _PUBLISHED.finditer(str(options)) if found["inside"] == port]
        reached = [(found["address"] or "0.0.0.0", found["port"]) for found in published]  # noqa: S104 - as above
    if any(not _LOOPBACK.fullmatch(address) for address, _ in reached):
        why = "can be reached from outside the core device"
        return NoAccess("EMQX's HTTP API can be reached from outside the core device", _mend(emqx, why, int(port)))
    if not reached:
        why = f"is on, but port {port} of its container (bind {bind}) is not published on the core (dockerOptions)"
        return NoAccess("EMQX's HTTP API cannot be reached", _mend(emqx, why, int(port)))
    address, port = reached[0]
    url = f"http://{address}:{port}/api/v5"
    if wanted.credentials_file:
        return Access(url, "", "", wanted.credentials_file)
    return Access(url, *_login(emqx), "")


def diagnose_client_list(settings: Settings, emqx: Mapping[str, Any] | None) -> tuple[Finding, ...]:
    """Find what keeps the client list from being used, or what makes it unsafe."""
    access = client_list_access(settings, emqx)
    if isinstance(access, NoAccess):
        return (access.finding,) if access.finding else ()
    if settings.presence.client_list.url != "auto" or emqx is None:
        return ()
    if _login(emqx)[1] not in (_USUAL_LOGIN[1], _LOGIN["default_password"]):
        return ()
    text = f"The login of EMQX's HTTP API has a well-known password. Merge into {EMQX}, with a password of your own,"
    return (Finding(text, json.dumps({"emqxConfig": {"dashboard": _LOGIN}})),)


def _login(emqx: Mapping[str, Any]) -> tuple[str, str]:
    """The user and password that EMQX has."""
    username, password = (
        str(_at(emqx, "emqxConfig", "dashboard", key) or usual) for key, usual in zip(_LOGIN, _USUAL_LOGIN, strict=True)
    )
    return username, password


def _is_on_host(docker_options: object) -> bool:
    """Whether EMQX has the host's own network: AWS's component has Docker options wherever it runs EMQX in Docker."""
    return docker_options is None or _HOST_NETWORK.search(str(docker_options)) is not None


def _mend(emqx: Mapping[str, Any], why: str, port: int, *, off: bool = False) -> Finding:
    """What is wrong, with the JSON that mends it: the user's login and other Docker options stay as they are."""
    options = emqx.get("dockerOptions", _DOCKER_OPTIONS if off else None)
    on_host = _is_on_host(options)
    bind = f"127.0.0.1:{port}" if on_host else port
    login = {key: ours for key, ours in _LOGIN.items() if not _at(emqx, "emqxConfig", "dashboard", key)}
    document: dict[str, Any] = {"emqxConfig": {"dashboard": {"listeners": {"http": {"bind": bind}}, **login}}}
    if not on_host:
        others = _PUBLISHED.sub(lambda found: "" if found["inside"] == str(port) else found[0], str(options))
        document["dockerOptions"] = " ".join(f"{others} -p 127.0.0.1:{port}:{port}".split())
    without = 'or, to do without the list, set presence.clientList.url to ""'
    told = f"EMQX's HTTP API {why}, so the client list, the best evidence, is not used. Merge into {EMQX} ({without})"
    return Finding(told, json.dumps(document))


def _at(document: object, *keys: str) -> Any:
    for key in keys:
        document = document.get(key) if isinstance(document, Mapping) else None
    return document
