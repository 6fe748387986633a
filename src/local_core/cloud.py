"""The cloud as a core device sees it: token exchange and Greengrass V2 API, with faults to order, and named shadows."""

from __future__ import annotations

import heapq
import json
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any
from urllib.parse import parse_qsl, unquote

from local_core.http_server import Answered, Fault, HttpServer, Request, Response, as_json, meet_fault
from local_core.pubsub import Message

__all__ = ["ASSOCIATE", "CREDENTIALS", "DISASSOCIATE", "LIST", "Call", "Cloud", "Fault", "Shadows"]

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
_AFTER = "after:"
_SHADOW_UPDATE = re.compile(r"\$aws/things/([a-zA-Z0-9:_-]{1,128})/shadow/name/([$a-zA-Z0-9:_-]{1,64})/update")
_MOST_SHADOW_BYTES = 8 * 1024  # without its metadata (AWS IoT Device Shadow quotas)
_SIGNATURE = re.compile(r"AWS4-HMAC-SHA256 Credential=(?P<key>[^/,]+)/\d{8}/(?P<scope>[^/,]+/[^/,]+)/aws4_request,.*")


@dataclass(frozen=True, slots=True)
class Call:
    """One request that reached the cloud, with any outcome."""

    operation: str
    entries: tuple[str, ...] = ()
    """The thing names of a batch, in its order."""
    parameters: Mapping[str, str] = field(default_factory=dict)
    """`coreDeviceThingName` and the query's, as sent."""
    when: float = field(default_factory=time.monotonic)
    """Seconds on the monotonic clock."""


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
        self._issued: dict[str, tuple[str, float]] = {}
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
        for name in names:
            self._latest_association = max(round(time.time(), 3), round(self._latest_association + 0.001, 3))
            self.associations[name] = self._latest_association

    def disassociate(self, *names: str) -> None:
        """Take things off the list; those not on it are passed over."""
        for name in names:
            self.associations.pop(name, None)

    async def _answer(self, request: Request) -> Response:
        if request.path == _CREDENTIALS_PATH:
            return await self._answer_credentials(request)
        path = _PATH.fullmatch(request.path)
        operation = _ROUTES.get((request.method, path[2])) if path else None
        if path is None or operation is None:
            return _error(404, "UnknownOperationException", "Unable to determine service/operation name.")
        entries = tuple(entry["thingName"] for entry in json.loads(request.body or b"{}").get("entries", ()))
        core = unquote(path[1])
        query = dict(parse_qsl(request.query, keep_blank_values=True))
        call = Call(operation, entries, {"coreDeviceThingName": core, **query})
        self.calls.append(call)
        fault = await meet_fault(self.faults, operation)
        if not fault.carried_out:
            await fault.strike(_error)
        self._authenticate(request)
        if core != self.core_device:
            subject = {"resourceId": core, "resourceType": "coreDevice"}
            return _error(404, "ResourceNotFoundException", f"Core device {core} does not exist.", **subject)
        if self.before is not None:
            await self.before(call)
        answer = self._list(call, fault) if operation == LIST else self._batch(call, fault)
        await fault.strike(_error)
        return as_json(answer)

    async def _answer_credentials(self, request: Request) -> Response:
        self.calls.append(Call(CREDENTIALS))
        fault = await meet_fault(self.faults, CREDENTIALS, unnamed=False)
        await fault.strike(_error)
        if request.method != "GET" or request.headers.get("authorization") != self.credentials_token:
            return Response(403, b"Bad token")
        access_key, token = "ASIA" + secrets.token_hex(8).upper(), secrets.token_urlsafe(96)
        expires = time.time() + (-60.0 if fault.expired else self.credentials_seconds)
        self._issued[access_key] = (token, expires)
        expiration = datetime.fromtimestamp(expires, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        credentials = {"AccessKeyId": access_key, "SecretAccessKey": secrets.token_hex(20), "Token": token}
        return as_json({**credentials, "Expiration": expiration})

    def _authenticate(self, request: Request) -> None:
        """Refuse what is not signed with credentials that were issued; the signature is not worked out."""
        signature = _SIGNATURE.fullmatch(request.headers.get("authorization", ""))
        if signature is None:
            raise _refused(403, "MissingAuthenticationTokenException", "Missing Authentication Token")
        token, expires = self._issued.get(signature["key"], ("", 0.0))
        if not token or request.headers.get("x-amz-security-token") != token:
            raise _refused(403, "UnrecognizedClientException", "The security token in the request is invalid.")
        if expires <= time.time():
            raise _refused(403, "ExpiredTokenException", "The security token in the request is expired")
        if signature["scope"] != f"{self.region}/greengrass":
            raise _refused(403, "InvalidSignatureException", "The credential has another region or service.")

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
        stamps = {name: self.associations[name] for name in page}
        listed = [
            {"thingName": name} | ({"associationTimestamp": stamp} if stamp is not None else {})
            for name, stamp in stamps.items()
        ]
        answer: dict[str, Any] = {"associatedClientDevices": listed}
        if len(page) < len(names):
            answer["nextToken"] = _AFTER + page[-1]
        return answer

    def _batch(self, call: Call, fault: Fault) -> dict[str, Any]:
        if not 1 <= len(call.entries) <= _MOST_ENTRIES or not all(map(_THING_NAME.fullmatch, call.entries)):
            raise _invalid("entries", f"must be 1 to {_MOST_ENTRIES} thing names")
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


def _error_entry(name: str, code: str) -> dict[str, str]:
    return {"thingName": name, "code": code, "message": f"{name}: {code}"}


class Shadows:
    """The named shadows of things, as AWS IoT keeps them: what is published to their `update` topics, merged.

    Attributes:
        reported: What each shadow reports, by thing and shadow name.
        rejected: Updates that AWS IoT would have rejected, with the reason.
    """

    def __init__(self) -> None:
        self.reported: dict[tuple[str, str], dict[str, Any]] = {}
        self.rejected: list[tuple[Message, str]] = []

    def take(self, message: Message) -> None:
        """Carry out an update; other messages are passed over."""
        if (topic := _SHADOW_UPDATE.fullmatch(message.topic)) is None:
            return
        key = topic[1], topic[2]
        try:
            merged = _merge(self.reported.get(key, {}), json.loads(message.payload)["state"]["reported"])
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            self.rejected.append((message, f"not an update: {problem!r}"))
            return
        if len(json.dumps(merged, separators=(",", ":")).encode()) > _MOST_SHADOW_BYTES:
            self.rejected.append((message, "the shadow would be too long"))
        else:
            self.reported[key] = merged


def _invalid(member: str, problem: str) -> Answered:
    return _refused(400, "ValidationException", f"{member}: {problem}")


def _refused(status: int, error: str, message: str) -> Answered:
    return Answered(_error(status, error, message))


def _error(status: int, error: str, message: str, **members: str) -> Response:
    return as_json({"message": message, **members}, status, **({"x-amzn-ErrorType": error} if error else {}))


def _merge(before: Any, update: dict[str, Any]) -> dict[str, Any]:
    """Maps merge by key, `null` removes one, everything else is replaced."""
    merged = dict(before) if isinstance(before, dict) else {}
    merged |= {
        key: _merge(merged.get(key), value) if isinstance(value, dict) else value for key, value in update.items()
    }
    return {key: value for key, value in merged.items() if value is not None}
