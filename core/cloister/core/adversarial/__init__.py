"""Adversaries that move a record a little: what they may do (`threat`), how they do it (`attacks`), what is trained on (`objectives`).

Pure functions of torch, used by a site that trains and by whoever evaluates a model. They stand in core because client and server,
which never import each other, both need them, and because they say nothing of privacy or of aggregation.
"""
