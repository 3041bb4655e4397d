"""Functions that take a configuration and say what is wrong with it, or without effect in it."""
