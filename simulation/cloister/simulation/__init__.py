"""A federation on one machine: engines, partitions, baselines."""
