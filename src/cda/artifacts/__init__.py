"""Artifacts that travel: what DVC holds of the runs, and how it comes and goes."""
