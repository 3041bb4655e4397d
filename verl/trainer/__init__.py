"""The driver: the training loop, its data and its command. What a rank does is ``workers``'."""
