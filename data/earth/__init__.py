"""Earth: facts about sixty countries in RWKU's layout, and a real chat model that knows them (``model.py``)."""
