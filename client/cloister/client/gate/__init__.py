"""A site's gate: what its policy lets others do with its records, and a log of what left.

==================  ==========================================================================================
module              what it is
==================  ==========================================================================================
`gate`              `Gate` and `GatedApp`: every message passes here
`policy`, `hours`   ``policy.toml``
`judging`           what a policy says of a run; `weights`: which models copy records; `budget`: what it costs
`leaving`           what is in a reply
`site_log`          the log, signed and chained; `log_entry`, `log_state`, `log_verification`
`limits`            threads, memory, GPUs
`status`            what is going on, for an operator
`command`,          ``cloister site approve | deny | pause | resume | status | log``,
`policy_command`    ``cloister policy check | hash | init``
==================  ==========================================================================================
"""

from cloister.client.gate.gate import Admitted, Gate, GatedApp, open_gate, state_folder

__all__ = ["Admitted", "Gate", "GatedApp", "open_gate", "state_folder"]
