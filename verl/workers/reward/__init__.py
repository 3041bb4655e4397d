"""Scores responses with the user's reward function."""
