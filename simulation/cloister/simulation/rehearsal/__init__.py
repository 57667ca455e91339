"""A rehearsal: one federation against every attack, under every rule that is to be compared, and the worst case of each.

`planning` makes a grid of a sweep (`cloister.simulation.sweep`) of it, which runs and resumes it; `judging` says what came of it; `page`
shows it.
"""
