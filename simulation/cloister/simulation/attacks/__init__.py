"""Lying sites of a simulation: what they know, and what they make of it.

====================  =============================  ==================================================================
where it acts         attacks                        module
====================  =============================  ==================================================================
on the site's data    label-flip, badnets, dba       `data`: the site then trains as an honest one would
on its update         sign-flip, ipm, alie, …        `crafting`, `optimising`, from all honest updates of the round
on both               constrain-and-scale, …         first the data, then the update
====================  =============================  ==================================================================

`grid` is the seam: a Flower grid that holds the lying sites' replies back until the honest ones are there. No site and no server has
code for an attack.
"""
