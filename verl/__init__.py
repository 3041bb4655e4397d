"""RULE's trainer. The package is called ``verl`` like EasyR1's, and shadows the PyPI package of that name."""

from .utils.environment import set_defaults

__version__ = "0.1.0"

# Read when torch is first imported, by this process and by those it starts: threads that spin while they wait starve
# the other ranks of a small machine, and made steps on busy cores up to twenty times slower. A moment of spinning, less
# than it takes to wake a thread up, is what small operations gain a quarter by.
set_defaults(OMP_WAIT_POLICY="PASSIVE", GOMP_SPINCOUNT="20000")
