"""A site's gate: what its policy lets others do with its records, and a log of what left.

==================  ==========================================================================================
module              what it is
==================  ==========================================================================================
`gated_app`         `GatedApp`: a ClientApp behind a gate
`gate`              `Gate`: what may pass, and what may leave
`policy`, `hours`   ``policy.toml``; `in_force`: as it is at this moment
`decision`          what a site decides of a run: `judging` asks its policy, `weights` its model, `budget` its ledger
`case`, `program`   what can be asked of a run
`leaving`           what is in a reply
`site_log`          the log, signed and chained; `log_entry`, `log_state`, `log_verification`
`limits`            threads, memory, GPUs
`status`            what is going on, for an operator
`showing`           the same, and the log, as text
==================  ==========================================================================================

``cloister site approve | deny | pause | resume | status | log`` are in `cloister.client.officer_command`, ``cloister policy check | hash | init``
in `cloister.client.policy_command`: beside this package, so that ``cloister --help`` need not load torch. Nothing is imported here either: who reads a
site's log need not wait for what trains.
"""
