"""EMQX's HTTP API, asked over real sockets."""

from __future__ import annotations

import base64
import http.client
import json
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from local_core.emqx_api import EmqxApi

if TYPE_CHECKING:
    from collections.abc import Iterator

LIVE = {f"robot-{number}": 1_700_000_000_000 + number for number in range(5)}


@pytest.fixture
def api() -> Iterator[EmqxApi]:
    """Provide a running API over five connections."""
    api = EmqxApi(lambda: live, key="key", secret="secret")
    live = dict(LIVE)
    api.start()
    yield api
    api.stop()


def ask(api: EmqxApi, query: str = "conn_state=connected&limit=1000&page=1", key: str = "key:secret") -> Any:
    """Return the parsed answer."""
    request = urllib.request.Request(f"{api.url}/clients?{query}")  # noqa: S310  # on loopback
    request.add_header("Authorization", "Basic " + base64.b64encode(key.encode()).decode())
    with urllib.request.urlopen(request, timeout=5) as response:  # noqa: S310  # on loopback
        return json.loads(response.read())


def names(answer: Any) -> list[str]:
    """Return the client ids of a page."""
    return [client["clientid"] for client in answer["data"]]


def test_it_lists_who_is_connected(api: EmqxApi) -> None:
    """One page holds everybody, with what a roll call needs."""
    answer = ask(api)
    assert answer["meta"] == {"page": 1, "limit": 1000, "hasnext": False}
    assert names(answer) == sorted(LIVE)
    assert answer["data"][3] == {
        "clientid": "robot-3",
        "connected": True,
        "connected_at": "2023-11-14T22:13:20.003+00:00",
    }
    assert api.requests == ["/api/v5/clients?conn_state=connected&limit=1000&page=1"]
    assert ask(api, "conn_state=disconnected")["data"] == []


def test_pages_follow_one_another(api: EmqxApi) -> None:
    """`hasnext` is true on all pages but the last; one beyond is empty."""
    pages = [ask(api, f"conn_state=connected&limit=2&page={page}") for page in (1, 2, 3, 4)]
    assert [len(page["data"]) for page in pages] == [2, 2, 1, 0]
    assert [page["meta"]["hasnext"] for page in pages] == [True, True, False, False]
    assert [name for page in pages for name in names(page)] == sorted(LIVE)


@pytest.mark.parametrize("key", ["key:wrong", "other:secret", "", "käse:x"])
def test_without_the_key_it_answers_401(api: EmqxApi, key: str) -> None:
    """A wrong key or secret sees nothing."""
    with pytest.raises(urllib.error.HTTPError) as refusal:
        ask(api, key=key)
    with refusal.value as answer:
        assert answer.code == 401
        assert json.loads(answer.read())["code"] == "BAD_API_KEY_OR_SECRET"


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "page=0", "limit=10001"])
def test_nonsense_is_refused(api: EmqxApi, query: str) -> None:
    """Pages and limits have bounds."""
    with pytest.raises(urllib.error.HTTPError) as refusal:
        ask(api, query)
    with refusal.value as answer:
        assert answer.code == 400


def test_another_path_is_not_found(api: EmqxApi) -> None:
    """Only the clients are served."""
    assert api.respond("/api/v5/nodes", "Basic a2V5OnNlY3JldA==")[0] == 404


def test_faults_come_to_order(api: EmqxApi) -> None:
    """Status, body, length and `hasnext` can each be wrong."""
    api.faults.status = 503
    with pytest.raises(urllib.error.HTTPError) as refusal:
        ask(api)
    with refusal.value as answer:
        assert answer.code == 503
    api.faults.status = 200
    api.faults.body = b"<html>"
    with pytest.raises(json.JSONDecodeError):
        ask(api)
    api.faults.body = None
    api.faults.cut = True
    with pytest.raises(http.client.IncompleteRead):
        ask(api)
    api.faults.cut = False
    api.faults.has_next_for_ever = True
    assert ask(api, "limit=10&page=50") == {"data": [], "meta": {"page": 50, "limit": 10, "hasnext": True}}


def test_clients_can_change_between_pages() -> None:
    """A hook before each page can move a client from one page to another that was read already."""
    live = dict(LIVE)
    api = EmqxApi(lambda: live)

    def leave(page: int) -> None:
        if page == 2:
            live.pop("robot-0")

    api.faults.before_page = leave
    api.start()
    key = f"{api.key}:{api.secret}"
    first, second = (names(ask(api, f"limit=2&page={page}", key)) for page in (1, 2))
    assert (first, second) == (["robot-0", "robot-1"], ["robot-3", "robot-4"])
    api.stop()


def test_a_slow_answer_ends_with_the_server(api: EmqxApi) -> None:
    """The delay is kept, but it does not hold up a stop."""
    api.faults.delay_seconds = 0.3
    begun = time.monotonic()
    ask(api)
    assert time.monotonic() - begun >= 0.3
    api.faults.delay_seconds = 60
    connection = http.client.HTTPConnection("127.0.0.1", api.port)
    connection.request("GET", "/api/v5/clients")
    while len(api.requests) < 2:
        time.sleep(0.01)
    begun = time.monotonic()
    api.stop()
    assert time.monotonic() - begun < 5
    connection.close()


def test_it_starts_again_on_the_same_port(api: EmqxApi) -> None:
    """After a stop nobody listens; after a start the same address answers."""
    url = api.url
    api.stop()
    with pytest.raises(urllib.error.URLError):
        ask(api)
    api.start()
    assert api.url == url
    assert len(ask(api)["data"]) == 5
