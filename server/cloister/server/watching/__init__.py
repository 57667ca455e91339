"""Watching a run: a read-only page on this machine that follows a run folder while it grows (``cloister watch``)."""
