"""Rounds in which the server sees sums only.

`masked` drives the sessions of `cloister.privacy.masking` over messages, `collecting` makes rounds and measurements of the sums, `manifests`
writes what each session is.
"""
