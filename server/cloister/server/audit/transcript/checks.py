"""The questions that the audit of a protected run asks of its sessions, each with a verdict and a reason."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cloister.core import protocol
from cloister.core.errors import CloisterError
from cloister.core.spec import FederationSpec
from cloister.core.spec.grouping import LEAST_PROTECTED
from cloister.privacy.masking import quorum
from cloister.privacy.sums import LOSS, sum_code
from cloister.privacy.updates import centred
from cloister.server.audit.transcript.examined import Looked, Scheme
from cloister.server.audit.transcript.fields import Clear
from cloister.server.audit.transcript.reading import Received, Record
from cloister.server.audit.transcript.uniformity import ALARM, Test

__all__ = [
    "Check",
    "check_clear",
    "check_complete",
    "check_fresh",
    "check_opening",
    "check_shares",
    "check_signatures",
    "check_sums",
    "check_uniform",
]

_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Check:
    """One question.

    Attributes:
        name: stable.
        question: what is asked.
        verdict: ``passed``, ``failed`` or ``not tested``.
        reason: why, in one sentence.
        evidence: figures.
    """

    name: str
    question: str
    verdict: str
    reason: str
    evidence: dict[str, Any] = field(default_factory=dict)


def check_complete(
    record: Record, events: Sequence[Mapping[str, Any]], looked: Sequence[Looked], *, protected: bool
) -> Check:
    """Check that every reply which the run's events speak of is in the transcript, and every sum that was used."""
    there = Counter((line.round, line.type, line.site) for line in record.lines if isinstance(line, Received))
    told = Counter(
        (event["round"], event["phase"], event["site"])
        for event in events
        if event["kind"] == "site" and event["status"] != "missing"
    )
    wrong = [
        f"round {number}: the run tells of {count} replies of '{site}' ({phase}), and the transcript holds {there[number, phase, site]}"
        for (number, phase, site), count in told.items()
        if there[number, phase, site] < count
    ]
    if protected:
        wrong += _sums_missing(events, looked)
    return _verdict(
        "complete",
        "Is everything there that the run speaks of?",
        wrong,
        f"{sum(told.values())} replies that the run's events speak of are in the transcript, among {sum(there.values())} messages",
        {"told": sum(told.values()), "messages": sum(there.values())},
    )


def _sums_missing(events: Sequence[Mapping[str, Any]], looked: Sequence[Looked]) -> list[str]:
    counts: dict[tuple[int, str], list[int]] = defaultdict(list)
    why: dict[tuple[int, str], str] = {}
    for one in looked:
        key = (one.session.manifest.round_number, one.session.manifest.kind)
        if one.found.groups:
            counts[key].append(len(one.found.survivors))
        why[key] = one.found.why
    wanted: list[tuple[int, str, int | None]] = [
        (event["round"], "train", one["answered"])
        for event in events
        if event["kind"] == "round"
        for one in _summed(event)
    ]
    wanted += [
        (event["round"], "evaluate", None)
        for event in events
        if event["kind"] == "evaluation" and event["where"] == "sites"
    ]
    return [
        f"round {number}: the run used a sum ({kind}{'' if count is None else f' of {count} sites'}), and the messages in the transcript open none: "
        f"{why.get((number, kind)) or 'the session is not there'}"
        for number, kind, count in wanted
        if not (counts[number, kind] if count is None else count in counts[number, kind])
    ]


def check_clear(clear: Sequence[Clear]) -> Check:
    """Check that nothing came but what the protocol has."""
    wrong = [
        f"round {one.reply.round}: '{one.reply.site}' sent {one.record}.{one.field} in clear: {one.tells}"
        for one in clear
    ]
    return _verdict(
        "clear",
        "Did anything of one site come in clear?",
        wrong,
        "every field of every message is one that the protocol has",
        {"fields": len(clear)},
    )


def check_signatures(looked: Sequence[Looked], *, run: str, federation: str) -> Check:
    """Check who signed: the server its manifests, and what each scheme has signed by sites and authority."""
    wrong, strangers = [], 0
    for one in looked:
        title, manifest = one.session.title, one.session.manifest
        if one.found.signed:
            wrong.append(f"{title}: the manifest: {one.found.signed}")
        if (manifest.run, manifest.federation) != (run, federation):
            wrong.append(f"{title}: the manifest is of another run or federation")
        wrong += [f"{title}: {text}" for text in one.found.unsigned]
        strangers += sum(step == protocol.ADVERT for step, _, _ in one.found.refused)
    good = f"{len(looked)} manifests are the server's, " + "; ".join(one.signed for one in _schemes(looked))
    if strangers:
        good += f"; {strangers} keys were refused, as the server did"
    return _verdict(
        "signatures", "Who signed?", wrong, good, {"manifests": len(looked), "keys_refused": strangers}
    )


def _schemes(looked: Sequence[Looked]) -> list[Scheme]:
    return list(dict.fromkeys(one.scheme for one in looked))


def check_fresh(looked: Sequence[Looked], *, grouped: bool = False, least: int = LEAST_PROTECTED) -> Check:
    """Check that no key, vector or sum could be set against another: fresh keys, one vector a session, no two sums of a round that tell of few.

    Args:
        looked: the sessions.
        grouped: whether the run has groups, which never change.
        least: the fewest sites in a difference of two sums.
    """
    wrong: list[str] = []
    seen: dict[bytes, str] = {}
    sums: dict[tuple[int, str], set[tuple[str, ...]]] = defaultdict(set)
    together: dict[str, tuple[str, ...]] = {}
    serial = 0
    for one in looked:
        title, manifest = one.session.title, one.session.manifest
        for site, public in one.found.public.items():
            wrong += [
                f"{title}: '{site}' uses a key again, or commits to the same, that stood in {seen[key]}"
                for key in public
                if key in seen
            ]
            seen |= dict.fromkeys(public, title)
        wrong += [f"{title}: '{site}' sent two vectors in one session" for site in one.found.twice]
        if manifest.serial <= serial:
            wrong.append(f"{title}: the session's number is not above those before it")
        serial = max(serial, manifest.serial)
        if one.found.groups:
            sums[manifest.round_number, manifest.kind].add(one.found.survivors)
        if grouped and manifest.kind == "train":
            cohort = tuple(sorted(one.session.names))
            moved = [site for site in cohort if together.setdefault(site, cohort) != cohort]
            wrong += [
                f"{title}: '{site}' was summed with other sites before: groups are fixed" for site in moved
            ]
    wrong += [
        f"round {number} ({kind}): {len(sets)} sums of different sites were opened; the difference of two is a sum of fewer than {least}"
        for (number, kind), sets in sums.items()
        if _telling(sets, least)
    ]
    return _verdict(
        "fresh",
        "Could one message be set against another?",
        wrong,
        f"{len(seen)} keys and commitments, no two alike; one vector of a site in a session, no two sums of a round whose difference is one of few sites",
        {"keys": len(seen)},
    )


def _telling(sets: Collection[tuple[str, ...]], least: int) -> bool:
    """Whether the sums over two of these sets of sites differ by fewer than ``least``; disjoint ones tell nothing more."""
    found = [frozenset(one) for one in sets]
    for place, one in enumerate(found):
        for other in found[place + 1 :]:
            parts = (one & other, one - other, other - one)
            if parts[0] and any(part and len(part) < least for part in parts):
                return True
    return False


def _summed(event: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return what a round's event tells of each sum: answers and loss."""
    return [one for one in event.get("groups") or [event] if one.get("answered")]


def check_shares(looked: Sequence[Looked]) -> Check:
    """Check what was revealed: never shares of both secrets of one site, and only for as many survivors as must be."""
    wrong, seeds, keys = [], 0, 0
    for one in looked:
        title, manifest, found = one.session.title, one.session.manifest, one.found
        seeds, keys = seeds + sum(found.seeds.values()), keys + sum(found.keys.values())
        wrong += [f"{title}: shares of both secrets of '{site}' were revealed" for site in found.both]
        if found.seeds or found.keys:
            least = max(manifest.least, manifest.threshold, quorum(manifest))
            if len(one.session.survivors) < least:
                wrong.append(
                    f"{title}: shares were revealed for {len(one.session.survivors)} survivors, and it takes {least}"
                )
            wrong += [
                f"{title}: a share of the mask key of '{site}' was revealed, and its vector is in the sum"
                for site in sorted(found.keys.keys() & set(one.session.survivors))
            ]
    return _verdict(
        "shares",
        "Which shares were revealed, of whom?",
        wrong,
        f"{seeds} shares of survivors' seeds, {keys} of mask keys of sites that dropped, of no site both; never for fewer sites than the floors",
        {"seed_shares": seeds, "key_shares": keys},
    )


def check_opening(looked: Sequence[Looked]) -> Check:
    """Check the attacker's side: with every share at hand, no vector opens, and no smaller sum than the session's own."""
    wrong, tried, sums, fewest = [], 0, [], math.inf
    for one in looked:
        title, least = one.session.title, one.session.manifest.least
        tried += len(one.found.left)
        wrong += [
            f"{title}: the vector of '{site}' opens" for site, left in one.found.left.items() if not left
        ]
        fewest = min(fewest, *one.found.left.values()) if one.found.left else fewest
        sums += [len(group) for group in one.found.groups]
        wrong += [
            f"{title}: a sum of only {len(group)} sites opens ({', '.join(group[:_SHOWN])})"
            for group in one.found.groups
            if 1 < len(group) < max(least, len(one.found.survivors))
        ]
    evidence = {
        "tried": tried,
        "sums": len(sums),
        "smallest_sum": min(sums, default=None),
        "fewest_masks_left": None if fewest == math.inf else int(fewest),
    }
    words: dict[str, Any] = {
        "least": evidence["fewest_masks_left"],
        "sums": len(sums),
        "smallest": evidence["smallest_sum"],
    }
    good = f"of {tried} vectors none opens " + "; ".join(
        text.format(**words) for scheme in _schemes(looked) for text in (scheme.closed, scheme.sums)
    )
    if not tried:
        return Check(
            name="opening",
            question=_OPENING,
            verdict="not tested",
            reason="no vector arrived",
            evidence=evidence,
        )
    return _verdict("opening", _OPENING, wrong, good, evidence)


_OPENING = "Does anything open but the sum?"


def check_sums(
    looked: Sequence[Looked],
    events: Sequence[Mapping[str, Any]],
    spec: FederationSpec,
    *,
    size: int,
    classes: int,
) -> Check:
    """Check that the sums which open are those that the run used: the losses in its events are theirs."""
    losses: dict[tuple[int, str], list[float]] = defaultdict(list)
    opened = 0
    for one in looked:
        if one.found.opened is None:
            continue
        manifest, opened = one.session.manifest, opened + 1
        values = _decoded(one, spec, size, classes)
        if LOSS in values:
            count = len(one.found.survivors)
            losses[manifest.round_number, manifest.kind].append(
                float(values[LOSS][0]) / count if count else math.nan
            )
    told = [
        (event["round"], "train", one.get("loss"))
        for event in events
        if event["kind"] == "round"
        for one in _summed(event)
    ]
    told += [
        (event["round"], "evaluate", event["loss"])
        for event in events
        if event["kind"] == "evaluation" and event["where"] == "sites"
    ]
    there = {
        (one.session.manifest.round_number, one.session.manifest.kind)
        for one in looked
        if one.found.opened is not None
    }
    compared = [
        (number, kind, loss) for number, kind, loss in told if loss is not None and (number, kind) in there
    ]
    wrong = [
        f"round {number} ({kind}): the run tells of a loss of {loss:.6g}, and the sum in the transcript gives {losses[number, kind] or 'none'}"
        for number, kind, loss in compared
        if not any(math.isclose(loss, one, rel_tol=1e-9, abs_tol=1e-12) for one in losses[number, kind])
    ]
    if not opened:
        reason = "no session's vectors were all kept"
        if looked and looked[0].scheme.holder:
            reason = f"{looked[0].scheme.holder} alone can open them: no sum is computed again from the transcript, so nothing here shows that the run used these; {looked[0].scheme.recorded} which sessions were opened"
        return Check(name="sums", question=_SUMS, verdict="not tested", reason=reason, evidence={"opened": 0})
    good = f"{opened} sums open from the transcript alone; {len(compared)} losses that the run tells of are theirs"
    return _verdict("sums", _SUMS, wrong, good, {"opened": opened, "losses_compared": len(compared)})


def _decoded(one: Looked, spec: FederationSpec, size: int, classes: int) -> dict[str, Any]:
    """Return a sum by name; empty where the manifest is not for such a sum."""
    manifest, total = one.session.manifest, one.found.opened
    if total is None:
        return {}
    try:
        code = sum_code(
            spec,
            manifest.kind,
            size=size,
            classes=classes,
            most=manifest.cohort_size,
            bits=manifest.modulus_bits,
            clip=manifest.clip or None,
        )
        return code.decode(centred(total, manifest.modulus_bits), count=len(one.found.survivors))
    except (CloisterError, ValueError):
        return {}


_SUMS = "Are these the sums that the run used?"


def check_uniform(tests: Sequence[Test], *, least: int) -> Check:
    """Check the vectors against uniform ones.

    Args:
        tests: judged.
        least: numbers of the longest pool; below 80 the bytes were not tested.
    """
    if not tests:
        return Check(name="uniform", question=_UNIFORM, verdict="not tested", reason="no vector arrived")
    wrong = [
        f"the vectors of '{test.site}' ({test.group}, round {test.rounds}) are not uniform: {test.name}, p = {test.p:.1e}, adjusted {test.adjusted:.1e}"
        for test in tests
        if test.failed
    ]
    good = f"{len(tests)} tests, the least p adjusted for all of them is {tests[0].adjusted:.2g}; a false alarm in a run has a chance of {ALARM:g}"
    if least < 80:
        good += f"; no site sent more than {least} numbers: their bytes were not tested"
    return _verdict(
        "uniform",
        _UNIFORM,
        wrong,
        good,
        {"tests": len(tests), "alarm": ALARM, "least_adjusted": tests[0].adjusted},
    )


_UNIFORM = "Can the protected vectors be told from random numbers?"


def _verdict(name: str, question: str, wrong: Iterable[str], good: str, evidence: dict[str, Any]) -> Check:
    found = list(dict.fromkeys(wrong))
    if not found:
        return Check(name=name, question=question, verdict="passed", reason=good, evidence=evidence)
    reason = "; ".join(found[:_SHOWN]) + (f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")
    return Check(
        name=name,
        question=question,
        verdict="failed",
        reason=reason,
        evidence=evidence | {"faults": len(found)},
    )
