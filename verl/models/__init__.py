"""What works on a module: building, sharding, attention, packing, optimisers, saving. Not what it learns."""
