"""The policy: its log-probabilities and its updates."""
