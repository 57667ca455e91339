"""The audit of a released model: checks of what it is, how it behaves, and whom it belongs to.

Each module has one check (`cloister.core.evidence`): a function of an `AuditSubject` that returns a `Finding`.
"""
