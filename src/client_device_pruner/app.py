"""The component: one thread owns the state, takes what arrives in order, and does what is due."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client_device_pruner.config.emqx import Access
from client_device_pruner.config.schema import format_duration
from client_device_pruner.decisions.guards import not_observing_hold
from client_device_pruner.greengrass import ipc
from client_device_pruner.greengrass.link import IN, Link
from client_device_pruner.greengrass.queue import Overflow, Queue
from client_device_pruner.presence.client_list import Answer, Asked, ClientList, ClientLists, ListFailed
from client_device_pruner.presence.clock import Clock
from client_device_pruner.pruning.cloud import Cloud, Reply
from client_device_pruner.pruning.core import Core
from client_device_pruner.pruning.deployed import Deployed
from client_device_pruner.pruning.scheduler import Scheduler
from client_device_pruner.pruning.status import status_document
from client_device_pruner.reports.events import LOGGER, rfc3339
from client_device_pruner.reports.shadow import Shadow

BURST_SECONDS = 0.05  # how long messages gather before they are taken: a sighting has to count within a second
POLL_SECONDS = 2.0  # how often requests of the command line are looked for
BLIND_INTERVALS = 3  # after so many probe intervals without observed time, `notObserving` holds
EXITS = (2, 3_600.0)
"""The process ends itself at most so often in so many seconds: three errors in an hour make a component BROKEN."""
_BLIND_REMEDY = "see what the doctor found (pruner status), and docs/troubleshoot.md"


@dataclass(frozen=True, slots=True)
class Connected:
    """A connection to Greengrass stands."""

    ipc: ipc.Ipc


@dataclass(frozen=True, slots=True)
class Woken:
    """The child process that calls the cloud has answered: the scheduler has something to do."""


Item = ipc.News | Connected | Woken | Answer


@dataclass(frozen=True, slots=True)
class Edges:
    """The ways out of the process, replaced in tests and in the simulation."""

    # begins to connect to Greengrass; puts `Connected` or `Disconnected` into the queue
    connect: Callable[[Queue[Item]], None]
    # makes what calls the cloud; it gets a function that takes its replies, from any thread
    cloud: Callable[[Callable[[Reply], None]], Cloud]
    client_lists: Callable[[Callable[[Answer], None]], ClientLists]  # makes the client of EMQX's HTTP API, likewise


class App:
    """Runs until it is told to stop; `own` takes the lock on the state, or says False while another instance has it."""

    def __init__(
        self,
        work_dir: Path,
        core_device: str,
        clock: Clock,
        edges: Edges,
        *,
        own: Callable[[], bool] = lambda: True,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.queue: Queue[Item] = Queue()
        self._clock = clock
        self._edges = edges
        self._link = Link(
            lambda: edges.connect(self.queue), self._give_up, on_return=self._probe_returned, on_gap=self._gap
        )
        self._core = Core(
            work_dir,
            core_device,
            clock,
            publish=self._link.publish,
            publish_to_iot_core=self._link.publish_to_iot_core,
            own=own,
        )
        self._lists = edges.client_lists(self.queue.put_always)
        self._scheduler = Scheduler(
            self._core,
            edges.cloud,
            ask=self._ask,
            send_probe=self._link.send_extra,
            before_cycle=lambda: self._link.read_configuration(None),
            wake=lambda: self.queue.put_always(Woken()),
            jitter=jitter,
        )
        self._deployed = Deployed(self._core, self._link, self._reschedule)
        self._shadow = Shadow()
        self.ending = False  # whether the loop is to end
        self._status = 0
        self._started = clock.monotonic()
        self._observing = False
        self._noted = ""
        self._asked: Access | None = None
        self._next_list = float("inf")

    # The loop

    def run(self) -> int:
        """Watch until told to stop; returns the exit status."""
        self._edges.connect(self.queue)
        wake = self._clock.monotonic()
        while not self.ending:
            wake = self.turn(min(POLL_SECONDS, max(0.0, wake - self._clock.monotonic())))
            # Messages come in bursts: to take them together costs a fraction of a wake-up for each.
            time.sleep(BURST_SECONDS)
        self.close()
        return self._status

    def turn(self, wait_seconds: float = 0.0) -> float:
        """Take what has arrived, waiting for it up to the given time, and do what is due.

        Returns when there will be something to do if nothing arrives, in monotonic seconds.
        """
        self._hear(wait_seconds)
        at = self._clock.monotonic()
        wakes = [self._link.tick(at), self._deployed.tick(at), self._fetch_list(at)]
        self._watch_observing(at)
        wakes.append(self._scheduler.tick(at))
        self._core.attempt(self._write, at)
        return min(*wakes, self._core.next_commit)

    def stop(self) -> None:
        """Ask the loop to end; safe in a signal handler."""
        self.ending = True

    def close(self) -> None:
        """Leave everything so that the next start goes on from here."""
        self._hear(0.0)
        self._scheduler.close()
        self._core.attempt(lambda: self._core.survey(now=True))
        self._core.attempt(lambda: self._core.close(self._status_document(self._clock.monotonic())))
        self._lists.close()
        self._link.close()

    def _hear(self, wait_seconds: float) -> None:
        items = self.queue.take_all(wait_seconds)
        self._core.presence.read_wall_clock()
        for item in items:
            self._core.attempt(self._take, item)

    def _fetch_list(self, at: float) -> float:
        """Ask for the client list when it is time, and at once at a new address; returns when it is time next."""
        access = self._deployed.access
        if access != self._asked:
            self._asked, self._next_list = access, at if access else float("inf")
        if access is not None and at >= self._next_list:
            self._next_list = at + self._core.settings.presence.client_list.interval_seconds
            self._lists.fetch(access)
        return self._next_list

    def _ask(self, names: Sequence[str], request: int) -> None:
        if access := self._deployed.access:
            self._lists.ask(access, names, request)
        else:
            self._scheduler.answered(ListFailed(request, "the client list, which is in use, cannot be asked"))

    def _write(self, at: float) -> None:
        core = self._core
        if not core.commit_due(at):
            return
        all_judged = core.survey()
        status = self._status_document(at)
        if core.store.connection is not None:
            core.attempt(lambda: core.commit(urgent=not all_judged, status=status))
        shadow = core.settings.reports.shadow_name
        update = self._shadow.update(status, at) if shadow and core.configured else None
        if update is not None:
            self._link.publish_to_iot_core(f"$aws/things/{core.core_device}/shadow/name/{shadow}/update", update)

    def _status_document(self, at: float) -> dict[str, Any]:
        return status_document(self._core, self._link, self._deployed, self._scheduler, at)

    # What arrives

    def _take(self, item: Item | Overflow) -> None:
        match item:
            case ipc.Message(topic, payload, received):
                if not self._link.take(topic, received):
                    self._core.presence.take(topic.removeprefix(IN), payload, received)
            case Overflow(messages):
                LOGGER.warning(
                    "messages were dropped since too many came at once", extra={"fields": {"messages": messages}}
                )
                self._core.presence.gap()
            case Woken():
                pass  # what is due is done after this anyway
            case ClientList():
                self._core.presence.take_list(item)
            case ListFailed(request=None, reason=reason):
                self._core.presence.listing.failed(reason)
            case Asked() | ListFailed():
                self._scheduler.answered(item)
            case _:
                self._take_news(item, self._clock.monotonic())

    def _take_news(self, item: Item, at: float) -> None:
        match item:
            case Connected(connection):
                self._link.connected(connection, at)
                self._deployed.connected(at)
            case ipc.Disconnected(reason, refused):
                self._link.lost(reason, at, refused=refused)
            case ipc.Subscribed():
                self._link.subscribed(at)
            case ipc.StreamClosed():
                self._link.stream_closed(at)
            case ipc.Refused():
                self._link.refused(item, at)
                if item.resource.startswith("$aws/things/"):
                    self._shadow.forget()
                # Greengrass Lite has no deployments that wait for an answer.
                if item.operation == "SubscribeToComponentUpdates" and not item.unauthorized:
                    self._deployed.tells_deployments = False
            case ipc.PreUpdate(deployment_id):
                self._link.answer_deployment(deployment_id, busy=self._scheduler.batch_in_flight)
            case ipc.ConfigurationChanged():
                self._deployed.changed(item, at)
                self._shadow.deployed()
            case ipc.Configuration():
                self._deployed.take(item, at)

    def _reschedule(self) -> None:
        self._core.attempt(self._scheduler.schedule, self._clock.monotonic())

    # Observed time

    def _probe_returned(self, sent: float, received: float) -> None:
        if self._core.presence.probe_returned(sent, received):
            LOGGER.info("the broker has restarted: sessions from before its start have ended")

    def _gap(self, reason: str) -> None:
        LOGGER.debug("gap", extra={"fields": {"reason": reason}})
        self._core.presence.gap()
        self._deployed.suspect(self._clock.monotonic())

    def _watch_observing(self, at: float) -> None:
        """Hold pruning while no observed time passes, and say which input is missing."""
        core = self._core
        since = max(self._started, core.presence.observed.advanced_at or self._started)
        blind = at - since > BLIND_INTERVALS * core.settings.presence.probe_interval_seconds
        if blind:
            reason, remedy = self._why_blind(at)
            wall = rfc3339(core.clock.wall() - (at - since))
            core.guards.hold(not_observing_hold(wall, reason, remedy))
        else:
            core.guards.release("notObserving")
        observing = core.presence.observed.since_wall is not None
        if observing != self._observing:
            self._observing = observing
            core.hurry()
        state = "notObserving" if blind else "observing" if observing else self._noted
        if state != self._noted:
            self._noted = state
            core.store.note(core.clock.wall(), state)

    def _why_blind(self, at: float) -> tuple[str, str]:
        if self._link.trouble:
            seconds = round(at - self._link.trouble_since)
            lasts = f" (for {format_duration(seconds)})" if seconds else ""
            return f"{self._link.trouble}{lasts}", self._remedy()
        dead = {name: given for name, given in self._core.presence.inputs(at).items() if not given.alive}
        if dead:
            reasons = "; ".join(f"{name}: {given.reason}" for name, given in dead.items())
            remedies = dict.fromkeys(given.remedy for given in dead.values() if given.remedy)
            return reasons, "\n".join(remedies) or _BLIND_REMEDY
        return "only some probes come back, never two in a row", self._remedy()

    def _remedy(self) -> str:
        found = [finding.finding for finding in (*self._link.findings, *self._deployed.findings)]
        return f"{_BLIND_REMEDY}: {found[0]}" if found else _BLIND_REMEDY

    def _give_up(self, reason: str) -> None:
        """End the process, so that the nucleus restarts it; not if that has happened twice within the hour."""
        self._core.attempt(self._end, reason)

    def _end(self, reason: str) -> None:
        core, (most, within) = self._core, EXITS
        now = core.running_seconds()
        exits = [at for at in core.store.kept("exits", []) if now - at < within]
        if len(exits) < most and core.store.connection is not None:
            core.store.keep(exits=[*exits, now])
            LOGGER.error("the process ends, to be restarted", extra={"fields": {"reason": reason}})
            self._status, self.ending = 1, True
