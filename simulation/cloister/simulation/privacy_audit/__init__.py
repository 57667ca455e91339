"""Privacy-budget audits of the real pipeline: canaries planted in a run of their own, and what an adversary makes of it.

An audit is a run like any other: the same federation file, the same client, server and mechanisms. Only the model has one layer more, which nobody's records
use, and one site (or many, where sites are the unit) holds canaries beside its records.
"""
