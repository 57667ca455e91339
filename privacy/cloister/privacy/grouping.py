"""The groups of a run: a random split of its sites, fixed before anybody knows it, that every site computes for itself.

Formal guarantees:

- `Groups.draw` is a function of the beacon, the names and the size alone: sites in the order of SHA-256(seed, name), where the seed is the SHA-256 of
  all three, dealt into groups of consecutive sites. With SHA-256 as a random oracle every split is as likely as any other, for a beacon that was
  fixed without trying out what it gives.
- A site takes part in no training sum whose cohort is not its own group (`Groups.check`), so that the sites that are summed with it are the same in
  every round: no two groupings exist whose sums could be subtracted.

**Where the beacon comes from.** In a deployment it is the run's name: the hash of the request that a *user* signed, with 16 random bytes of the user's
(`cloister.privacy.request`), and the names are those that the request lists. Both are fixed before the server learns of the run, and both are under
a signature that each site checks: the server can neither try beacons nor leave sites out to get another split. In a simulation the beacon is drawn
from the seed.

**What it does not prevent.**

- A user who sides with the server can sign requests until the split suits them, at a hash each: then they choose whom a site is summed with. What
  that is worth is bounded by the group's own sites: a sum of m of which c tell their shares is one of m - c. A site that does not trust the users
  of its consortium should ask for larger groups (``size``).
- The server can choose which of the requests that users have signed it runs, and how often it says that one failed: as many draws as users sign.
- Commit-and-reveal among the sites would take the user out. It was not built: who opens last, or a server that says somebody did not, has a choice
  there as well unless every opening is demanded, and then any one site can stop every run, whereas here it is missing from one group.

==========================================  ===================================================
case                                        outcome
==========================================  ===================================================
a manifest of another group, or cohort      ``IntegrityError`` (group-differs)
a site that is not among the names          ``IntegrityError`` (group-differs)
names twice, or fewer than ``size``         ``ValueError``
==========================================  ===================================================
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache

from cloister.core.errors import IntegrityError
from cloister.core.randomness import Randomness
from cloister.core.spec.grouping import group_sizes
from cloister.privacy.manifest import Manifest, cohort_digest

__all__ = ["Groups", "beacon_of"]

_LABEL = "cloister groups 1"


@dataclass(frozen=True)
class Groups:
    """Who is summed with whom.

    Attributes:
        members: of each group the names, sorted; the larger groups first.
    """

    members: tuple[tuple[str, ...], ...]

    @classmethod
    def draw(cls, beacon: str, names: Iterable[str], size: int) -> Groups:
        """Return the groups of a run.

        Args:
            beacon: public, fixed before anybody can know what it gives.
            names: all sites of the run.
            size: the fewest sites in a group.

        Raises:
            ValueError: names are given twice, or are fewer than ``size``.
        """
        return _drawn(beacon, tuple(sorted(names)), size)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """All sites, sorted."""
        return tuple(sorted(name for group in self.members for name in group))

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """How many sites each group has."""
        return tuple(map(len, self.members))

    @cached_property
    def number_of(self) -> dict[str, int]:
        """The number of each site's group, from 0."""
        return {name: number for number, group in enumerate(self.members) for name in group}

    def check(self, manifest: Manifest, own: str) -> None:
        """Check that a session's cohort is what the groups allow: a site's own group to train, all sites to measure.

        Args:
            manifest: of the session.
            own: the site that is asked.

        Raises:
            IntegrityError: (group-differs) it is another, or the site is in none.
        """
        number = self.number_of.get(own)
        if number is None:
            raise _differs("this site is not among the sites of the run")
        group, of = (number, self.members[number]) if manifest.kind == "train" else (0, self.names)
        if (manifest.group, manifest.cohort_size, manifest.cohort) != (group, len(of), cohort_digest(of)):
            raise _differs(
                f"the session asks for a sum over {manifest.cohort_size} sites as group {manifest.group}, and this site "
                f"is only ever summed with the {len(of)} of group {group}"
            )


def beacon_of(randomness: Randomness, run: str) -> str:
    """Return what the groups of a run are drawn from: its name, or in a simulation the seed.

    Args:
        randomness: the run's.
        run: what names it; in a deployment the hash of what a user signed.
    """
    return f"seed {randomness.bits('groups'):032x}" if randomness.reproducible else run


@lru_cache(maxsize=8)
def _drawn(beacon: str, names: tuple[str, ...], size: int) -> Groups:
    if len(set(names)) != len(names) or len(names) < size:
        raise ValueError(f"{len(names)} names, some perhaps twice, make no groups of {size}")
    seed = hashlib.sha256(json.dumps([_LABEL, beacon, size, names]).encode()).digest()
    order = sorted(names, key=lambda name: hashlib.sha256(seed + name.encode()).digest())
    members, begin = [], 0
    for amount in group_sizes(len(names), size):
        members.append(tuple(sorted(order[begin : begin + amount])))
        begin += amount
    return Groups(tuple(members))


def _differs(why: str) -> IntegrityError:
    return IntegrityError(
        f"the session was refused: {why}",
        remedy="find out why the server sums other sites than the run's own groups: nothing left this site",
        code="group-differs",
    )
