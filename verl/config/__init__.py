"""The dataclasses of a run, and their checks. Those that need files or models are ``trainer.preflight``'s."""
