"""What deployments configure: this component, the bridge and EMQX; taken over when it changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from client_device_pruner.config.bridge import BRIDGE, EMQX, bridge_client_id, diagnose, message_filters, missing_inputs
from client_device_pruner.config.emqx import Access, client_list_access
from client_device_pruner.config.finding import Finding
from client_device_pruner.config.schema import SettingsRefused
from client_device_pruner.config.settings import Settings, changed_keys, parse, protection_lost
from client_device_pruner.decisions.guards import configuration_hold
from client_device_pruner.greengrass.ipc import Configuration, ConfigurationChanged
from client_device_pruner.greengrass.link import Link
from client_device_pruner.pruning.core import Core
from client_device_pruner.reports.events import LOGGER

NOT_DEPLOYED = "ResourceNotFoundError"  # how the error begins where there is no such component
REREAD_SECONDS = 60.0  # after how long a configuration that could not be read is asked for again


class Deployed:
    """Owned by the one thread; all times are monotonic seconds.

    `reschedule` is called when `checkInterval` is known, or another than before.
    """

    def __init__(self, core: Core, link: Link, reschedule: Callable[[], None]) -> None:
        self.access: Access | None = None  # to the broker's client list
        self.tells_deployments = True  # whether Greengrass tells of deployments that wait; Greengrass Lite does not
        self.findings: tuple[Finding, ...] = ()  # the doctor's
        self._core = core
        self._link = link
        self._reschedule = reschedule
        self._unread: dict[str | None, float] = {}
        self._followed: set[str | None] = set()
        self._others: dict[str, dict[str, Any] | None] = {}

    def connected(self, at: float) -> None:
        """A new connection stands: read everything again, and follow it."""
        self._unread = dict.fromkeys((None, BRIDGE, EMQX), at)
        self._followed.clear()
        self.tells_deployments = True

    @property
    def lite(self) -> bool:
        """Whether this is Greengrass Lite, which has neither bridge nor EMQX."""
        return not self.tells_deployments and self._others.get(BRIDGE) is None

    def changed(self, news: ConfigurationChanged, at: float) -> None:
        """A configuration changed; one change comes as one event for each value, so they are read together."""
        self._unread[news.component] = at
        if news.component is None:
            self._link.deployed()

    def suspect(self, at: float) -> None:
        """A probe was lost: our subscription to configuration changes may have ended silently, too."""
        if self._followed:
            self._unread.setdefault(None, at)

    def tick(self, at: float) -> float:
        """Read what is due; returns when to be called next."""
        for component, due in list(self._unread.items()):
            if at >= due:
                self._unread[component] = at + REREAD_SECONDS * self._core.settings.scale
                self._link.read_configuration(component, follow=component not in self._followed)
                self._followed.add(component)
        return min(self._unread.values(), default=float("inf"))

    def take(self, read: Configuration, at: float) -> None:
        """Take what was read; what could not be read is read again, since its component may be deployed later."""
        if read.error:
            self._unread[read.component] = at + REREAD_SECONDS * self._core.settings.scale
        else:
            self._unread.pop(read.component, None)
        if read.component is None:
            self._configure(read.value, read.error)
        elif not read.error or read.error.startswith(NOT_DEPLOYED):
            # Any other error leaves what was read last in force: to begin anew would reset all message counts.
            self._others[read.component] = read.value if isinstance(read.value, dict) and not read.error else None
            self._use_others()

    def _configure(self, document: Any, error: str) -> None:
        """Take a configuration over; one that is refused leaves the last good one in force, and holds pruning."""
        core = self._core
        try:
            settings = parse(document)
        except SettingsRefused as refused:
            self._refuse(refused.problems)
            return
        if error:
            self._refuse((f"it could not be read: {error}",))
            return
        core.guards.release("configuration")
        if core.configured and settings == core.settings:
            return
        # What an earlier run had in force counts too: Greengrass Lite restarts the component with each change.
        known = core.configured or core.store.kept("configuration") is not None
        before = core.settings
        lost = protection_lost(before, settings) if known else ()
        changed = changed_keys(before, settings) if known else ()
        self._apply(settings)
        core.document = {key: value for key, value in (document or {}).items() if key != "accessControl"}
        core.attempt(lambda: core.store.keep(configuration=core.document))
        core.event("configuration", accepted=True, changed=list(changed), problems=[], protectionEnded=list(lost))
        for sentence in lost:
            LOGGER.warning("protection ended", extra={"fields": {"what": sentence}})
        if lost:
            for device in core.devices.associated():
                core.unmark(device, "the configuration protects less than before")

    def _refuse(self, problems: tuple[str, ...]) -> None:
        core = self._core
        if not core.configured:
            self._apply(core.settings)
        hold = configuration_hold(problems)
        if hold not in core.guards.in_force:
            for problem in problems:
                LOGGER.error("configuration refused", extra={"fields": {"problem": problem}})
            core.event("configuration", accepted=False, changed=[], problems=list(problems))
        core.guards.hold(hold)

    def _apply(self, settings: Settings) -> None:
        core = self._core
        LOGGER.setLevel(settings.log_level)
        for warning in settings.warnings:
            LOGGER.warning("trial", extra={"fields": {"warning": warning}})
        rescheduled = not core.configured or settings.check_interval_seconds != core.settings.check_interval_seconds
        returns_count = settings.restore_on_return and not core.settings.restore_on_return
        core.adopt(settings)
        if returns_count and core.store.connection is not None:
            core.attempt(self._watch_for_returns)
        self._link.use(settings.presence.probe_interval_seconds, settings.scale)
        self._use_others()
        if rescheduled:
            self._reschedule()

    def _watch_for_returns(self) -> None:
        """Watch for the devices, too, whose return was heard while nothing was to be restored."""
        core = self._core
        core.presence.watched.update(intent.name for intent in core.journal.restorable(core.running_seconds()))

    def _use_others(self) -> None:
        """Take over what the bridge and EMQX are configured to do."""
        core, settings = self._core, self._core.settings
        if BRIDGE in self._others:
            bridge = self._others[BRIDGE]
            filters = {*settings.presence.message_topics, *(f"bridge: {f}" for f in message_filters(settings, bridge))}
            core.presence.use_bridge(bridge_client_id(bridge), filters, missing_inputs(settings, bridge))
        if EMQX in self._others or settings.presence.client_list.url != "auto":
            access = client_list_access(settings, self._others.get(EMQX))
            self.access = access if isinstance(access, Access) else None
            core.presence.use_list(access)
        if {BRIDGE, EMQX} <= self._others.keys():
            self.findings = diagnose(settings, self._others[BRIDGE], self._others[EMQX], lite=self.lite)
