"""The coordinator: rounds, replies, checkpoints, events and the report."""
