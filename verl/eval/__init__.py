"""One evaluator with one decoding for every row of a table: base, RS, ReBO and baselines alike.

Reads checkpoints; knows nothing of Ray workers. Start it with ``python3 -m verl.eval.main``.
"""
