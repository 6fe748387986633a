"""What is said of calls to the cloud that fail: one event for each kind, the guards, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from client_device_pruner.decisions.guards import Hold, access_denied_hold, core_not_found_hold, unreadable_list_hold
from client_device_pruner.pruning.cloud import CallFailed
from client_device_pruner.pruning.core import Core
from client_device_pruner.reports.events import rfc3339

LIST, DISASSOCIATE, ASSOCIATE = "list", "disassociate", "associate"
"""What the cloud is asked, as failures are told apart."""

_ACTIONS = {
    LIST: "greengrass:ListClientDevicesAssociatedWithCoreDevice",
    DISASSOCIATE: "greengrass:BatchDisassociateClientDeviceFromCoreDevice",
    ASSOCIATE: "greengrass:BatchAssociateClientDeviceWithCoreDevice",
}
_OF_A_CLOCK = ("Expired", "TooSkewed", "Signature")
"""Parts of the codes by which the service refuses credentials or signatures whose time does not fit its own."""
_REMEDIES = {
    "throttled": "nothing to do: the next cycle waits longer; all calls of the account share a quota",
    "coreNotFound": "check whether the core device was deleted or renamed",
    "credentials": "check that aws.greengrass.TokenExchangeService runs, and that its role alias and role exist",
    "unreachable": "check that this core device reaches AWS IoT Greengrass, through its proxy if it has one",
    "server": "nothing to do: the next cycle tries again",
    "garbage": "check that no portal or proxy answers in place of AWS IoT Greengrass",
    "refused": "see the message; the next cycle tries again",
    "tooOld": "nothing to do: the next cycle tries again; if it repeats, the core device is too slow or was suspended",
}
_OTHER_REMEDY = "the component's log has the messages of the child process; the next cycle tries again"


def remedy(kind: str, code: str, operation: str) -> str:
    """What to do about a failure of that kind and code."""
    if kind == "accessDenied":
        return f"allow the token exchange role: {_ACTIONS[operation]}"
    if kind == "credentials" and any(part in code for part in _OF_A_CLOCK):
        return (
            "check that this core device's clock is right (timedatectl): with a wrong clock, credentials look expired"
        )
    return _REMEDIES.get(kind, _OTHER_REMEDY)


class Failures:
    """Knows what failed since the last cycle that went well."""

    def __init__(self, core: Core) -> None:
        self.in_a_row = 0  # calls of cycles
        self.latest: dict[str, Any] | None = None  # `code`, `message`, `remedy` and `at` (RFC 3339)
        self._core = core
        self._said: set[tuple[str, str, str]] = set()
        self._denied: set[str] = set()

    @property
    def only_disassociation_denied(self) -> bool:
        """Whether access is denied to nothing else: then a single device may try whether it still is."""
        return self._denied == {DISASSOCIATE}

    def failed(self, failure: CallFailed, cycle_id: str, operation: str, names: Sequence[str] = ()) -> None:
        """A call failed; a restore that failed names its devices, and holds no disassociation back."""
        core, code = self._core, failure.code or failure.kind
        advice = remedy(failure.kind, code, operation)
        for name in names or ("",):
            self._say((operation, code, name), code, failure.message, advice, cycle_id)
        self.latest = {"code": code, "message": failure.message, "remedy": advice, "at": rfc3339(core.clock.wall())}
        if operation == ASSOCIATE:
            return
        self.in_a_row += 1
        if failure.kind == "accessDenied":
            self._denied.add(operation)
            core.guards.hold(access_denied_hold(failure.message, advice))
        elif failure.kind == "garbage" and operation == LIST:
            core.guards.hold(unreadable_list_hold(failure.message, advice))
        elif failure.kind == "coreNotFound":
            core.guards.hold(core_not_found_hold(core.core_device, failure.message, advice))

    def refused(self, name: str, error: Sequence[str], cycle_id: str, operation: str) -> None:
        """The cloud refused one entry of a batch: said once while it goes on doing so with the same code."""
        code, message = error
        gone = operation == ASSOCIATE and "NotFound" in code
        advice = "check whether the thing still exists" if gone else "see the message; the component tries again"
        key = (operation, f"entry {code}", name)
        if gone:
            self._said.discard(key)  # it was given up before, and asked for anew
        self._say(key, code, message, advice, cycle_id)

    def restored(self, name: str) -> None:
        """The cloud took a device back: that it refuses another time is news again."""
        self._said = {key for key in self._said if (key[0], key[2]) != (ASSOCIATE, name)}

    def missed(self, hold: Hold) -> None:
        """The check before a batch did not go well: told as what failed, though no call did."""
        at = rfc3339(self._core.clock.wall())
        self.latest = {"code": "Preflight", "message": hold.reason, "remedy": hold.remedy, "at": at}

    def succeeded(self, operation: str) -> None:
        """The cloud answered as it should; access denied to one operation is not granted by another."""
        self._core.guards.release("coreNotFound")
        self._denied.discard(operation)
        if not self._denied:
            self._core.guards.release("accessDenied")

    def cycle_went_well(self) -> None:
        """A cycle came to its end without a failure: the next failure is news again."""
        self.in_a_row, self.latest = 0, None
        # An entry that is refused in each cycle is not said again.
        self._said = {key for key in self._said if key[1].startswith("entry")}

    def _say(self, key: tuple[str, str, str], code: str, message: str, advice: str, cycle_id: str) -> None:
        if key not in self._said:
            self._said.add(key)
            data = {"code": code, "message": message, "remedy": advice, "cycleId": cycle_id}
            self._core.event("failed", key[2] or None, **data)
