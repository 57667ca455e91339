"""What may leave a site, and proof of it.

Empty in this version: mechanisms, accounting, ledger, secure aggregation and audit estimators arrive with the next release.
"""
