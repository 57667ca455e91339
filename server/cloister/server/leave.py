"""What sites that do not allow a run said, as the error that ends it."""

from __future__ import annotations

from collections.abc import Sequence

from cloister.core.errors import CloisterError, IntegrityError, PolicyError

__all__ = ["ends_run", "refusal_of"]

#: Codes of refusals that are the site's policy: of `cloister.privacy.ledger`, and what those of a site's gate begin with. A gate's ``wait-…`` is none.
_POLICY = ("budget", "delta", "relation")
_GATE = "policy-"


def ends_run(reason: str) -> bool:
    """Whether asking the site again is of no use: its policy does not allow it, or its ledger does not hold."""
    code = reason.split(":", 1)[0]
    return _by_policy(code) or code.startswith("ledger")


def refusal_of(refused: Sequence[dict[str, str]], rounds: int) -> CloisterError:
    """Return the error for sites that refuse ``rounds`` rounds: their policy (exit 5) before a ledger that does not hold (exit 7)."""
    by_policy = [one for one in refused if _by_policy(one["reason"].split(":", 1)[0])]
    told = by_policy or list(refused)
    text = "; ".join(f"site '{one['site']}': {one['reason']}" for one in told[:5])
    more = f" and {len(told) - 5} more" if len(told) > 5 else ""
    if by_policy:
        return PolicyError(
            f"{len(told)} of the sites do not allow {rounds} more rounds: {text}{more}",
            remedy="ask for less (fewer rounds, more noise, a smaller sampling rate), leave those sites out, or ask them to raise "
            "their caps: cloister ledger remaining shows what fits",
            code=told[0]["reason"].split(":", 1)[0],
        )
    return IntegrityError(
        f"{len(told)} of the sites refuse to take part: {text}{more}",
        remedy="mend what they say; docs/ledger.md tells what to do with a ledger that does not hold",
        code=told[0]["reason"].split(":", 1)[0],
    )


def _by_policy(code: str) -> bool:
    return code in _POLICY or code.startswith(_GATE)
