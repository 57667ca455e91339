"""Audits of what a run shows: pure functions over its folder, each with evidence, a verdict and its power."""
