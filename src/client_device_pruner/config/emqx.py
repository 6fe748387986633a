"""Where EMQX's HTTP API is reached, out of the EMQX component's own configuration, and what is missing of it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from client_device_pruner.config.finding import Finding
from client_device_pruner.config.settings import Settings, is_loopback

EMQX = "aws.greengrass.clientdevices.mqtt.EMQX"
"""EMQX's component name."""

_PORT = 18083  # EMQX's usual one
_DOCKER_OPTIONS = "-p 8883:8883"  # the EMQX component's default
_LOGIN = {"default_username": ("admin", "pruner"), "default_password": ("public", "CHANGE-ME")}  # EMQX's, and ours
_BIND = re.compile(r"(?:(?P<host>.*):)?(?P<port>[0-9]{1,5})")
_OFF = 'or, to do without it, set presence.clientList.url of this component to ""'


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

    `off` if a configuration, ours or EMQX', switches the API off, so that nobody expects an answer.
    """

    reason: str
    finding: Finding | None = None
    off: bool = False


@dataclass(frozen=True, slots=True)
class _Published:
    """A port of the container on an address of the host; address "" is all of them, port "" is any."""

    option: str
    address: str
    port: str
    container_port: str


def client_list_access(settings: Settings, emqx: Mapping[str, Any] | None) -> Access | NoAccess:
    """Work out how to reach the API that tells who is connected; `emqx` None: EMQX is not deployed."""
    wanted = settings.presence.client_list
    if not wanted.url:
        return NoAccess("presence.clientList.url is empty", off=True)
    if wanted.url != "auto":
        return _configured(wanted.url, wanted.credentials_file)
    if emqx is None:
        return NoAccess("EMQX is not deployed")
    bind = _at(emqx, "emqxConfig", "dashboard", "listeners", "http", "bind")
    found = _BIND.fullmatch(f"{bind:g}" if isinstance(bind, float) else str(bind))
    host, port = ((found["host"] or "").strip("[]"), int(found["port"])) if found else ("", 0)
    options = emqx.get("dockerOptions")
    published, host_network = _docker(options if isinstance(options, str) else "")
    own_bind = f"127.0.0.1:{port or _PORT}" if host_network else str(port or _PORT)
    if not port:
        finding = "is off: devices that are connected without a word cannot be told from those that are gone"
        return replace(_refused("its HTTP API is off", finding, emqx, own_bind), off=True)
    # AWS's component has Docker options wherever it runs EMQX in Docker.
    if is_loopback(host) and (host_network or options is None):
        return _access(host, port, emqx, wanted.credentials_file)
    if host_network:
        finding = f"listens beyond the loopback of the core (bind {bind})"
        return _refused("its HTTP API is not on the loopback alone", finding, emqx, own_bind)
    mine = [one for one in published if one.container_port == str(port)]
    for one in mine:
        if not is_loopback(one.address):
            finding = f"is published beyond the loopback of the core (-p {one.option})"
            return _refused("its HTTP API is not on the loopback alone", finding, emqx, own_bind)
    if is_loopback(host):
        finding = f"listens on the loopback of its container (bind {bind}), where nobody else reaches it"
        return _refused("its HTTP API cannot be reached", finding, emqx, own_bind)
    for one in mine:
        if one.port.isdecimal():
            return _access(one.address, int(one.port), emqx, wanted.credentials_file)
    finding = f"is on, but port {port} of its container is not published on the core (dockerOptions)"
    return _refused("the port of its HTTP API is not published", finding, emqx, own_bind)


def diagnose_client_list(settings: Settings, emqx: Mapping[str, Any] | None) -> Iterator[Finding]:
    """Find what keeps the client list from being used, or what makes it unsafe."""
    access = client_list_access(settings, emqx)
    if isinstance(access, NoAccess):
        if access.finding:
            yield access.finding
    elif not access.credentials_file and access.password == _LOGIN["default_password"][0]:
        yield Finding(
            f"The login of EMQX's HTTP API has the password that everybody knows. Merge into {EMQX}",
            json.dumps({"emqxConfig": {"dashboard": {name: ours for name, (_, ours) in _LOGIN.items()}}}),
        )


def _configured(url: str, credentials_file: str) -> Access | NoAccess:
    if credentials_file:
        path = urlsplit(url).path.strip("/")
        return Access(url if path else f"{url.rstrip('/')}/api/v5", "", "", credentials_file)
    reason = "presence.clientList.url is given without presence.clientList.credentialsFile"
    remedy = 'Give the absolute path of a file with key:secret or user:password, or set the URL to "auto".'
    return NoAccess(reason, Finding(f"The client list cannot be asked for: {reason}", remedy))


def _access(host: str, port: int, emqx: Mapping[str, Any], credentials_file: str) -> Access:
    base = f"http://{f'[{host}]' if ':' in host else host}:{port}/api/v5"
    if credentials_file:
        return Access(base, "", "", credentials_file)
    username, password = (_login(emqx, name) or usual for name, (usual, _) in _LOGIN.items())
    return Access(base, username, password, "")


def _login(emqx: Mapping[str, Any], name: str) -> str:
    value = _at(emqx, "emqxConfig", "dashboard", name)
    return "" if value is None else str(value)


def _refused(reason: str, finding: str, emqx: Mapping[str, Any], bind: str) -> NoAccess:
    """Say what is wrong, with the JSON of what lacks: the user's login and other Docker options stay as they are."""
    http: dict[str, Any] = {"listeners": {"http": {"bind": int(bind) if bind.isdecimal() else bind}}}
    dashboard = http | {name: ours for name, (_, ours) in _LOGIN.items() if not _login(emqx, name)}
    document: dict[str, Any] = {"emqxConfig": {"dashboard": dashboard}}
    if bind.isdecimal():
        options = emqx.get("dockerOptions")
        document["dockerOptions"] = _merged(options if isinstance(options, str) else _DOCKER_OPTIONS, bind)
    text = f"EMQX's HTTP API {finding}, so the client list is not used. Merge into {EMQX}, {_OFF}"
    return NoAccess(reason, Finding(text, json.dumps(document)))


def _merged(options: str, port: str) -> str:
    """Publish a port of the container on the loopback alone, beside whatever the options have."""
    mine = [one for one in _docker(options)[0] if one.container_port == port]
    for one in mine:
        if not is_loopback(one.address):
            own = f"127.0.0.1:{one.port or port}:{port}"
            options = re.sub(rf"(?<![\w.:]){re.escape(one.option)}(?![\w.:/])", own, options, count=1)
    return (
        options
        if any(one.port or not is_loopback(one.address) for one in mine)
        else (f"{options} -p 127.0.0.1:{port}:{port}".strip())
    )


def _docker(options: str) -> tuple[list[_Published], bool]:
    """Read the options of `docker run`: the TCP ports that are published, and whether it uses the host's network."""
    try:
        words = iter(shlex.split(options))
    except ValueError:  # a quote that does not end
        words = iter(options.split())
    published, host_network = [], False
    for word in words:
        name, _, value = word.partition("=")
        if name in {"-p", "--publish", "--network", "--net"}:
            value = value or next(words, "")
        elif word.startswith("-p"):
            name, value = "-p", word[2:]
        if name in {"--network", "--net"}:
            host_network = host_network or value == "host"
        elif name in {"-p", "--publish"}:
            ports, _, protocol = value.partition("/")
            *above, container_port = ports.rsplit(":", 2)
            address, port = ["", "", *above][-2:]
            if protocol in {"", "tcp"}:
                published.append(_Published(value, address.strip("[]"), port, container_port))
    return published, host_network


def _at(document: object, *keys: str) -> Any:
    for key in keys:
        document = document.get(key) if isinstance(document, Mapping) else None
    return document
