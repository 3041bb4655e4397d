"""Tests, what they share, and the check of a GPU machine. A package, so that no other of this name is found first."""
