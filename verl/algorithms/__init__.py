"""Advantages, losses, KL and replay: functions of tensors. They know no worker, no model and no file."""
