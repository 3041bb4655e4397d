"""Rows to train on, to ask or to prepare: where they come from and what their columns may hold. Not their tokens."""
