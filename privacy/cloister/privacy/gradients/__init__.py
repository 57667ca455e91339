"""Gradients of single records: layer by layer from one backward pass, or through Opacus' hooks."""
