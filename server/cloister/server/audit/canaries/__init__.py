"""The coordinator's side of an audit with canaries: what it sees of them, how coins are sealed and opened, and the page.

Used by a run whose federation file plants canaries (``audit.canaries``), simulated or deployed, and by the audited runs of `cloister audit privacy`.
"""
