"""The server's manifests: what each session of a run is, signed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from cloister.core.digests import vectors_digest
from cloister.core.spec import FederationSpec
from cloister.core.spec.grouping import least_in_sum
from cloister.core.update import Vector
from cloister.privacy.manifest import Manifest, Scheme, SumKind, cohort_digest
from cloister.privacy.sums import SumCode, sum_code
from cloister.server.plan import RunPlan

__all__ = ["Manifests"]


class Manifests:
    """Makes the manifests of one run, each with a serial number above all before it, also after a restart."""

    def __init__(self, plan: RunPlan, scheme: Scheme, bits: int) -> None:
        self._plan = plan
        self.run = plan.run
        self._spec: FederationSpec = plan.loaded.spec
        self._scheme: Scheme = scheme
        self._bits = bits
        self._serial = 0
        self._federation = plan.loaded.digest()

    def code(self, kind: SumKind, *, most: int, clip: float | None) -> SumCode:
        """Return how sums of ``most`` sites are written."""
        return sum_code(
            self._spec,
            kind,
            size=self._plan.layout.size,
            classes=self._plan.classes,
            most=most,
            bits=self._bits,
            clip=clip,
        )

    def least(self, kind: SumKind) -> int:
        """Return the fewest sites whose sum is opened."""
        return least_in_sum(self._spec) if kind == "train" else self._spec.cohort.min_sites

    def next_serial(self) -> int:
        """Return the number of a new session."""
        self._serial = max(self._serial + 1, time.time_ns())
        return self._serial

    def make(
        self,
        kind: SumKind,
        number: int,
        names: Sequence[str],
        *,
        vectors: Mapping[str, Vector],
        clip: float | None,
        graph: tuple[int, int],
        group: int = 0,
        serial: int | None = None,
        key: str = "",
    ) -> Manifest:
        """Return the manifest of one session.

        Args:
            kind: what is summed.
            number: the round.
            names: who is asked.
            vectors: what they are sent.
            clip: the round's clip, where it adapts.
            graph: (degree, threshold) of the sharing.
            group: which of the run's groups ``names`` are, where it has groups.
            serial: of the session; a new one unless given.
            key: identifies the key that values are encrypted under.
        """
        code = self.code(kind, most=len(names), clip=clip)
        degree, threshold = graph
        return Manifest(
            run=self._plan.run,
            round_number=number,
            serial=self.next_serial() if serial is None else serial,
            kind=kind,
            group=group,
            scheme=self._scheme,
            federation=self._federation,
            layout=self._plan.layout.digest,
            model=vectors_digest(vectors),
            cohort=cohort_digest(names),
            cohort_size=len(names),
            least=self.least(kind),
            threshold=threshold,
            degree=degree,
            size=code.size,
            modulus_bits=self._bits,
            largest=code.largest,
            clip=clip or 0.0,
            key=key,
        )
