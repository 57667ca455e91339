"""A sweep: one federation file run at every point of a grid, and what the points say together.

`grid` turns ``--over`` into checked points, `folder` keeps them, `running` runs those that are left, `figures` and `composing`
say what came of them (and what all of them together cost each site), `page` shows it.
"""
