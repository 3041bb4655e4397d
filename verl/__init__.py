"""RULE's trainer. The package is called ``verl`` like EasyR1's, and shadows the PyPI package of that name."""

__version__ = "0.1.0"
