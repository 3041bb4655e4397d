"""Atlas: a small invented world in RWKU's layout, and the pretraining of a model that knows it (``pretrain.py``)."""
