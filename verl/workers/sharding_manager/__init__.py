"""Moves weights from the sharded actor into the rollout engine."""
