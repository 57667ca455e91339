"""The policy that ``cloister policy init`` writes: it allows nothing, and says of every key what it does."""

from __future__ import annotations

import json

from cloister.client.site_config import SiteConfig
from cloister.core._version import __version__

__all__ = ["careful_policy"]

_HEAD = """\
# What may be done with this site's records. Read again whenever it changes; what no [[allow]] allows is refused.
#   cloister policy check policy.toml --against FILE --site .    what it would say of a federation file
#   cloister site status                                         what waits for approval, and what was refused

[who]
users = []              # the consortium's users whose requests are looked at, by name; "*": all of them
request_days = 30.0     # a request that was signed longer ago is refused, also in the middle of its run
"""
_DATA = """
[data.{name}]              # limits of this data set, whoever asks; they become the cap of its ledger
epsilon_cap = 3.0       # the most that everything charged to it may ever compose to
delta_cap = 1e-5        # at this δ: well below one over the number of records
epsilon_per = {{ days = 90.0, epsilon = 1.5 }}   # and how fast
min_records = 50        # with fewer training records nobody trains on them

# [[allow]]
# dataset = {dataset}
# task = {task}
# code = "…"              # the task's program: cloister policy hash {hashed} --site .
# users = "*"             # for whom, among [who] users
# cloister = [{version}]  # the versions of Cloister that this was agreed for
# protection = ["masked", "bfv"]             # the server sees sums only
# units = ["record", "record-distributed"]   # whose privacy is guaranteed
# sites_in_sum = 3        # the fewest sites in a sum
# colluders = 0           # so many of them may side with the server
# epsilon_run = 1.0       # the most that one whole run may cost, with the rounds that are charged more than once
# repeated_rounds = 5     # so many rounds of a run may be charged once more, since a server or a site died in the middle
# rounds = 200            # the most rounds of a run
# outputs = ["update"]    # also "sums of metrics", "metrics" (in clear), "control" (SCAFFOLD)
# metrics = ["loss"]      # the measurements that may be among them
# canaries = false        # whether a run may plant made-up records beside this site's, to audit what it promises
# approval = "always"     # each run waits for `cloister site approve`; "first": the first of its kind; "never"
"""
_TAIL = """
[models]                # refused whoever made them, before a run and in each round
parallel_rows = 8       # so many rows of a layer that measure the same thing copy records into the update
norm_ratio = 1000.0     # a row so many times as long as the middle one lets one record outweigh all others
widest = 16.0           # a layer of more than 1,024 units, so many times as wide as what it reads

[when]
# hours = ["Mon-Fri 18:00-06:00", "Sat-Sun 00:00-24:00"]   # always, where left out
# time_zone = "Europe/Berlin"

[limits]
# threads = 4           # that compute
# memory_mb = 8000      # MiB that the process may hold while it works on a message
gpu = true              # whether a GPU may be used
runs = 1                # at once
idle_minutes = 15.0     # a run that nothing was heard of for so long is no longer under way
"""


def careful_policy(config: SiteConfig) -> str:
    """Return the policy's text for the data sets of ``config``."""
    tables = [
        _DATA.format(
            name=_key(name),
            dataset=json.dumps(name),
            task=json.dumps(table.task),
            hashed=table.task,
            version=json.dumps(__version__),
        )
        for name, table in config.data.items()
    ]
    return _HEAD + "".join(tables) + _TAIL


def _key(name: str) -> str:
    """Return a data set's name as a TOML key."""
    return name if name.replace("-", "").replace("_", "").isalnum() and name.isascii() else json.dumps(name)
