"""Text generation for the evaluator: every row of every table comes through ``VLLMGenerator`` with the same decoding.

Leaves out sampling seeds per request and log-probs, which the trainer's own rollout has.
"""

import gc
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tqdm.auto import tqdm

from verl.models.model_config import max_positions
from verl.utils.chat import stop_token_ids
from verl.utils.errors import ConfigError, DataError
from verl.utils.tokenizer import get_tokenizer

logger = logging.getLogger(__name__)

DEFAULT_MAX_MODEL_LEN = 8192
"""Tokens of prompt and answer together, where neither the caller nor the model asks for less. Long enough for every
prompt of RWKU and MUSE, and short enough that the KV cache of a 128k-token model need not hold one such sequence."""


EXPERTS = {"num_experts", "num_local_experts", "n_routed_experts"}
"""Entries of the config.json of a mixture of experts"""


@dataclass(frozen=True)
class Request:
    """What a part asks."""

    prompt_ids: Sequence[list[int]]
    max_new_tokens: int
    desc: str
    """for logs: the part's name"""
    temperature: float = 0.0


class Generator(Protocol):
    """Anything that answers prompts: vLLM here, a script in tests."""

    tokenizer: Any
    truncated: int
    """prompts that lost tokens from their left, so far"""

    def answer(self, requests: Sequence[Request]) -> Iterator[tuple[int, list[str]]]:
        """The number of each request with one answer per prompt, in order and without special tokens, as soon as all of
        its answers are there."""
        ...


class VLLMGenerator:
    """A vLLM engine over one checkpoint, on CUDA or on CPU, greedy unless told otherwise.

    Prompts that leave no room for the answer lose tokens from their left; ``truncated`` counts them, so that a report
    can say so.
    """

    def __init__(
        self,
        model: str,
        *,
        dtype: str = "auto",
        max_model_len: int | None = None,
        tensor_parallel_size: int = 1,
        gpu_memory_utilization: float = 0.6,
        quantization: str | None = None,
        trust_remote_code: bool = False,
    ):
        from verl.utils import vllm_env

        vllm = vllm_env.load()
        import torch.distributed
        from transformers import AutoConfig

        self._take_tokenizer(model, trust_remote_code)
        model_config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
        limits = (max_model_len or DEFAULT_MAX_MODEL_LEN, max_positions(model_config))
        self.max_model_len = min(filter(None, limits))
        self.truncated = 0
        reloadable = quantization is None and tensor_parallel_size == 1
        self._kept = _all_but_weights(Path(model)) if reloadable else None
        self._own_process_group = not torch.distributed.is_initialized()
        try:
            with _heap_left_alone():
                self._engine: Any = vllm.LLM(
                    model=model,
                    dtype=resolve_dtype(dtype),
                    seed=0,
                    max_model_len=self.max_model_len,
                    tensor_parallel_size=tensor_parallel_size,
                    gpu_memory_utilization=gpu_memory_utilization,
                    quantization=quantization,
                    trust_remote_code=trust_remote_code,
                    enforce_eager=True,  # to compile takes longer than the few hundred steps of all probes together
                    disable_log_stats=True,
                )
        except ValueError as error:  # pydantic's among them, with all that it was given
            raise ConfigError(f"model={model}: vLLM refuses it: {vllm_env.refusal(error)}") from error
        self._engine.apply_model(vllm_env.take_classes_apart)
        self._engine.apply_model(vllm_env.note_what_is_loaded)

    def answer(self, requests: Sequence[Request]) -> Iterator[tuple[int, list[str]]]:
        """See ``Generator``. All prompts of all requests go to the engine at once: a step of a small model costs the
        same for one prompt as for fifty.

        Raises:
            DataError: if ``max_new_tokens`` leaves no room for a prompt.
        """
        engine, cut = self._engine.llm_engine, [self._add(number, request) for number, request in enumerate(requests)]
        texts = [[""] * len(request.prompt_ids) for request in requests]
        left = [len(request.prompt_ids) for request in requests]
        yield from ((number, []) for number, count in enumerate(left) if not count)
        with tqdm(total=sum(left), desc=", ".join(request.desc for request in requests), unit="prompt") as bar:
            while engine.has_unfinished_requests():
                for output in engine.step():  # only what has ended
                    number, place = map(int, output.request_id.split("/"))
                    texts[number][place] = output.outputs[0].text
                    left[number] -= 1
                    bar.update()
                    if not left[number]:
                        self.truncated += cut[number]
                        yield number, texts[number]

    def _add(self, number: int, request: Request) -> int:
        """Hand a request's prompts to the engine; returns how many lost tokens."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        room = self.max_model_len - request.max_new_tokens
        if room < 1:
            raise DataError(
                f"{request.desc}: {request.max_new_tokens} new tokens do not fit the model's {self.max_model_len} "
                "positions; evaluate a model with a longer context, or leave this part out"
            )
        params = SamplingParams(
            temperature=request.temperature,
            seed=0,
            max_tokens=request.max_new_tokens,
            stop_token_ids=self._ends,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        fitted = [fit_left(ids, room, self.tokenizer.bos_token_id) for ids in request.prompt_ids]
        for place, ids in enumerate(fitted):
            self._engine.llm_engine.add_request(f"{number}/{place}", {"prompt_token_ids": ids}, params)
        cut = sum(len(ids) < len(whole) for ids, whole in zip(fitted, request.prompt_ids, strict=True))
        if cut:
            logger.warning("%s: %d prompts of more than %d tokens lose tokens from their left", request.desc, cut, room)
        return cut

    def load(self, model: str) -> bool:
        """Take over the weights of another checkpoint folder, which costs a fraction of a new engine.

        Returns:
            False, where the engine must not be used for it: the folder differs in more than its weights, the engine
            quantises its weights or splits them over devices, or it does not prove that it holds the new ones.
        """
        from verl.utils import vllm_env

        from . import exchange

        if self._kept is None or _all_but_weights(Path(model)) != self._kept:
            return False
        before, wanted = self._rows, exchange.first_rows(Path(model))
        [kept] = self._engine.apply_model(lambda module: exchange.held(module, before))
        self._engine.collective_rpc("reload_weights", kwargs={"weights_path": model})
        if not vllm_env.has_accelerator():
            self._engine.apply_model(vllm_env.repack_head)
        self._engine.reset_prefix_cache()
        [stale] = self._engine.apply_model(
            lambda module: kept - exchange.held(module, wanted) | exchange.left_out(module)
        )
        if stale or not kept:
            names = ", ".join(sorted(stale)[:5]) or "it shows none of its weights as they came"
            logger.warning(
                "an engine does not prove that it holds the weights of %s (%s); a new one is started", model, names
            )
            return False
        self._take_tokenizer(model, self._trust_remote_code)
        return True

    def _take_tokenizer(self, model: str, trust_remote_code: bool) -> None:
        from . import exchange

        # What of the weights proves the next change of them is kept, since the folder may be gone by then.
        self._rows, self._trust_remote_code = exchange.first_rows(Path(model)), trust_remote_code
        self.tokenizer = get_tokenizer(model, trust_remote_code=trust_remote_code)
        self._ends = stop_token_ids(self.tokenizer, model)

    def close(self) -> None:
        """End the engine and the process group that it opened; a group that was there before stays."""
        import torch
        from vllm.distributed.parallel_state import destroy_distributed_environment, destroy_model_parallel

        if self._engine is None:
            return
        with _heap_left_alone():
            self._engine.llm_engine.engine_core.shutdown()
        self._engine = None
        destroy_model_parallel()
        if self._own_process_group:
            destroy_distributed_environment()
        gc.collect()
        gc.freeze()  # what is left are modules, which would be looked through once more when the process ends
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@contextmanager
def _heap_left_alone() -> Iterator[None]:
    """Keep vLLM from freezing all objects when an engine is up, and from thawing all when it ends: the collections that
    follow would look through what its import made, a million objects, which ``vllm_env.load`` has frozen for good."""
    plain = gc.freeze, gc.unfreeze
    gc.freeze = gc.unfreeze = lambda: None
    try:
        yield
    finally:
        gc.freeze, gc.unfreeze = plain


def resolve_dtype(dtype: str) -> str:
    """The arithmetic behind ``auto``: bfloat16 on a GPU and float32 without one, whatever the checkpoint was saved in.

    Following the checkpoint would decode a base model in bfloat16 and the run trained from it in float32.
    """
    from verl.utils import vllm_env

    if dtype != "auto":
        return dtype
    return "bfloat16" if vllm_env.has_accelerator() else "float32"


def _all_but_weights(folder: Path) -> Any:
    """What an engine keeps when its weights are replaced: the architecture, the vocabulary, where answers end.

    None where this cannot be read off the folder, and for mixtures of experts: of some (GPT-OSS) a reload keeps the old
    experts, in silence. Chat templates do not count: they are applied before the engine.
    """
    found = {}
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        path = folder / name
        try:
            found[name] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except ValueError:  # which neither transformers nor vLLM minds in generation_config.json
            return None
    if not (found["config.json"] and found["tokenizer.json"]):
        return None
    if not EXPERTS.isdisjoint(found["config.json"] | (found["config.json"].get("text_config") or {})):
        return None
    # Who saved a folder, and how its batches were padded, changes nothing; dtype is set by the engine.
    for ignored in ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache"):
        found["config.json"].pop(ignored, None)
    for ignored in ("padding", "truncation"):
        found["tokenizer.json"].pop(ignored, None)
    found["eos"] = found.pop("generation_config.json").get("eos_token_id")
    return found


def fit_left(ids: list[int], room: int, bos_token_id: int | None) -> list[int]:
    """The last ``room`` tokens, behind BOS where ``ids`` began with it: a few-shot prompt loses its first examples."""
    if len(ids) <= room:
        return ids
    if room > 1 and ids[0] == bos_token_id:
        return [bos_token_id, *ids[-(room - 1) :]]
    return ids[-room:]
