"""RULE's trainer. The package is called ``verl`` like EasyR1's, and shadows the PyPI package of that name."""

from .utils.environment import set_defaults

__version__ = "0.1.0"

# Read when torch is first imported, by this process and by those it starts: threads that spin while they wait starve
# the other ranks of a small machine, and made steps on busy cores up to twenty times slower.
set_defaults(OMP_WAIT_POLICY="PASSIVE")
