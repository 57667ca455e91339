"""How a model stands an adversary: attacks, sweeps, corruptions, calibration, certificates, and alarms where a figure cannot be trusted."""
