"""Outages: devices that were lost together share a cause, until one of them comes back (DESIGN, model 6)."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import NamedTuple

from client_device_pruner.model import Absence, Device
from client_device_pruner.settings import MassLoss

_Loss = tuple[float, str, float | None]
"""When it began, whose it is and when it was back, on one source's clock; a plain tuple, since 100,000 may be made."""


class Outages(NamedTuple):
    """What outages mean for single devices.

    Attributes:
        returns: name -> {source id -> reading of its clock at the first return of another device of that outage}:
            there the absence of those who are still away begins.
        unexplained: (name, source id) of devices in an outage from which nobody has come back.
    """

    returns: Mapping[str, Mapping[int, float]]
    unexplained: frozenset[tuple[str, int]]


NO_OUTAGES = Outages({}, frozenset())


def find_outages(
    devices: Iterable[Device],
    present: Container[str],
    ended: Sequence[Absence],
    source_ids: Iterable[int],
    limits: MassLoss,
) -> Outages:
    """Find the outages on each source's clock.

    Args:
        devices: the associated devices; those without any sign of life were never there to be lost.
        present: who is present now.
        ended: absences that ended with a return.
        source_ids: the sources in force.
        limits: how close together, and how many, make an outage.
    """
    seen = [device for device in devices if device.seen]
    away = [device for device in seen if device.name not in present]
    returns: dict[str, dict[int, float]] = {}
    unexplained: set[tuple[str, int]] = set()
    if len(away) + len(ended) < limits.min_devices:
        return NO_OUTAGES
    for source_id in source_ids:
        losses: list[_Loss] = [(device.marker(source_id), device.name, None) for device in away]
        losses += [
            (absence.began[source_id], absence.name, absence.ended[source_id])
            for absence in ended
            if source_id < len(absence.began)
        ]
        losses = _sharing(losses, limits.window_seconds)
        losses.sort(key=itemgetter(0))
        for outage in _clusters(losses, len(seen) - len(away), limits):
            ends = sorted(back for _began, _name, back in outage if back is not None)
            for began, name, back in outage:
                if back is not None:
                    continue
                # Who was back before this one was lost has no part in it.
                earlier = bisect_right(ends, began)
                if earlier < len(ends):
                    returns.setdefault(name, {})[source_id] = ends[earlier]
                elif len(outage) - earlier >= limits.min_devices:
                    unexplained.add((name, source_id))
    return Outages(returns, frozenset(unexplained))


def _sharing(losses: Sequence[_Loss], window_seconds: float) -> list[_Loss]:
    """The losses that last, and of those that ended the ones during which another that lasts may have begun."""
    lasting = sorted(began for began, _name, back in losses if back is None)

    def is_shared(began: float, back: float) -> bool:
        first = bisect_left(lasting, began - window_seconds)
        return first < len(lasting) and lasting[first] < back

    return [loss for loss in losses if (back := loss[2]) is None or is_shared(loss[0], back)]


def _clusters(losses: Sequence[_Loss], present: int, limits: MassLoss) -> list[Sequence[_Loss]]:
    """The outages among losses in order of their beginning; windows that overlap are one outage."""
    ranges: list[list[int]] = []
    names: defaultdict[str, int] = defaultdict(int)
    end = 0
    still_away = sum(back is None for _began, _name, back in losses)
    for start, (began, name, back) in enumerate(losses):
        while end < len(losses) and losses[end][0] - began <= limits.window_seconds:
            names[losses[end][1]] += 1
            end += 1
        # Present when the window began: who is present now, and who was lost since.
        then = present + still_away
        if len(names) >= limits.min_devices and len(names) * 100 >= limits.min_percent * then:
            if ranges and start < ranges[-1][1]:
                ranges[-1][1] = end
            else:
                ranges.append([start, end])
        still_away -= back is None
        names[name] -= 1
        if not names[name]:
            del names[name]
    return [losses[start:end] for start, end in ranges]
