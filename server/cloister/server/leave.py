"""What sites that do not allow a run said, as the error that ends it."""

from __future__ import annotations

from collections.abc import Sequence

from cloister.core.errors import CloisterError, IntegrityError, PolicyError

__all__ = ["ends_run", "is_busy", "refusal_of"]

#: Codes of refusals that are the site's policy: of `cloister.privacy.ledger`, and prefixes of those of a site's gate.
_POLICY = ("budget", "delta", "relation")
_GATE, _WAIT = "policy-", "wait-"
_BUSY = "wait-busy"


def ends_run(reason: str) -> bool:
    """Whether asking the site again is of no use: its policy does not allow it, or its ledger does not hold."""
    code = _code(reason)
    return code in _POLICY or code.startswith(("ledger", _GATE))


def is_busy(reason: str) -> bool:
    """Whether the site is busy with another run: it is asked again with each round."""
    return _code(reason) == _BUSY


def refusal_of(refused: Sequence[dict[str, str]], rounds: int) -> CloisterError:
    """Return the error for sites that refuse ``rounds`` rounds: their policy (exit 5) before a ledger that does not hold (exit 7).

    A site that only wants to be asked again later (``wait-…``) decides where no other refuses for good.
    """
    by_policy = [one for one in refused if _by_policy(_code(one["reason"]))]
    told = by_policy or list(refused)
    code = _code(told[0]["reason"])
    text = "; ".join(f"site '{one['site']}': {one['reason']}" for one in told[:5])
    more = f" and {len(told) - 5} more" if len(told) > 5 else ""
    if by_policy:
        return PolicyError(
            f"{len(told)} of the sites do not allow {rounds} more rounds: {text}{more}",
            remedy="ask for less (fewer rounds, more noise, a smaller sampling rate), leave those sites out, or ask them to raise "
            "their caps: cloister ledger remaining shows what fits",
            code=code,
        )
    if all(_code(one["reason"]).startswith(_WAIT) for one in refused):
        return PolicyError(
            f"{len(told)} of the sites want to be asked again later: {text}{more}",
            remedy="wait; at the site: cloister site status",
            code=code,
        )
    return IntegrityError(
        f"{len(told)} of the sites refuse to take part: {text}{more}",
        remedy="mend what they say; docs/ledger.md tells what to do with a ledger that does not hold",
        code=code,
    )


def _by_policy(code: str) -> bool:
    return code in _POLICY or code.startswith(_GATE)


def _code(reason: str) -> str:
    return reason.split(":", 1)[0]
