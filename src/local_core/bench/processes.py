"""What the kernel tells of a process, from `/proc`."""

from __future__ import annotations

import os
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def pss_mib(pid: int) -> float:
    """Its memory: what is its own, and its share of what it has in common with others (`smaps_rollup`)."""
    return _number(pid, "smaps_rollup", "Pss:") / 1024


def cpu_seconds(pid: int) -> float:
    """User and system time so far (`stat`)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def written_kib(pid: int) -> float:
    """What it has caused to be written to disk so far, in pages of the file system (`write_bytes` of `io`)."""
    return _number(pid, "io", "write_bytes:") / 1024


def _number(pid: int, file: str, key: str) -> int:
    for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1])
    raise RuntimeError(f"this kernel tells no {key} in /proc/PID/{file}")
