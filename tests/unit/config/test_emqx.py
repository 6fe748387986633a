"""The client list's address and login come out of EMQX's own configuration, or it is said what is missing of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client_device_pruner.config.emqx import Access, NoAccess, client_list_access, diagnose_client_list
from client_device_pruner.config.settings import Settings, parse
from local_core.recipe import merge

LOGIN = {"default_username": "pruner", "default_password": "secret-7"}
PUBLISHED = "-p 8883:8883 -p 127.0.0.1:18083:18083"
PLACEHOLDER = {"default_username": "pruner", "default_password": "CHANGE-ME"}
LISTENERS = {"http": {"bind": 18083}}
CONTRACT = {"emqxConfig": {"dashboard": {"listeners": LISTENERS, **PLACEHOLDER}}, "dockerOptions": PUBLISHED}
DEFAULTS = Settings()


def emqx(bind: Any = 18083, docker: str | None = PUBLISHED, login: dict[str, str] | None = None) -> dict[str, Any]:
    """A configuration of the EMQX component."""
    dashboard = {"listeners": {"http": {"bind": bind}}, **(LOGIN if login is None else login)}
    return {"emqxConfig": {"dashboard": dashboard}, **({} if docker is None else {"dockerOptions": docker})}


def url_of(configuration: dict[str, Any]) -> str:
    """The URL that is worked out, or the reason why there is none."""
    access = client_list_access(DEFAULTS, configuration)
    return access.url if isinstance(access, Access) else access.reason


def remedy_of(configuration: dict[str, Any], settings: Settings = DEFAULTS) -> dict[str, Any]:
    """The JSON that mends it, which must be all that is needed."""
    access = client_list_access(settings, configuration)
    assert isinstance(access, NoAccess)
    assert access.finding is not None
    remedy: dict[str, Any] = json.loads(access.finding.remedy)
    assert isinstance(client_list_access(settings, merge(configuration, remedy)), Access)
    return remedy


BINDS = (18083.0, "18083", "0.0.0.0:18083", ":::18083", "[::]:18083")


@pytest.mark.parametrize(
    ("bind", "docker", "address"),
    [
        *((bind, PUBLISHED, "127.0.0.1:18083") for bind in BINDS),
        (18083, "-p 8883:8883 --publish 127.0.0.1:28083:18083", "127.0.0.1:28083"),
        (18083, "--publish=127.0.0.1:18083:18083/tcp", "127.0.0.1:18083"),
        (18083, "-p=127.0.0.1:18083:18083", "127.0.0.1:18083"),
        (18083, "-p127.0.0.1:18083:18083", "127.0.0.1:18083"),
        (18083, "-p 18083:18083/udp -p '127.0.0.1:18084:18083' --memory 1g", "127.0.0.1:18084"),
        (18083, "-p 127.0.0.1:18084:18083 -p 127.0.0.1:18085:18083", "127.0.0.1:18084"),
        (18083, '--publish="127.0.0.1:18083:18083" --network host-like', "127.0.0.1:18083"),
        (18083, "--privileged -p 0.0.0.0:18084:18084 -p 127.0.0.1:18083:18083 --name 'x", "127.0.0.1:18083"),
        (18083, "-p [::1]:18083:18083", "[::1]:18083"),
        ("127.0.0.1:18083", "--network host", "127.0.0.1:18083"),
        ("127.0.0.1:18084", "-p 8883:8883 --net=host", "127.0.0.1:18084"),
        ("127.0.0.1:18083", "--network='host' --memory 1g", "127.0.0.1:18083"),
        ("localhost:18083", "--network host", "localhost:18083"),
        ("127.0.0.1:18083", None, "127.0.0.1:18083"),
        ("[::1]:18083", None, "[::1]:18083"),
    ],
)
def test_where_the_api_is_reached(bind: Any, docker: str | None, address: str) -> None:
    """At the port that Docker publishes, however it is written; at the bind on the host's network or without Docker."""
    assert url_of(emqx(bind, docker)) == f"http://{address}/api/v5"


def test_the_login_comes_from_emqx() -> None:
    """The configured one, or EMQX's own where none is given; the password is in no representation."""
    access = client_list_access(DEFAULTS, emqx())
    assert access == Access("http://127.0.0.1:18083/api/v5", "pruner", "secret-7", "")
    assert "secret-7" not in repr(access)
    assert list(diagnose_client_list(DEFAULTS, emqx())) == []
    usual = client_list_access(DEFAULTS, emqx(login={}))
    assert usual == Access("http://127.0.0.1:18083/api/v5", "admin", "public", "")
    (finding,) = diagnose_client_list(DEFAULTS, emqx(login={}))
    assert "well-known password" in finding.finding
    assert json.loads(finding.remedy)["emqxConfig"]["dashboard"] == PLACEHOLDER
    assert diagnose_client_list(DEFAULTS, emqx(login=PLACEHOLDER)) == (finding,)


@pytest.mark.parametrize(
    "configuration",
    [{}, {"emqxConfig": None}, {"emqxConfig": {}, "dockerOptions": "-p 8883:8883"}, emqx(0, "-p 8883:8883", {})],
)
def test_an_api_that_is_off(configuration: dict[str, Any]) -> None:
    """It is off by default; the remedy is the contract's JSON."""
    assert url_of(configuration) == "EMQX's HTTP API is off"
    assert remedy_of(configuration) == CONTRACT


def test_what_is_there_stays() -> None:
    """Other Docker options and a login are kept, and only what lacks is added; a password is never repeated."""
    remedy = remedy_of(emqx(0, "-p 1883:1883 -v /etc/emqx:/mnt --memory 1g"))
    assert remedy == {
        "emqxConfig": {"dashboard": {"listeners": LISTENERS}},
        "dockerOptions": "-p 1883:1883 -v /etc/emqx:/mnt --memory 1g -p 127.0.0.1:18083:18083",
    }
    assert remedy_of(emqx(18084, "-p 8883:8883"))["dockerOptions"] == "-p 8883:8883 -p 127.0.0.1:18084:18084"
    assert remedy_of(emqx("127.0.0.1:18083"))["dockerOptions"] == PUBLISHED
    on_host = remedy_of(emqx(0, "--network host"))["emqxConfig"]["dashboard"]["listeners"]
    assert on_host == {"http": {"bind": "127.0.0.1:18083"}}


@pytest.mark.parametrize(
    ("docker", "mended"),
    [
        ("-p 8883:8883 -p 18083:18083", PUBLISHED),
        ("-p 0.0.0.0:18083:18083 -p 8883:8883", PUBLISHED),
        ("-p 8883:8883 -p 192.168.1.5:28083:18083/tcp", PUBLISHED),
        ("-p 8883:8883 -p 18083", PUBLISHED),
        ("-p 127.0.0.1:18083:18083 -p 8883:8883 -p 28083:18083", PUBLISHED),
        ("--network host -p 8883:8883", None),
        (None, None),
    ],
)
def test_what_is_open_beyond_the_loopback_is_refused(docker: str | None, mended: str | None) -> None:
    """Whoever reaches the core could try passwords: it is said, and the remedy closes it; natively by the bind."""
    assert url_of(emqx(docker=docker)) == "EMQX's HTTP API can be reached from outside the core device"
    remedy = remedy_of(emqx(docker=docker))
    assert remedy.get("dockerOptions") == mended
    bind = remedy["emqxConfig"]["dashboard"]["listeners"]["http"]["bind"]
    assert bind == (18083 if mended else "127.0.0.1:18083")


def test_a_port_that_is_not_published() -> None:
    """The API is on, and nobody reaches it: not published, or on the loopback of its container."""
    for configuration in (emqx(docker="-p 8883:8883"), emqx(docker=""), emqx("127.0.0.1:18083")):
        assert url_of(configuration) == "EMQX's HTTP API cannot be reached"


def test_a_url_of_the_user() -> None:
    """It needs a credentials file, whatever EMQX's configuration is; an empty one switches the client list off."""

    def settings(**client_list: str) -> Settings:
        return parse({"presence": {"clientList": client_list}})

    deep = settings(url="https://broker.example/emqx/api/v5", credentialsFile="/key")
    assert client_list_access(deep, emqx()) == Access("https://broker.example/emqx/api/v5", "", "", "/key")
    (finding,) = diagnose_client_list(settings(url="https://broker.example/api/v5"), None)
    assert "credentialsFile" in finding.finding
    assert client_list_access(settings(url=""), emqx(0)) == NoAccess("presence.clientList.url is empty", off=True)
    assert client_list_access(settings(), None) == NoAccess("EMQX is not deployed", None)
    own = settings(credentialsFile="/key")
    assert client_list_access(own, emqx()) == Access("http://127.0.0.1:18083/api/v5", "", "", "/key")
    assert not diagnose_client_list(own, emqx())
    assert diagnose_client_list(own, emqx(login={})), "its own login stays open to all, whatever we use"
    assert not diagnose_client_list(deep, emqx(login={}))


@given(
    st.none() | st.integers() | st.floats() | st.text(max_size=20) | st.lists(st.text(max_size=3)),
    st.none() | st.text(max_size=40) | st.text("-p :/0123456789[]'=", max_size=40),
)
def test_any_configuration_is_read(bind: Any, docker: str | None) -> None:
    """Whatever is configured, there is an access, or a reason with JSON to paste."""
    access = client_list_access(DEFAULTS, emqx(bind, docker))
    assert isinstance(access, Access) or (access.finding and json.loads(access.finding.remedy))
