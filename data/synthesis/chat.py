"""The writing model: an OpenAI-compatible endpoint, or a local model through vLLM, behind one method."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from verl.eval.endpoint import AnswerCache, EndpointStats, Messages, request_key
from verl.eval.generation import Request
from verl.utils.chat import encode_prompt

CHUNK = 256
"""Conversations that a local model answers between two writes to the cache; what a kill can lose."""


class Chat(Protocol):
    """What the stages need of a model; `verl.eval.endpoint.ChatEndpoint` is one."""

    model: str
    stats: EndpointStats

    def ask_all(self, conversations: list[Messages], *, desc: str) -> list[str | None]:
        """One answer per conversation, in order; None where there was none. Equal conversations are asked once."""
        ...


class LocalChat:
    """A `verl.eval.generation.Generator` as a chat model whose answers are kept on disk.

    Args:
        make_generator: called at the first request that the cache cannot answer, so that a finished run loads no model.
    """

    def __init__(
        self,
        model: str,
        make_generator: Callable[[], Any],
        *,
        cache: str | Path,
        max_tokens: int,
        temperature: float,
    ) -> None:
        self.model = model
        self.sampling = {"max_tokens": max_tokens, "temperature": temperature}
        self.stats = EndpointStats()
        self._make_generator = make_generator
        self._cache = AnswerCache(cache)

    def ask_all(self, conversations: list[Messages], *, desc: str) -> list[str | None]:
        keys = [request_key(self.model, self.sampling, messages, tag=0) for messages in conversations]
        self.stats.cached += sum(key in self._cache for key in keys)
        todo = {key: m for key, m in zip(keys, conversations, strict=True) if key not in self._cache}
        waiting = list(todo.items())
        for start in range(0, len(waiting), CHUNK):
            part = f"{desc} {start // CHUNK + 1}/{-(-len(waiting) // CHUNK)}"
            self._answer(waiting[start : start + CHUNK], part)
        return [self._cache.get(key) for key in keys]

    def _answer(self, waiting: list[tuple[str, Messages]], desc: str) -> None:
        generator = self._make_generator()
        prompts = [encode_prompt(generator.tokenizer, messages) for _, messages in waiting]
        request = Request(prompts, self.sampling["max_tokens"], desc, self.sampling["temperature"])
        [(_, answers)] = generator.answer([request])
        for (key, _), answer in zip(waiting, answers, strict=True):
            self._cache.put(key, self.model, answer)
        self.stats.asked += len(waiting)
