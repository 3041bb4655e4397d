"""The engines that parts are handed: one at a time, opened when first needed, kept while the next part can use it.

Several checkpoints of one architecture (base, RS, ReBO; the steps of a run) share one vLLM engine, which then takes
over their weights; starting an engine costs more than measuring a small model.
"""

from typing import Any, Literal

from .config import EvalConfig

Kind = Literal["generation", "likelihood"]


class Engines:
    """Opens, reuses and closes engines; use it as a context manager. Never are two in memory together."""

    def __init__(self) -> None:
        self._engine: Any = None
        self._settings: dict[str, Any] = {}
        self._model = ""

    def __enter__(self) -> "Engines":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def get(self, kind: Kind, model: str, config: EvalConfig) -> Any:
        """A ``generation.Generator`` or a ``likelihood.LikelihoodModel`` over the folder ``model``.

        What an earlier call returned must not be used any more.
        """
        settings = _settings(kind, config)
        if self._engine is None or settings != self._settings or not self._takes(kind, model):
            self.close()
            self._engine = _open_generator(model, settings) if kind == "generation" else _open_model(model, settings)
        self._settings, self._model = settings, model
        return self._engine

    def _takes(self, kind: Kind, model: str) -> bool:
        return model == self._model or (kind == "generation" and self._engine.load(model))

    def close(self) -> None:
        """Give the engine's memory back; safe at any moment."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()


def _settings(kind: Kind, config: EvalConfig) -> dict[str, Any]:
    keys = {
        "generation": "dtype max_model_len tensor_parallel_size gpu_memory_utilization quantization trust_remote_code",
        "likelihood": "dtype token_budget trust_remote_code",
    }
    return {key: getattr(config, key) for key in keys[kind].split()}


def _open_generator(model: str, settings: dict[str, Any]) -> Any:
    from .generation import VLLMGenerator

    return VLLMGenerator(model, **settings)


def _open_model(model: str, settings: dict[str, Any]) -> Any:
    from verl.utils.tokenizer import get_tokenizer

    from .likelihood import LikelihoodModel, load_model

    trust, budget = settings["trust_remote_code"], settings["token_budget"]
    loaded = load_model(model, dtype=settings["dtype"], trust_remote_code=trust)
    return LikelihoodModel(loaded, get_tokenizer(model, trust_remote_code=trust), budget)
