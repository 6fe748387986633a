"""Judges many devices at once, as a cycle does, and prints the CPU seconds: `python -m local_core.bench.decision`."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Sequence

from client_device_pruner.ledger import Ledger
from client_device_pruner.model import Association
from client_device_pruner.outages import find_outages
from client_device_pruner.policy import Circumstances, assess
from client_device_pruner.settings import parse
from client_device_pruner.sources import Sources

_SYS = "client-device-pruner/in/$SYS/brokers/emqx@127.0.0.1"
_DAY = 86_400.0
_COUNT_SECONDS = 170.0


def main(arguments: Sequence[str]) -> int:
    """Judge so many devices, of which all are connected, or all have been away for longer than their threshold."""
    number, case = int(arguments[0]), arguments[1]
    settings = parse({"offlineThreshold": "1d"})
    ledger = Ledger(None, 0.0)
    sources = Sources(settings, ledger, 0.0)
    ledger.reconcile([Association(f"device-{index:06}", float(index)) for index in range(number)], 0.0)
    for index, name in enumerate(list(ledger.devices)):
        payload = json.dumps({"connected_at": index}).encode()
        sources.take(f"{_SYS}/clients/{name}/connected", payload, 1.0)
        if case == "all stale":
            sources.take(f"{_SYS}/clients/{name}/disconnected", payload, 1.0)
    at, open_now = 1.0, number if case == "all connected" else 0
    for _ in range(int(2 * _DAY / _COUNT_SECONDS)):
        at += _COUNT_SECONDS
        sources.take(f"{_SYS}/stats/live_connections/count", str(open_now + 1).encode(), at)
    began = time.process_time()
    witnesses, present = sources.witnesses(at), sources.present_names()
    source_ids = [witness.source_id for witness in witnesses]
    outages = find_outages(ledger.devices.values(), present, ledger.ended_absences, source_ids, settings.mass_loss)
    now = Circumstances(settings, witnesses, present, outages=outages)
    states = Counter(assess(device, now).state.value for device in ledger.devices.values())
    used = time.process_time() - began
    expected = "present" if open_now else "marked"
    if states.keys() != {expected}:
        raise RuntimeError(f"not all devices are {expected}")
    print(used)  # noqa: T201 - read by the benchmark
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
