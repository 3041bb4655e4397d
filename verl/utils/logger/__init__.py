"""Where a run's numbers and dialogues go. What they are is the trainer's business."""

from .logger import LOGGERS, Tracker, available, read_metrics

__all__ = ["LOGGERS", "Tracker", "available", "read_metrics"]
