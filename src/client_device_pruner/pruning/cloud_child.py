"""The short-lived child process that makes the calls to the cloud, spoken to in JSON lines.

It alone imports boto3, which costs more memory than all the rest and never gives it back. It fetches credentials, says
that it is ready, and then answers each line on standard input with one on standard output until its input closes:

    {"id": null, "ok": {}}   or   {"id": null, "error": {"kind": …, "code": …, "message": …}}   and the end

    {"id": 1, "op": "list", "nextToken": null}
    {"id": 1, "ok": {"devices": [["name", 1700000000.5], ["other", null]], "nextToken": null}}

    {"id": 2, "op": "disassociate", "names": ["name"], "issued": 1234.5}      (or "associate")
    {"id": 2, "ok": {"errors": [{"thingName": …, "code": …, "message": …}]}}
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, BinaryIO

Json = dict[str, Any]

CONNECT_SECONDS = 5
"""Time-out of a connection to the service, per address."""
READ_SECONDS = 15
"""Time-out of each wait for bytes of an answer."""
READ_ATTEMPTS = 3
"""How often a listing is tried; a batch is tried once, because its evidence does not keep."""
BATCH_AGE_SECONDS = 2.0
"""How old a batch may be when it is sent: what was checked before it must still be so."""
TOKEN_EXCHANGE = "AWS_CONTAINER_CREDENTIALS_FULL_URI"  # noqa: S105 - a variable's name
"""Where the nucleus says at what address the token exchange service gives credentials."""

_PAGE_ENTRIES = 100  # the most that the service takes in one call, in pages as in batches
_LONGEST_MESSAGE = 500
_PR_SET_PDEATHSIG = 1  # linux/prctl.h

# Codes besides a status of 429.
_THROTTLED = re.compile("Throttl|TooManyRequests|RequestLimitExceeded|SlowDown")
# They come with a 403 (some with a 400), but no policy will mend them.
_BAD_CREDENTIALS = re.compile(
    "Expired|Signature|InvalidClientTokenId|MissingAuthenticationToken|RequestTimeTooSkewed|UnrecognizedClient"
)


class CallError(Exception):
    """What went wrong with a request.

    Attributes:
        kind: what the parent decides on; see `cloud.CallFailed`.
        code: the service's or library's own name for it.
        message: for people, at most 500 characters.
    """

    def __init__(self, kind: str, code: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.code = code
        self.message = " ".join(message.split())[:_LONGEST_MESSAGE]

    def to_json(self) -> Json:
        """Return the protocol's `error`."""
        return {"kind": self.kind, "code": self.code, "message": self.message}


class Cloud:
    """The three calls for one core device.

    Args:
        core_device: thing name of the core device.
        reads: a greengrassv2 client that retries.
        writes: one that does not.
        renew_credentials: fetches new credentials if those at hand are about to expire.
    """

    def __init__(self, core_device: str, *, reads: Any, writes: Any, renew_credentials: Callable[[], object]) -> None:
        self._core_device = core_device
        self._renew_credentials = renew_credentials
        self._list = reads.list_client_devices_associated_with_core_device
        self._batches = {
            "associate": writes.batch_associate_client_device_with_core_device,
            "disassociate": writes.batch_disassociate_client_device_from_core_device,
        }
        for client in (reads, writes):
            client.meta.events.register("before-parse.greengrassv2", _require_object)

    def answer(self, request: Json) -> Json:
        """Carry out one request; whatever goes wrong becomes an answer."""
        try:
            page = request["op"] == "list"
            return {"id": request["id"], "ok": self._page(request) if page else self._batch(request)}
        except Exception as error:  # noqa: BLE001 - the parent is told, and decides
            return {"id": request["id"], "error": describe(error).to_json()}

    def _page(self, request: Json) -> Json:
        self.renew()
        token = {"nextToken": request["nextToken"]} if request["nextToken"] else {}
        answer = self._call(self._list, maxResults=_PAGE_ENTRIES, **token)
        devices = answer.get("associatedClientDevices")
        following = answer.get("nextToken") or None
        if not isinstance(devices, list) or not isinstance(following, str | None):
            raise _garbage("the answer to a listing holds no list of associated client devices")
        return {"devices": [_association(device) for device in devices], "nextToken": following}

    def _batch(self, request: Json) -> Json:
        # May take seconds, so it comes before the age is judged.
        self.renew()
        age = time.monotonic() - request["issued"]
        if not 0 <= age <= BATCH_AGE_SECONDS:
            message = f"not sent: the batch was issued {age:.1f} s ago and keeps for {BATCH_AGE_SECONDS:g} s"
            raise CallError("tooOld", "TooOld", message)
        entries = [{"thingName": name} for name in request["names"]]
        answer = self._call(self._batches[request["op"]], entries=entries)
        return {"errors": [_entry_error(entry) for entry in answer.get("errorEntries", [])]}

    def renew(self) -> None:
        """Have credentials that last for a call.

        Raises:
            CallError: there are none.
        """
        try:
            self._renew_credentials()
        except Exception as error:
            raise _no_credentials(type(error).__name__, str(error)) from error

    def _call(self, method: Callable[..., Json], **parameters: Any) -> Json:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return method(coreDeviceThingName=self._core_device, **parameters)
        except (BotoCoreError, ClientError, CallError):
            raise
        except Exception as error:
            # The library's parser trips over what it does not expect, in as many ways as there are.
            raise _garbage(f"the answer cannot be understood: {error}") from error


def _require_object(response_dict: Json, **_: Any) -> None:
    """Refuse a success that is no JSON object: to the library it would be an answer with nothing in it."""
    if response_dict["status_code"] >= 300:
        return
    try:
        answer = json.loads(response_dict["body"])
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict) or not all(
        isinstance(answer.get(key), list | None) for key in ("associatedClientDevices", "errorEntries")
    ):
        beginning = response_dict["body"][:100]
        raise _garbage(f"not the service's answer, but a portal's or proxy's, perhaps: {beginning!r}")


def describe(error: Exception) -> CallError:
    """Tell what an exception means to the parent."""
    from botocore import exceptions

    if isinstance(error, CallError):
        return error
    if isinstance(error, exceptions.ClientError):
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return CallError(_kind_of_refusal(code, status), code, str(error))
    code = type(error).__name__
    if isinstance(error, exceptions.ConnectionError | exceptions.HTTPClientError):
        return CallError("unreachable", code, str(error))
    return CallError("internal", code, str(error))


def _kind_of_refusal(code: str, status: int) -> str:
    if _THROTTLED.search(code) or status == 429:
        return "throttled"
    if _BAD_CREDENTIALS.search(code):
        return "credentials"
    if code == "ResourceNotFoundException":
        return "coreNotFound"
    if status in {401, 403} or code == "AccessDeniedException":
        return "accessDenied"
    if status >= 500:
        return "server"
    # The service never redirects: somebody else answers.
    return "garbage" if status < 400 else "refused"


def _association(device: Any) -> tuple[str, float | None]:
    match device:
        case {"thingName": str(name), "associationTimestamp": datetime() as stamp} if name:
            return name, stamp.timestamp()
        case {"thingName": str(name)} if name and "associationTimestamp" not in device:
            return name, None
    raise _garbage(f"the listing holds what is no client device: {device!r}")


def _entry_error(entry: Any) -> Json:
    match entry:
        case {"thingName": str(name)}:
            code, message = str(entry.get("code", "")), str(entry.get("message", ""))
            return {"thingName": name, "code": code, "message": message[:_LONGEST_MESSAGE]}
    raise _garbage(f"the answer to a batch holds an error that names no client device: {entry!r}")


def _garbage(message: str) -> CallError:
    return CallError("garbage", "GarbageAnswer", message)


def _no_credentials(code: str, message: str) -> CallError:
    return CallError("credentials", code, f"the token exchange service gave no credentials: {message}")


def connect(core_device: str) -> Cloud:
    """Build the clients and fetch credentials: the token exchange service's, or none.

    Raises:
        CallError: no credentials or no region.
    """
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if not region:
        raise CallError("internal", "NoRegion", "no region: neither AWS_REGION nor AWS_DEFAULT_REGION is set")
    if not os.environ.get(TOKEN_EXCHANGE):
        raise _no_credentials("NoTokenExchange", f"{TOKEN_EXCHANGE} is not set, and no other source is used")
    # Profiles can name other credentials, endpoints and accounts: no file of the component's user is read.
    for name in ("AWS_PROFILE", "AWS_DEFAULT_PROFILE"):
        os.environ.pop(name, None)
    os.environ["AWS_CONFIG_FILE"] = os.environ["AWS_SHARED_CREDENTIALS_FILE"] = os.devnull

    import boto3
    from botocore.config import Config
    from botocore.credentials import ContainerProvider, CredentialResolver
    from botocore.session import Session

    exchange = {
        name: os.environ[name] for name in (TOKEN_EXCHANGE, "AWS_CONTAINER_AUTHORIZATION_TOKEN") if name in os.environ
    }
    session = Session()
    session.register_component("credential_provider", CredentialResolver([ContainerProvider(exchange)]))
    try:
        credentials = session.get_credentials()
    except Exception as error:
        raise _no_credentials(type(error).__name__, str(error)) from error
    boto = boto3.Session(botocore_session=session, region_name=region)

    def client(attempts: int) -> Any:
        retries = {"mode": "standard", "total_max_attempts": attempts}
        config = Config(retries=retries, connect_timeout=CONNECT_SECONDS, read_timeout=READ_SECONDS)
        return boto.client("greengrassv2", config=config)

    cloud = Cloud(
        core_device,
        reads=client(READ_ATTEMPTS),
        writes=client(1),
        renew_credentials=credentials.get_frozen_credentials,
    )
    cloud.renew()
    return cloud


def _write(replies: BinaryIO, reply: Json) -> None:
    replies.write(json.dumps(reply).encode() + b"\n")
    replies.flush()


def _die_with(parent: int | None) -> None:
    """Have the kernel kill this process when its parent goes, and end now if it has gone already."""
    # Some images split ctypes off; then the end of the input ends this process, after a call in progress.
    with contextlib.suppress(ImportError, OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if parent is not None and os.getppid() != parent:
        raise SystemExit(1)


def _claim_stdout() -> BinaryIO:
    """Keep standard output for the protocol, and send what anybody else writes there to standard error."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return replies


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the child process.

    Returns:
        0 when its input has ended, 1 when it could not get ready.
    """
    parser = argparse.ArgumentParser(prog="client_device_pruner.pruning.cloud_child", description=main.__doc__)
    parser.add_argument("--core-device", required=True, help="thing name of the core device")
    parser.add_argument("--parent", type=int, help="process id that the parent must have")
    options = parser.parse_args(arguments)
    _die_with(options.parent)
    # Ctrl-C reaches the whole group; the parent decides what becomes of a call in progress.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The library makes local times of timestamps, and the hour that a clock change repeats names no one time.
    os.environ["TZ"] = "UTC"
    time.tzset()
    with _claim_stdout() as replies:
        try:
            cloud = connect(options.core_device)
        except Exception as error:  # noqa: BLE001 - the parent is told, and decides
            _write(replies, {"id": None, "error": describe(error).to_json()})
            return 1
        _write(replies, {"id": None, "ok": {}})
        for line in sys.stdin.buffer:
            _write(replies, cloud.answer(json.loads(line)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
