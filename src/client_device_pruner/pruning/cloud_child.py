"""The short-lived child process that makes the calls to the cloud; see `cloud` for what it is told and answers.

It alone imports boto3, which costs more memory than all the rest and never gives it back. It ends with its input.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import time
from typing import Any

from client_device_pruner.pruning.cloud import (
    Batch,
    Batched,
    CallFailed,
    Listed,
    ListPage,
    Ready,
    Reply,
    decode,
    encode,
)

CONNECT_SECONDS = 5  # per address
READ_SECONDS = 15  # for each wait for bytes of an answer
READ_ATTEMPTS = 3  # a batch is tried once, because its evidence does not keep
BATCH_AGE_SECONDS = 2.0  # how old a batch may be when it is sent: what was checked before it must still be so
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
    """A failure of a known kind: see `CallFailed`."""

    def __init__(self, kind: str, code: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.code = code


class Cloud:
    """The three calls for one core device, with the token exchange service's credentials or none.

    Raises:
        CallError: no credentials or no region.
    """

    def __init__(self, core_device: str) -> None:
        self._core_device = core_device
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

        used = (TOKEN_EXCHANGE, "AWS_CONTAINER_AUTHORIZATION_TOKEN")
        exchange = {name: os.environ[name] for name in used if name in os.environ}
        session = Session()
        session.register_component("credential_provider", CredentialResolver([ContainerProvider(exchange)]))
        try:
            self._credentials = session.get_credentials()
        except Exception as error:
            raise _no_credentials(type(error).__name__, str(error)) from error
        boto = boto3.Session(botocore_session=session, region_name=region)

        def client(attempts: int) -> Any:
            retries = {"mode": "standard", "total_max_attempts": attempts}
            config = Config(retries=retries, connect_timeout=CONNECT_SECONDS, read_timeout=READ_SECONDS)
            made = boto.client("greengrassv2", config=config)
            made.meta.events.register("before-parse.greengrassv2", _require_object)
            return made

        self._reads, self._writes = client(READ_ATTEMPTS), client(1)
        self._renew_credentials()

    def answer(self, request: ListPage | Batch) -> Reply:
        """Carry out one request; an error becomes an answer too."""
        try:
            # May take seconds, so it comes before the age of a batch is judged.
            self._renew_credentials()
            return self._page(request) if isinstance(request, ListPage) else self._batch(request)
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
            # The library, and we, trip over what the service never answers.
            return describe(_garbage(f"the answer cannot be understood: {error!r}"))
        except Exception as error:  # noqa: BLE001 - the parent is told, and decides
            return describe(error)

    def _page(self, request: ListPage) -> Listed:
        token = {"nextToken": request.next_token} if request.next_token else {}
        answer = self._reads.list_client_devices_associated_with_core_device(
            coreDeviceThingName=self._core_device, maxResults=_PAGE_ENTRIES, **token
        )
        devices = {}
        for entry in answer["associatedClientDevices"]:
            stamp = entry.get("associationTimestamp")
            devices[entry["thingName"]] = stamp.timestamp() if stamp else None
        return Listed(devices, answer.get("nextToken") or None)

    def _batch(self, request: Batch) -> Batched:
        age = time.monotonic() - request.issued_seconds
        if not 0 <= age <= BATCH_AGE_SECONDS:
            message = f"not sent: the batch was issued {age:.1f} s ago and is valid for {BATCH_AGE_SECONDS:g} s"
            raise CallError("tooOld", "TooOld", message)
        call = self._writes.batch_disassociate_client_device_from_core_device
        if request.operation == "associate":
            call = self._writes.batch_associate_client_device_with_core_device
        answer = call(coreDeviceThingName=self._core_device, entries=[{"thingName": name} for name in request.names])
        errors = answer.get("errorEntries", [])
        return Batched({e["thingName"]: (e.get("code", ""), _shortened(e.get("message", ""))) for e in errors})

    def _renew_credentials(self) -> None:
        try:
            self._credentials.get_frozen_credentials()
        except Exception as error:
            raise _no_credentials(type(error).__name__, str(error)) from error


def _require_object(response_dict: dict[str, Any], **_: Any) -> None:
    """Refuse a success that is no JSON object: to the library it would be an answer with nothing in it."""
    if response_dict["status_code"] < 300 and not response_dict["body"].lstrip().startswith(b"{"):
        beginning = response_dict["body"][:100]
        raise _garbage(f"this is not an answer of the service; perhaps a portal or proxy answered: {beginning!r}")


def describe(error: Exception) -> CallFailed:
    """What an exception means to the parent."""
    from botocore import exceptions

    kind, code = "internal", type(error).__name__
    if isinstance(error, CallError):
        kind, code = error.kind, error.code
    elif isinstance(error, exceptions.ClientError):
        code = str(error.response.get("Error", {}).get("Code", ""))
        kind = _kind_of_refusal(code, error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    elif isinstance(error, exceptions.ConnectionError | exceptions.HTTPClientError):
        kind = "unreachable"
    return CallFailed(kind, code, _shortened(str(error)))


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
    # The service never redirects: something else answers.
    return "garbage" if status < 400 else "refused"


def _shortened(message: str) -> str:
    return " ".join(message.split())[:_LONGEST_MESSAGE]


def _garbage(message: str) -> CallError:
    return CallError("garbage", "GarbageAnswer", message)


def _no_credentials(code: str, message: str) -> CallError:
    return CallError("credentials", code, f"the token exchange service gave no credentials: {message}")


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent goes, and end now if it has gone already."""
    # Some images split ctypes off; then the end of the input ends this process, after a call in progress.
    with contextlib.suppress(ImportError, OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)


def _say(reply: Reply) -> None:
    sys.stdout.buffer.write(encode(reply))
    sys.stdout.buffer.flush()


def main(core_device: str, parent: str) -> None:
    """Answer the parent process, of that id, until the input ends."""
    _die_with(int(parent))
    # Ctrl-C reaches the whole group; the parent decides what becomes of a call in progress.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The library makes local times of timestamps, and the hour that a clock change repeats names no one time.
    os.environ["TZ"] = "UTC"
    time.tzset()
    try:
        cloud = Cloud(core_device)
    except Exception as error:  # noqa: BLE001 - the parent is told, and decides
        _say(describe(error))
        return
    _say(Ready())
    for line in sys.stdin.buffer:
        _say(cloud.answer(decode(line)))


if __name__ == "__main__":
    main(*sys.argv[1:])
