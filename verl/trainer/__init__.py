"""The driver: configuration, data, the training loop, advantages, metrics."""
