"""Fuzzes every decoder and the configuration: `python -m local_core.fuzz`, with atheris; ends in a table.

Each target has a process of its own, its corpus in a folder that outlives the run, and a seed that is printed. An input
that breaks a property is kept; `--replay TARGET FILE` shows what it does, without atheris.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import SystemRandom

FOLDER = Path("build/fuzz")
"""Where corpora, logs and inputs that break something are kept, below the current directory."""
_LONGEST_SECONDS = 20  # of one input
_MOST_MIB = 1024
_SHOWN_LINES = 25


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one target came to: inputs tried, seconds of processor time, edges covered, inputs kept, and what broke."""

    name: str
    runs: int
    cpu_seconds: float
    edges: int
    kept: int
    broke: Path | None
    log: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Fuzz, replay or list; exit status 1 if a property broke, 2 for a wrong use."""
    parser = argparse.ArgumentParser(prog="python -m local_core.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="which to fuzz (default: all)")
    parser.add_argument("--runs", type=int, default=1_000_000, help="inputs for each target (default: 1,000,000)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="targets at once (default: all cores)")
    parser.add_argument("--seed", type=int, help="repeat a run that printed it, if the corpus is the same")
    parser.add_argument("--replay", nargs=2, metavar=("TARGET", "FILE"), help="show what an input does")
    parser.add_argument("--list", action="store_true", help="list the targets")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        return _fuzz(options.one, options.runs, options.seed)
    from local_core.fuzz.targets import TARGETS

    if unknown := [name for name in (*options.targets, *(options.replay or ())[:1]) if name not in TARGETS]:
        parser.error(f"there is no target {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    if options.list:
        for target in TARGETS.values():
            _say(f"{target.name:16} {(target.check.__doc__ or '').partition(chr(10))[0]}")
        return 0
    if options.replay:
        TARGETS[options.replay[0]].check(Path(options.replay[1]).read_bytes())
        _say("Nothing breaks.")
        return 0
    return campaign(options.targets or list(TARGETS), options.runs, options.jobs, options.seed)


def campaign(names: Sequence[str], runs: int, jobs: int, seed: int | None) -> int:
    """Fuzz targets side by side, and print the table."""
    seed = SystemRandom().randrange(1, 2**31) if seed is None else seed
    _say(f"{len(names)} targets, {runs:,} inputs each, seed {seed}, {jobs} at once; all that is kept is in {FOLDER}.")
    began = time.monotonic()
    outcomes = []
    with ThreadPoolExecutor(jobs) as pool:
        for outcome in pool.map(lambda name: _run(name, runs, seed), names):
            outcomes.append(outcome)
            _say(f"{outcome.name}: {outcome.runs:,} inputs{', BROKE' if outcome.broke else ''}")
    _say(_table(outcomes, time.monotonic() - began))
    for outcome in outcomes:
        if outcome.broke:
            _say(f"\n{outcome.name} broke:\n{outcome.log}")
            _say(f"Replay: PYTHONPATH=src {sys.executable} -m local_core.fuzz --replay {outcome.name} {outcome.broke}")
    return int(any(outcome.broke or outcome.runs < runs for outcome in outcomes))


def _run(name: str, runs: int, seed: int) -> Outcome:
    """Fuzz one target in a process of its own."""
    command = [sys.executable, "-m", "local_core.fuzz", "--one", name, "--runs", str(runs), "--seed", str(seed)]
    log = FOLDER / name / "log"
    log.parent.mkdir(parents=True, exist_ok=True)
    known = set(log.parent.glob("broke-*"))
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)
        _pid, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    text = log.read_text(errors="replace")
    broke = next(iter(sorted(set(log.parent.glob("broke-*")) - known)), None)
    if process.returncode and broke is None:
        broke = log
    return Outcome(
        name,
        runs=_figure(r"stat::number_of_executed_units: *(\d+)", text),
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        edges=_figure(r"cov: (\d+)", text),
        kept=_figure(r"corp: (\d+)", text),
        broke=broke,
        log="\n".join(text.splitlines()[-_SHOWN_LINES:]) if broke else "",
    )


def _fuzz(name: str, runs: int, seed: int | None) -> int:
    """Fuzz one target in this process, which ends with it."""
    import atheris

    with atheris.instrument_imports(include=["client_device_pruner"]):
        from local_core.fuzz.targets import TARGETS
    from local_core.fuzz.mutation import mutate

    target, folder = TARGETS[name], FOLDER / name
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(target.seeds):
        (corpus / f"seed-{number}").write_bytes(data)

    def mutated(data: bytes, largest_bytes: int, number: int) -> bytes:
        as_json = mutate(data, largest_bytes, number, target.words) if number % 4 else None
        found: bytes = atheris.Mutate(data, largest_bytes) if as_json is None else as_json
        return found

    flags = [
        f"-runs={runs}",
        f"-seed={seed or 0}",
        f"-max_len={target.largest_bytes}",
        f"-timeout={_LONGEST_SECONDS}",
        f"-rss_limit_mb={_MOST_MIB}",
        f"-artifact_prefix={folder}/broke-",
        "-print_final_stats=1",
        "-len_control=0",
    ]
    mutator = {"custom_mutator": mutated} if target.words else {}
    atheris.Setup([name, *flags, str(corpus)], target.check, **mutator)
    atheris.Fuzz()
    return 0


def _figure(pattern: str, text: str) -> int:
    found = re.findall(pattern, text)
    return int(found[-1]) if found else 0


def _table(outcomes: Sequence[Outcome], seconds: float) -> str:
    lines = [f"{'target':16} {'inputs':>12} {'CPU s':>8} {'edges':>6} {'corpus':>6}  property"]
    lines += [
        f"{one.name:16} {one.runs:12,} {one.cpu_seconds:8.0f} {one.edges:6} {one.kept:6}  "
        f"{'BROKE: ' + one.broke.name if one.broke else 'holds'}"
        for one in outcomes
    ]
    runs, cpu = sum(one.runs for one in outcomes), sum(one.cpu_seconds for one in outcomes)
    broken = sum(one.broke is not None for one in outcomes)
    lines.append(f"{'total':16} {runs:12,} {cpu:8.0f} {'':13}  {broken} broken, in {seconds / 60:.0f} min")
    return "\n".join(lines)


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - it is for people


if __name__ == "__main__":
    sys.exit(main())
