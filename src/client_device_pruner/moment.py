"""The check in the moment: vouchers that arrived after it began, then the self-test's echo (DESIGN, model 7)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from client_device_pruner.model import Hold, Proof, Witness
from client_device_pruner.self_test import PATIENCE_SECONDS, SelfTest
from client_device_pruner.sources import Sources

CENSUS_DELAY_SECONDS = 5.0
"""A count that arrives sooner may have been sampled before events that were already on their way."""
VOUCHER_WAIT_SECONDS = 600.0
"""How long a voucher is waited for at most, or the source's maxQuiet if that is shorter."""


class Moment:
    """One check under way; all times are monotonic seconds.

    Args:
        source_ids: the proving sources.
        at: when it begins.
        sources: the sources in force, asked anew each time since a deployment may change them meanwhile.
        self_test: its echo shows that all that was sent before has been processed.
        send_echo: publishes the self-test's text.
        scale: what the fixed times are multiplied by.
    """

    def __init__(
        self,
        source_ids: Iterable[int],
        at: float,
        *,
        sources: Callable[[], Sources],
        self_test: SelfTest,
        send_echo: Callable[[str], None],
        scale: float,
    ) -> None:
        self._began = at
        self._sources = sources
        self._self_test = self_test
        self._send_echo = send_echo
        self._scale = scale
        self._source_ids = frozenset(source_ids)
        self._awaited = set(self._source_ids)
        self._name = ""
        self._echo: str | None = None
        self._echo_sent = at

    def poll(self, at: float) -> tuple[bool, Hold | None]:
        """Whether it is over, and what held it up if anything did."""
        if self._echo is None:
            witnesses = {w.source_id: w for w in self._sources().witnesses(at)}
            for source_id in tuple(self._awaited):
                witness = witnesses.get(source_id)
                if witness is None:
                    return True, _hold("a source that proved it is no longer in force", str(source_id))
                if self._is_fresh(witness):
                    self._awaited.discard(source_id)
                elif at - self._began > self._patience(witness):
                    return True, _hold(f"no fresh voucher came in the last moment: {witness.reason}", witness.name)
            if self._awaited:
                return False, None
            self._name = min(witnesses[source_id].name for source_id in self._source_ids)
            self._echo, self._echo_sent = self._self_test.next(at), at
            self._send_echo(self._echo)
            return False, None
        if self._self_test.echoed == self._echo:
            return True, None
        if at - self._echo_sent > max(1.0, PATIENCE_SECONDS * self._scale):
            return True, _hold("the self-test did not come back in the last moment", self._name)
        return False, None

    def _is_fresh(self, witness: Witness) -> bool:
        delay = CENSUS_DELAY_SECONDS * self._scale if witness.proof is Proof.CENSUS else 0.0
        return witness.vouching and self._sources().fresh_voucher(witness.source_id, self._began + delay)

    def _patience(self, witness: Witness) -> float:
        quiet = self._sources().max_quiet_seconds(witness.source_id)
        return min(quiet, VOUCHER_WAIT_SECONDS * self._scale) + CENSUS_DELAY_SECONDS * self._scale


def _hold(reason: str, name: str) -> Hold:
    return Hold(f"source:{name}", reason, "nothing was disassociated; the next cycle tries again")
