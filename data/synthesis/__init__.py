"""Writes RS and RL training rows for a target with any language model; run by synthesize_boundary.py."""
