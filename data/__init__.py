"""Preparation of data, and the worlds that are made here. A package, so that no other of this name is found first."""
