"""What preparation and synthesis share: reading and writing data files, splits, and the checks that rows must pass."""
