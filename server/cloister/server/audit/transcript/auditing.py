"""The whole audit: a run folder in, findings as data out. It reads ``federation.toml``, ``events.jsonl`` and ``transcript/``, and writes nothing.

A transcript shows what the server's program *received*. It is the server's own: a server that keeps a second channel, or writes something else than
what came, is not found out by it, but by sites that compare the digests of what they sent. What sites signed it cannot make up.

===================  ==========================================================================================================
verdict              when
===================  ==========================================================================================================
``passed``           every check passed; one that could not be made is named
``failed``           at least one check failed; the reasons are theirs
``not protected``    the run's updates came in clear, by its federation file
===================  ==========================================================================================================

======================================================  ====================================================
case                                                    outcome
======================================================  ====================================================
no transcript, and the run was to keep none             ``UsageError`` (transcript-off)
no transcript, a damaged one, one that was changed      ``IntegrityError`` (transcript, transcript-…)
a transcript of another run                             ``IntegrityError`` (transcript)
an event names a line that is not so                    ``IntegrityError`` (transcript-chain)
sessions of a scheme that is not the run's, or unknown   check ``scheme`` failed
======================================================  ====================================================
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from cloister.core.errors import IntegrityError, UsageError
from cloister.core.spec import Loaded, load_federation
from cloister.server.audit.transcript.checks import (
    Check,
    check_clear,
    check_complete,
    check_fresh,
    check_opening,
    check_shares,
    check_signatures,
    check_sums,
    check_uniform,
)
from cloister.server.audit.transcript.collusion import collusion
from cloister.server.audit.transcript.encrypted import ENCRYPTED
from cloister.server.audit.transcript.examined import Looked, Scheme
from cloister.server.audit.transcript.fields import ALLOWED, Clear, clear_in
from cloister.server.audit.transcript.masked import MASKED
from cloister.server.audit.transcript.power import mean_of, power
from cloister.server.audit.transcript.reading import Received, Record, Start, read_transcript
from cloister.server.audit.transcript.sessions import Session, sessions_of
from cloister.server.audit.transcript.uniformity import ALARM, OFF, Sample, Test, judged, tests_of
from cloister.server.events import read_events
from cloister.server.vector_facts import facts_of

__all__ = ["audit_transcript"]

#: Schemes whose sessions can be examined; `Looked` is what an examination gives.
_SCHEMES: dict[str, Scheme] = {"masked": MASKED, **ENCRYPTED}


def audit_transcript(folder: Path, *, authority: str | None = None) -> dict[str, Any]:
    """Return what a run's transcript shows, as data with a verdict.

    Args:
        folder: the run's.
        authority: public key (hex) of the consortium's authority, where it is known; else the transcript's own word is taken for it.

    Raises:
        UsageError: it is no run's folder, or no transcript was to be kept.
        IntegrityError: the transcript is damaged or was changed, is of another run, or names another authority.
    """
    loaded, record = _read(folder)
    events = list(read_events(folder / "events.jsonl"))
    start = _check_origin(record, loaded, events)
    key = _key_of(start.authority)
    if authority is not None and authority.lower() != key:
        raise IntegrityError(
            f"the transcript names an authority with the public key {key}, and not {authority}",
            remedy="find out whose certificates the run used",
            code="identity",
        )
    sessions, outside = sessions_of(record)
    protection = loaded.spec.aggregation.protection
    clear = _clear(record, sessions, outside, protection)
    found: dict[str, Any] = {
        "check": "transcript",
        "run": start.run,
        "protection": protection,
        "messages": sum(isinstance(line, Received) for line in record.lines),
        "starts": sum(isinstance(line, Start) for line in record.lines),
        "authority": key,
        "authority_given": authority is not None,
        "clear_fields": _summed(clear),
        "allowed": ALLOWED.get(protection, {}),
    }
    if protection == "plain" or start.authority is None:
        complete = check_complete(record, events, [], protected=False)
        told = f"updates came in clear: aggregation.protection = '{protection}'; the server could read {len(found['clear_fields'])} kinds of field of each site"
        return found | {"verdict": "not protected", "reason": told, "checks": [asdict(complete)]}
    return found | _protected(loaded, record, events, sessions=sessions, clear=clear, start=start)


def _protected(
    loaded: Loaded,
    record: Record,
    events: Sequence[Mapping[str, Any]],
    *,
    sessions: Sequence[Session],
    clear: Sequence[Clear],
    start: Start,
) -> dict[str, Any]:
    authority = start.authority or b""
    looked = [
        Looked(session=one, found=scheme.examine(one, record, authority), scheme=scheme)
        for one in sessions
        if (scheme := _SCHEMES.get(one.manifest.scheme)) is not None
    ]
    samples = _samples(looked, record)
    tests = judged(tests_of(samples))
    run = next((event for event in events if event["kind"] == "run"), {})
    checks = [
        *_scheme(sessions, loaded.spec.aggregation.protection),
        check_complete(record, events, looked, protected=True),
        check_clear(clear),
        check_signatures(looked, run=start.run, federation=loaded.digest()),
        check_fresh(looked, grouped=loaded.spec.aggregation.group_size is not None),
        *([check_shares(looked)] if any(not one.scheme.holder for one in looked) else []),
        check_opening(looked),
        check_sums(
            looked,
            events,
            loaded.spec,
            size=int(run.get("parameters") or 0) + loaded.spec.audit.canary_weights,
            classes=len(run.get("classes") or ()),
        ),
        check_uniform(tests, least=max((test.numbers for test in tests if test.continuous), default=0)),
    ]
    failed = [one for one in checks if one.verdict == "failed"]
    untested = [one.name for one in checks if one.verdict == "not tested"]
    good = "the server could read sums only: no site's update, weight or metric is in what it received"
    if untested:
        good += f"; not tested: {', '.join(untested)}"
    return {
        "verdict": "failed" if failed else "passed",
        "reason": "; ".join(one.reason for one in failed) if failed else good,
        "checks": [asdict(one) for one in checks],
        "uniformity": _uniformity(tests, looked),
        "decryption": _decryption(looked),
        "sessions": _rows(looked, tests),
    }


def _read(folder: Path) -> tuple[Loaded, Record]:
    if not (folder / "federation.toml").is_file():
        raise UsageError(
            f"'{folder}' is no run: it has no federation.toml", remedy="name a folder under runs/"
        )
    loaded = load_federation(folder / "federation.toml")
    where = folder / "transcript"
    if not where.is_dir() and loaded.spec.audit.transcript == "off":
        raise UsageError(
            "the run kept no transcript: audit.transcript is 'off'",
            remedy="run it again with --set audit.transcript=bounded",
            code="transcript-off",
        )
    if not where.is_dir():
        raise _unfit("there is none, and the run was to keep one", "transcript")
    return loaded, read_transcript(where)


def _check_origin(record: Record, loaded: Loaded, events: Sequence[Mapping[str, Any]]) -> Start:
    """Check that the transcript is this run's, and that lines which its events name are so; return its first line."""
    starts = [line for line in record.lines if isinstance(line, Start)]
    first = starts[0]
    keys = {_key_of(one.authority) for one in starts}
    if (
        len(keys) > 1
        or any(one.run != first.run for one in starts)
        or any(one.federation != loaded.digest() for one in starts)
    ):
        raise _unfit("it is of another run or federation than the folder", "transcript")
    for event in events:
        said = event.get("transcript") if event["kind"] == "round" else None
        if isinstance(said, Mapping):
            number = said.get("lines")
            if (
                not isinstance(number, int)
                or not 0 < number <= len(record.hashes)
                or record.hashes[number - 1] != said.get("head")
            ):
                raise _unfit(
                    f"at the end of round {event['round']} it had {number} lines, the last of which is not there now",
                    "transcript-chain",
                )
    return first


def _key_of(authority: bytes | None) -> str | None:
    """Return the public key of an authority's certificate: a simulation issues a new certificate for it each time it goes on."""
    if authority is None:
        return None
    try:
        key = x509.load_der_x509_certificate(authority).public_key()
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise _unfit("the certificate of the consortium's authority is none", "identity")
    return key.public_bytes_raw().hex()


def _clear(
    record: Record, sessions: Sequence[Session], outside: Sequence[Received], protection: str
) -> list[Clear]:
    found = [one for reply in outside for one in clear_in(reply, None, protection)]
    found += [
        one
        for session in sessions
        for reply in session.replies
        for one in clear_in(reply, session, protection)
    ]
    order = {id(line): place for place, line in enumerate(record.lines)}
    return sorted(found, key=lambda one: order[id(one.reply)])


def _summed(clear: Sequence[Clear]) -> list[dict[str, Any]]:
    """Return the clear fields by what they are, with how often they came and of whom."""
    alike: dict[tuple[str, str, str], list[Clear]] = defaultdict(list)
    for one in clear:
        alike[one.reply.phase, one.record, one.field].append(one)
    return [
        {
            "phase": phase,
            "record": record,
            "field": field,
            "type": several[0].type,
            "bytes": several[0].nbytes,
            "tells": several[0].tells,
            "times": len(several),
            "sites": sorted({one.reply.site for one in several}),
            "rounds": [min(one.reply.round for one in several), max(one.reply.round for one in several)],
        }
        for (phase, record, field), several in alike.items()
    ]


def _samples(looked: Sequence[Looked], record: Record) -> list[Sample]:
    """Return the vectors that arrived, and what is left of each when all known masks are off."""
    samples: list[Sample] = []
    for number, one in enumerate(looked):
        manifest = one.session.manifest

        about: dict[str, Any] = {"group": manifest.kind, "round": manifest.round_number, "session": number}
        for site, entry in one.session.vectors():
            samples += [
                Sample(site=site, facts=facts, part=part, **about)
                for part, facts in record.facts(entry).items()
            ]
        samples += [
            Sample(site=site, facts=facts_of(rest), part=OFF, **about)
            for site, rest in one.found.rests.items()
            if one.found.left[site]
        ]
    return samples


def _scheme(sessions: Sequence[Session], protection: str) -> list[Check]:
    """Say which sessions are of a scheme that is not known here, or not the run's."""
    schemes = {one.manifest.scheme for one in sessions}
    unknown, others = sorted(schemes - set(_SCHEMES)), sorted(schemes - {protection})
    if not others and not unknown:
        return []
    reason = (
        f"this version cannot examine sessions of '{', '.join(unknown)}'"
        if unknown
        else f"sessions of '{', '.join(others)}' in a run whose protection is '{protection}'"
    )
    return [Check(name="scheme", question="Can the sessions be examined?", verdict="failed", reason=reason)]


def _uniformity(tests: Sequence[Test], looked: Sequence[Looked]) -> dict[str, Any]:
    planted = []
    for kind in sorted({one.session.manifest.kind for one in looked}):
        means = [
            mean_of(one.found.opened, len(one.found.survivors), one.session.manifest.modulus_bits)
            for one in looked
            if one.session.manifest.kind == kind and one.found.opened is not None
        ]
        if means:
            planted += power(kind, means, len(tests))
    return {
        "alarm": ALARM,
        "tests": [asdict(test) | {"failed": test.failed, "continuous": test.continuous} for test in tests],
        "power": [asdict(one) for one in planted],
    }


def _decryption(looked: Sequence[Looked]) -> dict[str, Any] | None:
    """Return who would have to help the server, in the session where the fewest would do; or who holds the key."""
    sealed = next((one for one in looked if one.scheme.holder), None)
    if sealed is not None:
        return {
            "holder": sealed.scheme.holder,
            "trusted": sealed.scheme.trusted,
            "rests_on": sealed.scheme.rests_on,
        }
    found = [
        (collusion(one.session.manifest, len(one.found.survivors)), one.session)
        for one in looked
        if one.found.survivors
    ]
    if not found:
        return None
    least, session = min(found, key=lambda pair: (pair[0].curious, pair[0].lying))
    manifest = session.manifest
    return asdict(least) | {
        "lying": min(one.lying for one, _ in found),
        "session": session.title,
        "sites": manifest.cohort_size,
        "threshold": manifest.threshold,
        "degree": manifest.degree,
    }


def _rows(looked: Sequence[Looked], tests: Sequence[Test]) -> list[dict[str, Any]]:
    least: dict[tuple[str, str], float] = {}
    for test in tests:
        if not test.group.endswith(OFF):
            key = (test.group.partition(",")[0], test.rounds)
            least[key] = min(test.p, least.get(key, 1.0))
    return [
        {
            "round": one.session.manifest.round_number,
            "kind": one.session.manifest.kind,
            "asked": one.session.manifest.cohort_size,
            "vectors": len(one.found.left),
            "survivors": list(one.found.survivors),
            "numbers": one.session.manifest.size,
            "opens": [len(group) for group in one.found.groups],
            "opened": one.found.opened is not None,
            "why": one.found.why,
            "seed_shares": one.found.seeds,
            "key_shares": one.found.keys,
            "masks_left": one.found.left,
            "refused": [list(entry) for entry in one.found.refused],
            "least_p": least.get((one.session.manifest.kind, str(one.session.manifest.round_number))),
        }
        for one in looked
    ]


def _unfit(why: str, code: str) -> IntegrityError:
    return IntegrityError(
        f"the transcript does not hold: {why}",
        remedy="restore the transcript that belongs to this run; one that was changed proves nothing",
        code=code,
    )
