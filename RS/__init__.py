"""Rejection Steering, RULE's first stage, and the unlearning baselines: supervised, by torchrun, without Ray."""
