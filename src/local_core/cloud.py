"""The cloud as a core device sees it: token exchange and Greengrass V2 API, with faults on request."""

from __future__ import annotations

import asyncio
import heapq
import json
import re
import secrets
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote

from local_core.http_server import HttpFault, HttpServer, Request, Response, take_fault

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

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
_API = frozenset(_ROUTES.values())
_PATH = re.compile(r"/greengrass/v2/coreDevices/([^/]+)/([^/]+)")
_CREDENTIALS_PATH = "/2016-11-01/credentialprovider/"
_THING_NAME = re.compile(r"[a-zA-Z0-9:_-]{1,128}")
_MOST_ENTRIES = 100
_AFTER = "after:"
_SIGNATURE = re.compile(r"AWS4-HMAC-SHA256 Credential=(?P<key>[^/,]+)/\d{8}/(?P<scope>[^/,]+/[^/,]+)/aws4_request,.*")


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault(HttpFault):
    """What goes wrong with a request: `LIST`, `ASSOCIATE`, `DISASSOCIATE` or `CREDENTIALS`; empty: the first three.

    Attributes:
        error_entries: Thing name -> code: refused in a batch; names that were not asked for are answered as well.
        hidden: Names that a list leaves out, with 200.
        without: Keys missing in the answer: `nextToken` ends the paging early.
        repeat_token: A page's `nextToken` is the one that asked for it.
        expired: The credentials handed out have expired a minute ago.
    """

    error_entries: Mapping[str, str] = field(default_factory=dict)
    hidden: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    repeat_token: bool = False
    expired: bool = False


class _RefusedError(Exception):
    def __init__(self, status: int, error: str, message: str, **members: Any) -> None:
        super().__init__(message)
        self.response = _error(status, error, message, **members)


@dataclass(frozen=True, slots=True)
class _Credentials:
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
        fault = await self._meet(Call(CREDENTIALS))
        if fault.replaces_answer:
            return await fault.answer(_error)
        if request.host:
            return Response(502, b"A proxy does not reach the device's loopback\n")
        if request.method != "GET" or request.headers.get("authorization") != self.credentials_token:
            return Response(403, b"Bad token\n")
        lasts = -60.0 if fault.expired else self.credentials_seconds
        access_key = "ASIA" + secrets.token_hex(8).upper()
        issued = _Credentials(secrets.token_urlsafe(96), time.time() + lasts)
        self._issued[access_key] = issued
        answer = {
            "AccessKeyId": access_key,
            "SecretAccessKey": secrets.token_hex(20),
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
        call = Call(operation, entries, {"coreDeviceThingName": core, **query})
        fault = await self._meet(call)
        if fault.replaces_answer and not fault.carried_out:
            return await fault.answer(_error)
        self._authenticate(request)
        if problem:
            raise _invalid("entries", problem)
        if core != self.core_device:
            subject = {"resourceId": core, "resourceType": "coreDevice"}
            raise _RefusedError(404, "ResourceNotFoundException", f"Core device {core} does not exist.", **subject)
        if self.before is not None:
            await self.before(call)
        answer = self._list(call, fault) if operation == LIST else self._batch(call, fault)
        if fault.replaces_answer:
            return await fault.answer(_error)
        return _json({key: value for key, value in answer.items() if key not in fault.without})

    async def _meet(self, call: Call) -> Fault:
        """Record a call, and return the fault that befalls it after that fault's delay."""
        self.calls.append(call)
        fault = take_fault(self.faults, call.operation, among=_API, none=Fault())
        await asyncio.sleep(fault.delay_seconds)
        return fault

    def _authenticate(self, request: Request) -> None:
        """Refuse what is not signed with credentials that were issued; the signature itself is not worked out."""
        signature = _SIGNATURE.fullmatch(request.headers.get("authorization", ""))
        if signature is None:
            raise _RefusedError(403, "MissingAuthenticationTokenException", "Missing Authentication Token")
        issued = self._issued.get(signature["key"])
        if issued is None or request.headers.get("x-amz-security-token") != issued.token:
            raise _RefusedError(403, "UnrecognizedClientException", "The security token in the request is invalid.")
        if issued.expires <= time.time():
            raise _RefusedError(403, "ExpiredTokenException", "The security token in the request is expired")
        if signature["scope"] != f"{self.region}/greengrass":
            raise _RefusedError(403, "InvalidSignatureException", "The credential has another region or service.")

    def _list(self, call: Call, fault: Fault) -> dict[str, Any]:
        size = call.parameters.get("maxResults", str(_MOST_ENTRIES))
        if not re.fullmatch(r"\d{1,9}", size) or not 1 <= int(size) <= _MOST_ENTRIES:
            raise _invalid("maxResults", f"must be between 1 and {_MOST_ENTRIES}")
        asked = call.parameters.get("nextToken", _AFTER)
        if not asked.startswith(_AFTER):
            raise _invalid("nextToken", "is not one that was handed out")
        # By name, so that a page after others have been disassociated goes on where the last one ended.
        rest = (name for name in self.associations.keys() - set(fault.hidden) if name > asked.removeprefix(_AFTER))
        names = heapq.nsmallest(int(size) + 1, rest)
        page = names[: int(size)]
        answer: dict[str, Any] = {"associatedClientDevices": [self._association(name) for name in page]}
        if len(page) < len(names):
            answer["nextToken"] = _AFTER + page[-1]
        if fault.repeat_token:
            answer["nextToken"] = asked
        return answer

    def _association(self, name: str) -> dict[str, Any]:
        timestamp = self.associations[name]
        return {"thingName": name} | ({} if timestamp is None else {"associationTimestamp": timestamp})

    def _batch(self, call: Call, fault: Fault) -> dict[str, Any]:
        errors = [_error_entry(name, code) for name, code in fault.error_entries.items()]
        for name in [name for name in call.entries if name not in fault.error_entries]:
            if call.operation == ASSOCIATE:
                if name not in self.associations:
                    self.associate(name)
            elif name in self.associations:
                self.disassociate(name)
            else:
                errors.append(_error_entry(name, "ResourceNotFoundException"))
        return {"errorEntries": errors}


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


def _error_entry(name: str, code: str) -> dict[str, str]:
    return {"thingName": name, "code": code, "message": f"{name}: {code}"}


def _invalid(member: str, problem: str) -> _RefusedError:
    fields = [{"name": member, "message": problem}]
    message = f"{member}: {problem}"
    return _RefusedError(400, "ValidationException", message, reason="FIELD_VALIDATION_FAILED", fields=fields)


def _json(answer: Mapping[str, Any]) -> Response:
    headers = {"x-amzn-RequestId": secrets.token_hex(16)}
    return Response(200, json.dumps(answer).encode(), headers=headers)


def _error(status: int, error: str, message: str, **members: Any) -> Response:
    headers = {"x-amzn-RequestId": secrets.token_hex(16)} | ({"x-amzn-ErrorType": error} if error else {})
    return Response(status, json.dumps({"message": message, **members}).encode(), headers=headers)
