"""The cloud as a core device sees it: token exchange and Greengrass V2 API, with faults on request."""

import asyncio
import base64
import dataclasses
import heapq
import json
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any
from urllib.parse import parse_qsl, unquote

from local_core.http_server import ConnectionDroppedError, HttpServer, Request, Response
from local_core.sigv4 import signature_of

LIST = "ListClientDevicesAssociatedWithCoreDevice"
ASSOCIATE = "BatchAssociateClientDeviceWithCoreDevice"
DISASSOCIATE = "BatchDisassociateClientDeviceFromCoreDevice"
CREDENTIALS = "GetCredentials"
"""The operation of the token exchange service, in calls and faults."""

_ROUTES = {
    ("GET", "associatedClientDevices"): LIST,
    ("POST", "associateClientDevices"): ASSOCIATE,
    ("POST", "disassociateClientDevices"): DISASSOCIATE,
}
_PATH = re.compile(r"/greengrass/v2/coreDevices/([^/]+)/([^/]+)")
_CREDENTIALS_PATH = "/2016-11-01/credentialprovider/"
_THING_NAME = re.compile(r"[a-zA-Z0-9:_-]{1,128}")
_MOST_ENTRIES = 100


@dataclass(frozen=True, slots=True)
class Call:
    """One request that reached the cloud, whatever became of it."""

    operation: str
    entries: tuple[str, ...] = ()
    """The thing names of a batch, in its order."""
    parameters: Mapping[str, str] = field(default_factory=dict)
    """`coreDeviceThingName` and the query's, as sent."""
    when: float = field(default_factory=time.monotonic)
    """Seconds on the monotonic clock."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong with a request: the first fault in `Cloud.faults` that fits is used, and used up.

    The parts combine: a delay comes first; `status`, `body`, `drop` and `hang` replace the answer, and then
    the request has no effect unless `carried_out` says so (an answer that is lost).
    """

    operation: str = ""
    """`LIST`, `ASSOCIATE`, `DISASSOCIATE` or `CREDENTIALS`; empty: any of the first three."""
    times: int | None = 1
    """How many requests it befalls; None: all, until it is taken off the list."""
    skip: int = 0
    """How many requests that fit pass unharmed before it begins."""
    delay_seconds: float = 0.0
    status: int = 0
    """Status of the answer, with `error` as its type (`ThrottlingException`; empty: none) and `message`."""
    error: str = ""
    message: str = "made to fail"
    body: bytes | None = None
    """Answered as it is, with `content_type` and `status` (200 if that is not set)."""
    content_type: str = "application/json"
    drop: bool = False
    """The connection is reset."""
    hang: bool = False
    """No answer comes until the client or the cloud gives up."""
    carried_out: bool = False
    error_entries: Mapping[str, str] = field(default_factory=dict)
    """Thing name -> code: refused in a batch; names that were not asked for are answered as well."""
    without: tuple[str, ...] = ()
    """Keys missing in the answer: `nextToken` ends the paging early."""
    repeat_token: bool = False
    """A page's `nextToken` is the one that asked for it."""
    expired: bool = False
    """The credentials handed out have expired a minute ago."""

    @property
    def replaces_answer(self) -> bool:
        """Whether the proper answer is withheld."""
        return bool(self.status or self.body is not None or self.drop or self.hang)


class _RefusedError(Exception):
    def __init__(self, status: int, error: str, message: str, **members: Any) -> None:
        super().__init__(message)
        self.response = _error(status, error, message, **members)


@dataclass(frozen=True, slots=True)
class _Credentials:
    access_key: str
    secret_key: str
    token: str
    expires: float


class Cloud:
    """The token exchange service and the Greengrass V2 API for one core device, on 127.0.0.1.

    Attributes:
        associations: Thing name -> associationTimestamp in epoch seconds; None is left out of answers.
        calls: Every request so far, in order of arrival.
        faults: What goes wrong next.
        before: Awaited when a valid request of the API is about to be carried out.
        credentials_token: What the Authorization header for `credentials_url` must be.
        credentials_seconds: How long credentials handed out from now on last.
    """

    def __init__(self, *, core_device: str, region: str = "eu-west-1") -> None:
        self.core_device = core_device
        self.region = region
        self.associations: dict[str, float | None] = {}
        self.calls: list[Call] = []
        self.faults: list[Fault] = []
        self.before: Callable[[Call], Awaitable[None]] | None = None
        self.credentials_token = secrets.token_hex(16)
        self.credentials_seconds = 3600.0
        self._issued: dict[str, _Credentials] = {}
        self._latest_association = 0.0
        self._server = HttpServer(self._answer)

    async def start(self) -> None:
        """Begin to serve; after a `stop` on the same port as before."""
        await self._server.start()

    async def stop(self) -> None:
        """Stop serving; requests in progress are cut off."""
        await self._server.stop()

    @property
    def url(self) -> str:
        """The endpoint of the Greengrass V2 API, for AWS_ENDPOINT_URL_GREENGRASSV2."""
        return f"http://127.0.0.1:{self._server.port}"

    @property
    def credentials_url(self) -> str:
        """The address of the token exchange service, for AWS_CONTAINER_CREDENTIALS_FULL_URI."""
        return f"{self.url}{_CREDENTIALS_PATH}"

    def associate(self, *names: str) -> None:
        """Associate things, anew if they are; each gets a later timestamp than any before."""
        latest = max(self._latest_association, *(stamp or 0.0 for stamp in self.associations.values()), 0.0)
        for name in names:
            latest = max(round(time.time(), 3), round(latest + 0.001, 3))
            self.associations[name] = latest
        self._latest_association = latest

    def disassociate(self, *names: str) -> None:
        """Take things off the list; those not on it are passed over."""
        for name in names:
            self.associations.pop(name, None)

    async def _answer(self, request: Request) -> Response:
        try:
            if request.path == _CREDENTIALS_PATH:
                return await self._answer_credentials(request)
            return await self._answer_api(request)
        except _RefusedError as refusal:
            return refusal.response

    async def _answer_credentials(self, request: Request) -> Response:
        fault = self._take_fault(self._record(Call(CREDENTIALS)))
        await asyncio.sleep(fault.delay_seconds)
        if fault.replaces_answer:
            return await _faulty(fault)
        if request.host:
            return Response(502, b"A proxy does not reach the device's loopback\n", "text/plain")
        if request.method != "GET" or request.headers.get("authorization") != self.credentials_token:
            return Response(403, b"Bad token\n", "text/plain")
        lasts = -60.0 if fault.expired else self.credentials_seconds
        issued = _Credentials(
            access_key="ASIA" + secrets.token_hex(8).upper(),
            secret_key=secrets.token_hex(20),
            token=base64.b64encode(secrets.token_bytes(96)).decode(),
            expires=time.time() + lasts,
        )
        self._issued[issued.access_key] = issued
        answer = {
            "AccessKeyId": issued.access_key,
            "SecretAccessKey": issued.secret_key,
            "Token": issued.token,
            "Expiration": datetime.fromtimestamp(issued.expires, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        return _json({key: value for key, value in answer.items() if key not in fault.without})

    async def _answer_api(self, request: Request) -> Response:
        path = _PATH.fullmatch(request.path)
        operation = _ROUTES.get((request.method, path[2])) if path else None
        if path is None or operation is None:
            raise _RefusedError(404, "UnknownOperationException", "Unable to determine service/operation name.")
        entries, problem = _thing_names(request.body) if operation != LIST else ((), "")
        query = dict(parse_qsl(request.query, keep_blank_values=True))
        core = unquote(path[1])
        call = self._record(Call(operation, entries, {"coreDeviceThingName": core, **query}))
        fault = self._take_fault(call)
        await asyncio.sleep(fault.delay_seconds)
        if fault.replaces_answer and not fault.carried_out:
            return await _faulty(fault)
        self._authenticate(request)
        if problem:
            raise _invalid("entries", problem)
        if core != self.core_device:
            raise _RefusedError(
                404,
                "ResourceNotFoundException",
                f"Core device {core} does not exist.",
                resourceId=core,
                resourceType="coreDevice",
            )
        if self.before is not None:
            await self.before(call)
        answer = self._list(call, fault) if operation == LIST else self._batch(call, fault)
        if fault.replaces_answer:
            return await _faulty(fault)
        return _json({key: value for key, value in answer.items() if key not in fault.without})

    def _record(self, call: Call) -> Call:
        self.calls.append(call)
        return call

    def _take_fault(self, call: Call) -> Fault:
        for place, fault in enumerate(self.faults):
            if fault.operation != call.operation and (fault.operation or call.operation == CREDENTIALS):
                continue
            if fault.skip:
                self.faults[place] = dataclasses.replace(fault, skip=fault.skip - 1)
                continue
            if fault.times is not None:
                rest = [dataclasses.replace(fault, times=fault.times - 1)] if fault.times > 1 else []
                self.faults[place : place + 1] = rest
            return fault
        return Fault()

    def _authenticate(self, request: Request) -> None:
        signature = signature_of(request)
        if signature is None:
            raise _RefusedError(403, "MissingAuthenticationTokenException", "Missing Authentication Token")
        issued = self._issued.get(signature.access_key)
        if issued is None or request.headers.get("x-amz-security-token") != issued.token:
            raise _RefusedError(
                403, "UnrecognizedClientException", "The security token included in the request is invalid."
            )
        if issued.expires <= time.time():
            raise _RefusedError(403, "ExpiredTokenException", "The security token included in the request is expired")
        if signature.scope.split("/")[1:3] != [self.region, "greengrass"]:
            raise _RefusedError(
                403, "InvalidSignatureException", "Credential should be scoped to a valid region and service."
            )
        covered = {"host", "x-amz-date", "x-amz-security-token"} <= set(signature.signed_headers)
        if not covered or not signature.signs(request, issued.secret_key):
            raise _RefusedError(
                403,
                "InvalidSignatureException",
                "The request signature we calculated does not match the signature you provided.",
            )

    def _list(self, call: Call, fault: Fault) -> dict[str, Any]:
        size = call.parameters.get("maxResults", str(_MOST_ENTRIES))
        if not re.fullmatch(r"\d{1,9}", size) or not 1 <= int(size) <= _MOST_ENTRIES:
            raise _invalid("maxResults", f"must be between 1 and {_MOST_ENTRIES}")
        asked = call.parameters.get("nextToken")
        after = "" if asked is None else _name_in(asked)
        # By name, so that a page after others have been disassociated goes on where the last one ended.
        names = heapq.nsmallest(int(size) + 1, (name for name in self.associations if name > after))
        page = names[: int(size)]
        answer: dict[str, Any] = {"associatedClientDevices": [self._association(name) for name in page]}
        if len(page) < len(names):
            answer["nextToken"] = _token_for(page[-1])
        if fault.repeat_token:
            answer["nextToken"] = asked or _token_for(page[-1] if page else "")
        return answer

    def _association(self, name: str) -> dict[str, Any]:
        timestamp = self.associations[name]
        return {"thingName": name} | ({} if timestamp is None else {"associationTimestamp": timestamp})

    def _batch(self, call: Call, fault: Fault) -> dict[str, Any]:
        errors = [_error_entry(name, code) for name, code in fault.error_entries.items()]
        for name in call.entries:
            if name in fault.error_entries:
                continue
            if call.operation == ASSOCIATE:
                if name not in self.associations:
                    self.associate(name)
            elif name in self.associations:
                self.disassociate(name)
            else:
                errors.append(_error_entry(name, "ResourceNotFoundException"))
        return {"errorEntries": errors}


async def _faulty(fault: Fault) -> Response:
    if fault.hang:
        await asyncio.Event().wait()
    if fault.drop:
        raise ConnectionDroppedError
    if fault.body is not None:
        return Response(fault.status or 200, fault.body, fault.content_type)
    return _error(fault.status, fault.error, fault.message)


def _thing_names(body: bytes) -> tuple[tuple[str, ...], str]:
    """Return the batch's names, and what is wrong with them or an empty text."""
    try:
        names = tuple(entry["thingName"] for entry in json.loads(body or b"{}").get("entries") or ())
    except (ValueError, KeyError, TypeError, AttributeError):
        return (), "the request cannot be read"
    if not 1 <= len(names) <= _MOST_ENTRIES:
        return names, f"must have between 1 and {_MOST_ENTRIES} members"
    bad = [name for name in names if not isinstance(name, str) or not _THING_NAME.fullmatch(name)]
    return names, f"not a thing name: {', '.join(map(str, bad))}" if bad else ""


def _name_in(token: str) -> str:
    try:
        mark, name = base64.urlsafe_b64decode(token.encode("ascii")).decode().split(" ")
    except ValueError:
        mark, name = "", ""
    if mark != "after":
        raise _invalid("nextToken", "is not one that was handed out")
    return name


def _token_for(name: str) -> str:
    return base64.urlsafe_b64encode(f"after {name}".encode()).decode()


def _error_entry(name: str, code: str) -> dict[str, str]:
    return {"thingName": name, "code": code, "message": f"{name}: {code}"}


def _invalid(member: str, problem: str) -> _RefusedError:
    fields: Iterable[Mapping[str, str]] = [{"name": member, "message": problem}]
    message = f"{member}: {problem}"
    return _RefusedError(400, "ValidationException", message, reason="FIELD_VALIDATION_FAILED", fields=fields)


def _json(answer: Mapping[str, Any]) -> Response:
    headers = {"x-amzn-RequestId": secrets.token_hex(16)}
    return Response(200, json.dumps(answer).encode(), headers=headers)


def _error(status: int, error: str, message: str, **members: Any) -> Response:
    headers = {"x-amzn-RequestId": secrets.token_hex(16)} | ({"x-amzn-ErrorType": error} if error else {})
    return Response(status, json.dumps({"message": message, **members}).encode(), headers=headers)
