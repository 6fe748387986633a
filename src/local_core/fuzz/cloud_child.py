"""The child process that calls the cloud: its lines in both directions, and what the service answers it."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any, get_args

from botocore.exceptions import ClientError
from botocore.parsers import create_parser
from botocore.session import get_session

from client_device_pruner.cloud import Cloud, Kind
from client_device_pruner.cloud_worker import Batch, Batched, CallFailed, CloudWorker, Listed, ListPage, Ready, Request
from local_core.fuzz.target import Target, document, payload_of, require, seeds

_NOW, _AGE = 100.0, 2.0
_LIST = "ListClientDevicesAssociatedWithCoreDevice"
_DISASSOCIATE = "BatchDisassociateClientDeviceFromCoreDevice"
_ASSOCIATE = "BatchAssociateClientDeviceWithCoreDevice"
_LONGEST_MESSAGE = 500


class _Client:
    """Stands for both of boto3's clients: keeps each call, and answers with what it is given.

    The way of an answer is the library's: the handlers before the parser, then its own parser.
    """

    def __init__(self, status: int, body: bytes) -> None:
        self.meta = self
        self.events = self
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self._status = status
        self._answer = {"status_code": status, "headers": {}, "body": body}
        self._before_parse: Callable[..., None] = lambda **_: None

    def register(self, _event: str, handler: Callable[..., None]) -> None:
        self._before_parse = handler

    def list_client_devices_associated_with_core_device(self, **parameters: Any) -> Any:
        return self._call(_LIST, parameters)

    def batch_associate_client_device_with_core_device(self, **parameters: Any) -> Any:
        return self._call(_ASSOCIATE, parameters)

    def batch_disassociate_client_device_from_core_device(self, **parameters: Any) -> Any:
        return self._call(_DISASSOCIATE, parameters)

    def _call(self, operation: str, parameters: dict[str, Any]) -> Any:
        self.calls.append((operation, parameters))
        self._before_parse(response_dict=self._answer)
        parsed = create_parser("rest-json").parse(self._answer, _model().operation_model(operation).output_shape)
        if self._status >= 300:
            raise ClientError(parsed, operation)
        return parsed


@cache
def _model() -> Any:
    return get_session().get_service_model("greengrassv2")


def _cloud(status: int, body: bytes) -> tuple[Cloud, _Client]:
    client = _Client(status, body)
    cloud = Cloud(
        "core-1",
        reads=client,
        writes=client,
        renew_credentials=lambda: None,
        batch_age_seconds=_AGE,
        clock=lambda: _NOW,
    )
    return cloud, client


def _check_answer(answer: Any) -> None:
    require(("ok" in answer) != ("error" in answer), f"neither an answer nor an error, or both: {answer}")
    if "error" in answer:
        error = answer["error"]
        require(error["kind"] in get_args(Kind), f"an unknown kind of error: {error}")
        require(isinstance(error["code"], str) and len(error["message"]) <= _LONGEST_MESSAGE, f"odd words: {error}")


# --- Requests ----------------------------------------------------------------------------------------------------


def check_request(data: bytes) -> None:
    """A line becomes one call that is as it has to be, or none and an error; the answer fits on one line."""
    cloud, client = _cloud(200, b'{"associatedClientDevices": [], "errorEntries": []}')
    answer = cloud.answer(data)
    _check_answer(answer)
    require(b"\n" not in json.dumps(answer).encode(), "the answer is more than a line")
    request = document(data)
    if "ok" not in answer:
        require(not client.calls, f"an error after a call: {client.calls}")
        return
    require(isinstance(request, dict) and answer["id"] == request["id"], "another request's answer")
    ((operation, parameters),) = client.calls
    require(parameters.pop("coreDeviceThingName") == "core-1", "another core device")
    if operation == _LIST:
        token = {} if request["nextToken"] is None else {"nextToken": request["nextToken"]}
        require(request["op"] == "list" and parameters == {"maxResults": 100, **token}, f"asked for {parameters}")
        return
    names = [entry["thingName"] for entry in parameters["entries"]]
    require(operation == {"associate": _ASSOCIATE, "disassociate": _DISASSOCIATE}[request["op"]], "another call")
    require(names == request["names"] and 1 <= len(names) <= 100, f"{len(names)} names")
    require(all(isinstance(name, str) and name for name in names), f"names that are none: {names}")
    require(0 <= _NOW - request["issued"] <= _AGE, "a batch was sent that is too old")


_LIST_LINE = {"id": 1, "op": "list", "nextToken": None}
_BATCH_LINE = {"id": 2, "op": "disassociate", "names": ["a", "b"], "issued": 99.0}
_REQUEST_WORDS = (
    *("id", "op", "list", "associate", "disassociate", "names", "issued", "nextToken", "a", 97.0, 98.0, 100.0, 100.5),
    *(True, ["a"] * 100, ["a"] * 101, float("nan"), float("inf"), "x" * 200, _LIST_LINE, _BATCH_LINE),
)


# --- Answers -----------------------------------------------------------------------------------------------------


def _undelivered(reply: object) -> None:
    raise NotImplementedError(reply)


def _decoded(data: bytes) -> tuple[Any, dict[int, Request], CloudWorker]:
    pending: dict[int, Request] = {1: ListPage(1), 2: Batch(2, "disassociate", ("a", "b"), 1.0)}
    worker = CloudWorker(core_device="core-1", deliver=_undelivered)
    worker._pending = dict(pending)  # noqa: SLF001 - nothing is to be started
    return worker._decode(data), pending, worker  # noqa: SLF001 - as above


def check_reply(data: bytes) -> None:
    """A line is the answer to what is pending, as it was written; or the protocol is broken, and nothing is lost."""
    reply, pending, worker = _decoded(data)
    left = worker._pending  # noqa: SLF001 - what is pending is what it is about
    text = document(data)
    if isinstance(reply, Ready):
        require(text["ready"] is True and left == pending, "ready, and something else")
    elif isinstance(reply, Listed):
        devices = [tuple(device) for device in text["ok"]["devices"]]
        require(list(reply.devices) == devices and text["id"] == reply.request_id == 1, "another list")
        require(reply.next_token == text["ok"]["nextToken"] and left.keys() == {2}, "another page")
    elif isinstance(reply, Batched):
        errors = [tuple(error[key] for key in ("thingName", "code", "message")) for error in text["ok"]["errors"]]
        said = [(error.thing_name, error.code, error.message) for error in reply.errors]
        require(said == errors and left.keys() == {1} and reply.request_id == 2, "another outcome")
    else:
        require(isinstance(reply, CallFailed) and reply.message is not None, f"no reply: {reply}")
        answered = {reply.request_id} if reply.request_id is not None else set()
        lost = pending.keys() - left.keys() - answered
        require(not lost or reply.code == "Protocol", f"a failure of {answered} took {lost} with it")


_ERROR = {"kind": "throttled", "code": "ThrottlingException", "message": "slow down"}
_LISTED = {"id": 1, "ok": {"devices": [["a", 1700000000.5], ["b", None]], "nextToken": "x"}}
_BATCHED = {"id": 2, "ok": {"errors": [{"thingName": "a", "code": "x", "message": "y"}]}}
_REPLY_WORDS = (
    *(
        "id",
        "ok",
        "error",
        "ready",
        "devices",
        "nextToken",
        "errors",
        "thingName",
        "code",
        "message",
        "kind",
        "a",
        1,
        2,
    ),
    *(3, None, True, False, _ERROR, _LISTED, _BATCHED, ["a", 1], ["a", None], 1e400, {"ready": True}),
)


# --- The service's answers ---------------------------------------------------------------------------------------


def check_service(data: bytes) -> None:
    """An HTTP answer `{"op": …, "status": …, "body": …}` is believed only if it is what the service would say.

    Believed is only a success with a JSON object; and what is believed reaches the parent unchanged.
    """
    match document(data):
        case {"op": "list" | "disassociate" as operation, "status": int(status), "body": raw} if 200 <= status < 600:
            body = payload_of(raw)
        case _:
            return
    cloud, _client = _cloud(status, body)
    names = {"names": ["a", "b"], "issued": _NOW} if operation == "disassociate" else {"nextToken": None}
    number = 2 if operation == "disassociate" else 1
    answer = cloud.answer(json.dumps({"id": number, "op": operation, **names}).encode())
    _check_answer(answer)
    reply, _pending, _worker = _decoded(json.dumps(answer).encode())
    if "error" in answer:
        require(isinstance(reply, CallFailed) and reply.kind == answer["error"]["kind"], f"it failed: {reply}")
        return
    said = document(body)
    require(status < 300 and isinstance(said, dict), f"{status} {body[:60]!r} was believed")
    if operation == "list":
        require(isinstance(reply, Listed), f"the parent takes it for {reply}")
        named = [device["thingName"] for device in said["associatedClientDevices"]]
        require([name for name, _ in reply.devices] == named, f"{named} became {reply.devices}")
        require(reply.next_token in (said.get("nextToken"), None), "another page")
    else:
        require(isinstance(reply, Batched), f"the parent takes it for {reply}")
        refused = [entry["thingName"] for entry in said.get("errorEntries") or []]
        require([error.thing_name for error in reply.errors] == refused, f"{refused} became {reply.errors}")


_PAGE_BODY = {"associatedClientDevices": [{"thingName": "a", "associationTimestamp": 1.7e9}], "nextToken": "x"}
_BATCH_BODY = {"errorEntries": [{"thingName": "a", "code": "ResourceNotFoundException", "message": "no"}]}
_SERVICE_WORDS: tuple[Any, ...] = (
    *(
        "op",
        "status",
        "body",
        "list",
        "disassociate",
        200,
        201,
        204,
        302,
        403,
        404,
        429,
        500,
        "associatedClientDevices",
    ),
    *("errorEntries", "thingName", "associationTimestamp", "nextToken", "code", "message", "a", "b", _PAGE_BODY),
    *(_BATCH_BODY, {"thingName": "b"}, 1.7e9, "2026-01-01T00:00:00Z", 1e300, "", "<html>", "{}", {"message": "x"}),
    *({"__type": "ThrottlingException"}, {"associatedClientDevices": []}),
)

TARGETS = (
    Target("cloud-request", check_request, seeds(_LIST_LINE, _BATCH_LINE, {"id": 3, "op": "list"}), _REQUEST_WORDS),
    Target(
        "cloud-reply",
        check_reply,
        seeds({"ready": True}, {"ready": False, "error": _ERROR}, _LISTED, _BATCHED, {"id": 2, "error": _ERROR}),
        _REPLY_WORDS,
    ),
    Target(
        "cloud-service",
        check_service,
        seeds(
            {"op": "list", "status": 200, "body": _PAGE_BODY},
            {"op": "disassociate", "status": 200, "body": _BATCH_BODY},
            {"op": "disassociate", "status": 200, "body": {"errorEntries": []}},
            {"op": "list", "status": 429, "body": {"__type": "ThrottlingException", "message": "slow"}},
            {"op": "list", "status": 200, "body": "<html>sign in</html>"},
        ),
        _SERVICE_WORDS,
    ),
)
