"""Shared helpers: configuration, chat templates, text metrics, checkpoints. Nothing here imports ``verl.trainer``."""
