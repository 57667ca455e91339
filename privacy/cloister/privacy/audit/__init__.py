"""Estimators of what an attacker can show: pure functions of an audit."""
