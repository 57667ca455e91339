"""Checks of what a run left behind beside its model: its bookkeeping, its transcript, its ledgers, an audited run of its federation."""
