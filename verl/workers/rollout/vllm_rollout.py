"""Samples responses with vLLM, one engine per group of tensor-parallel ranks, inside the worker processes.

Every sample has its own seed, made from the run's seed, the step, the prompt's uid and the sample's number, so what is
drawn depends neither on batching nor on how many engines share the work. How weights get here is the sharding
manager's business.
"""

import hashlib
import logging
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ...config.worker import ADAPTER_RANKS, RolloutConfig
from ...models.loading import plain_name
from ...protocol import DataProto
from ...utils import vllm_env
from ...utils.errors import ConfigError

logger = logging.getLogger(__name__)

OVER_NCCL = {"disable_custom_all_reduce": True, "compilation_config": {"pass_config": {"fuse_allreduce_rms": False}}}
"""vLLM's own all-reduces open each other's GPU memory by its rank on the machine; Ray shows each rank one GPU"""

CPU_BLOCK_TOKENS = 32
"""tokens of a block of the KV cache on CPUs: the smallest that vLLM's kernels like; 128 by itself. Samples of a group
share the full blocks of their prompt"""
GROUP_SCHEDULER_FITS = ("0.32.",)
"""versions of vLLM that ``group_scheduler`` was written against"""


def sample_seed(run_seed: int, step: int, uid: str, number: int) -> int:
    """The seed of one sample: 63 bits of a hash, the same on every machine."""
    text = f"{run_seed}/{step}/{uid}/{number}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


class VLLMRollout:
    """One vLLM engine.

    Args:
        model_path: Hugging Face folder; only its configuration and tokenizer are read, the weights come later.
        max_model_len: tokens of the longest sequence.
        max_num_seqs: sequences the engine works on at once.
        adapter_rank: rank of the LoRA adapters that the engine keeps beside the weights; 0: it takes merged weights.
    """

    def __init__(
        self,
        config: RolloutConfig,
        *,
        model_path: str,
        tokenizer_path: str,
        pad_token_id: int,
        eos_token_ids: list[int],
        max_model_len: int,
        max_num_seqs: int,
        trust_remote_code: bool,
        hf_overrides: dict[str, Any],
        adapter_rank: int = 0,
    ) -> None:
        self.config = config
        self.pad_token_id = pad_token_id
        self.eos_token_ids = eos_token_ids
        self.on_gpu = vllm_env.has_accelerator()
        self.takes_adapters, self.adapter, self.adapters = adapter_rank > 0, None, 0
        vllm = vllm_env.load()
        if self.takes_adapters:
            vllm_env.load_through_adapters()
        shares_memory = not self.on_gpu and config.tensor_parallel_size > 1
        if shares_memory:
            vllm_env.name_cpu_shared_memory(run := f"rule{os.environ['MASTER_PORT']}")
        try:
            self.llm = vllm.LLM(
                model=model_path,
                tokenizer=tokenizer_path,
                max_model_len=max_model_len,
                max_num_seqs=max_num_seqs,
                max_num_batched_tokens=max(config.max_num_batched_tokens, max_model_len),
                trust_remote_code=trust_remote_code,
                hf_overrides=hf_overrides,
                **_engine_options(config, adapter_rank, on_gpu=self.on_gpu),
            )
        except ValueError as error:  # pydantic's among them, which Ray cannot send
            reason = vllm_env.refusal(error)
            fix = "; set worker.rollout.lora_weights=merged" if "LoRA" in reason else ""
            raise ConfigError(f"worker.actor.model.model_path={model_path}: vLLM refuses it: {reason}{fix}") from error
        self.llm.apply_model(vllm_env.take_classes_apart)
        if not self.on_gpu:
            self.llm.collective_rpc(vllm_env.count_no_ranks)
        if shares_memory:
            vllm_env.drop_cpu_shared_memory(run)
        if self.on_gpu and not self.llm.llm_engine.vllm_config.use_v2_model_runner:
            logger.warning(
                "vLLM runs its V1 model runner, which samples every seeded request with kernels of its own, some "
                "milliseconds a step; unset VLLM_USE_V2_MODEL_RUNNER, unless this model needs it"
            )
        [names] = self.llm.apply_model(_note_what_is_loaded)
        self.kept: set[str] = names
        """parameters that the engine keeps as it is sent them, as far as it has shown yet"""
        self.sent_before = self.has_weights = False

    def load_weights(self, named_tensors: Iterable[tuple[str, torch.Tensor]]) -> list[str]:
        """Replace the engine's weights, and forget what it cached under the old ones. Consumes the iterator whole.

        Returns:
            the engine's parameters that were given no value.
        """
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(named_tensors)})
        if not self.on_gpu:
            self.llm.apply_model(vllm_env.repack_head)
        self.llm.reset_prefix_cache()
        self.has_weights = True
        [missing] = self.llm.apply_model(_not_loaded)
        return missing

    def different(self, sent: Mapping[str, torch.Tensor]) -> list[str]:
        """Names of the weights whose digest is not the one in ``sent``, which has names in ``kept``.

        At the first call these are the weights that the engine fuses, cuts or packs; they are not compared again.
        """
        [mine] = self.llm.apply_model(lambda model: _digests(model, sent.keys()))
        table = torch.stack([torch.stack([sent[name], mine[name]]) for name in sent]).tolist() if sent else []
        other = [name for name, (wanted, found) in zip(sent, table, strict=True) if wanted != found]
        if self.sent_before:
            return other
        self.kept, self.sent_before = set(sent) - set(other), True
        return []

    def load_adapter(self, config: Any, tensors: dict[str, torch.Tensor]) -> None:
        """Replace the engine's adapter.

        Args:
            config: its peft.LoraConfig.
            tensors: by PEFT's names. vLLM reads adapters from a folder, so they take the way over one.
        """
        from vllm.lora.request import LoRARequest

        if self.adapter is not None:
            self.llm.llm_engine.remove_lora(self.adapter.lora_int_id)
        self.adapters += 1  # a number of its own for each, so that no older one can answer to it
        with tempfile.TemporaryDirectory(prefix="adapter-") as folder:
            config.save_pretrained(folder)
            save_file(
                {name: tensor.contiguous() for name, tensor in tensors.items()},
                Path(folder) / "adapter_model.safetensors",
            )
            self.adapter = LoRARequest("policy", self.adapters, folder)
            self.llm.llm_engine.add_lora(self.adapter)
        self.llm.reset_prefix_cache()

    def sleep(self) -> None:
        """Give the engine's GPU memory back until ``wake_up``, which finds no weights in it. On CPU it is none."""
        if self.on_gpu:
            try:
                self.llm.sleep(level=2)
            except AssertionError as error:  # it measures what has become free, and has done its work by then
                raise RuntimeError(
                    f"vLLM: {error} Another process takes memory of this GPU; give the run one of its own "
                    "(CUDA_VISIBLE_DEVICES)"
                ) from error
            self.has_weights = False

    def wake_up(self, tag: str) -> None:
        """Take GPU memory again for ``weights`` or for the ``kv_cache``."""
        if self.on_gpu:
            torch.cuda.empty_cache()  # the engine takes its memory from the driver, not from what torch has cached
            self.llm.wake_up(tags=[tag])

    def teacher_forced_log_probs(self, token_ids: list[int]) -> torch.Tensor:
        """(len(token_ids) - 1,) log-probability of each token after the first, as the engine sees it now."""
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        prompt = {"prompt_token_ids": token_ids}
        [output] = self.llm.generate([prompt], params, use_tqdm=False, lora_request=self.adapter)
        pairs = zip(token_ids[1:], output.prompt_logprobs[1:], strict=True)
        return torch.tensor([step[token].logprob for token, step in pairs])

    def generate(
        self,
        prompts: DataProto,
        *,
        n: int,
        temperature: float,
        top_p: float,
        top_k: int,
        response_length: int,
        step: int,
    ) -> DataProto:
        """Sample ``n`` responses to each of P prompts.

        Args:
            prompts: ``input_ids``, ``attention_mask``, ``position_ids`` (P, S), and ``raw_prompt_ids`` and ``uid``.
            response_length: T, the width of the responses.

        Returns:
            B = P * n rows, the samples of a prompt side by side: ``prompts`` (B, S), ``responses``, ``response_mask``,
            ``rollout_log_probs`` (B, T), ``input_ids``, ``attention_mask``, ``position_ids`` (B, S + T).
        """
        from vllm import SamplingParams

        stops = [] if self.config.ignore_eos else self.eos_token_ids  # vLLM ignores its own EOS only
        requests, params = [], []
        for ids, uid in zip(prompts.non_tensor_batch["raw_prompt_ids"], prompts.non_tensor_batch["uid"], strict=True):
            for number in range(n):
                requests.append({"prompt_token_ids": ids})
                params.append(
                    SamplingParams(
                        temperature=temperature,
                        top_p=top_p,
                        top_k=top_k,
                        max_tokens=response_length,
                        logprobs=0,
                        flat_logprobs=True,
                        seed=sample_seed(self.config.seed, step, uid, number),
                        ignore_eos=self.config.ignore_eos,
                        stop_token_ids=stops,
                        detokenize=False,
                    )
                )
        show = not self.config.disable_tqdm and os.environ.get("RANK", "0") == "0" and len(requests) > 4096
        outputs = self.llm.generate(requests, params, use_tqdm=show, lora_request=self.adapter)
        completions = [output.outputs[0] for output in outputs]
        token_ids = [list(completion.token_ids) for completion in completions]
        log_probs = [completion.logprobs.logprobs for completion in completions]  # of the sampled tokens, and no others
        return assemble(prompts, token_ids, log_probs, n=n, width=response_length, pad_token_id=self.pad_token_id)


def _engine_options(config: RolloutConfig, adapter_rank: int, *, on_gpu: bool) -> dict[str, Any]:
    """What vLLM is told by the settings and the device. Sets what it reads from the environment, too."""
    from ...models.build import resolve_dtype

    options: dict[str, Any] = {
        "load_format": "dummy",
        "dtype": str(resolve_dtype(config.dtype)).removeprefix("torch."),
        "tensor_parallel_size": config.tensor_parallel_size,
        "distributed_executor_backend": "external_launcher",
        "enforce_eager": config.enforce_eager or not on_gpu,
        "enable_sleep_mode": on_gpu,
        "disable_log_stats": config.disable_log_stats,
        "logprobs_mode": "processed_logprobs",
        "seed": config.seed,
    }
    if config.enable_chunked_prefill is not None:
        options["enable_chunked_prefill"] = config.enable_chunked_prefill
    if adapter_rank:
        room = next(rank for rank in ADAPTER_RANKS if rank >= adapter_rank)
        options |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": room}
    if on_gpu:
        options["gpu_memory_utilization"] = config.gpu_memory_utilization
    else:
        # Behind a part of a prompt vLLM takes the seeds' generators back a token, which those of CPUs cannot do.
        options |= {"block_size": CPU_BLOCK_TOKENS, "scheduler_cls": _scheduler(), "enable_chunked_prefill": False}
    if on_gpu and config.tensor_parallel_size > 1:
        os.environ["VLLM_ALLREDUCE_USE_SYMM_MEM"] = "0"
        options |= OVER_NCCL
    return options


def _scheduler() -> type | None:
    """The scheduler for groups on CPUs; None, vLLM's own, where the installed vLLM is another than it extends."""
    import vllm

    if not vllm.__version__.startswith(GROUP_SCHEDULER_FITS):
        return None
    from .group_scheduler import GroupScheduler

    return GroupScheduler


def digest(tensor: torch.Tensor) -> torch.Tensor:
    """One int64, on the tensor's device, that changes with (nearly) any of its bits: sums of its rows' bit patterns,
    each weighted by the row's place, so that changes of opposite sign do not cancel.

    Rows are read in words of 64 bits where they are made of such: a sum of smaller ones copies the tensor first.
    """
    rows = tensor.detach().flatten(1) if tensor.dim() > 1 else tensor.detach().reshape(-1, 1)
    size = rows.element_size()
    whole = rows.shape[1] * size % 8 == 0
    if not rows.is_contiguous() or whole and rows.storage_offset() * size % 8:
        rows = rows.clone(memory_format=torch.contiguous_format)
    bits = rows.view(torch.int64 if whole else {1: torch.int8, 2: torch.int16, 4: torch.int32}[size])
    sums = bits.sum(1, dtype=torch.int64)
    return (sums * torch.arange(1, len(sums) + 1, device=sums.device)).sum()


def _note_what_is_loaded(model: torch.nn.Module) -> set[str]:
    """Let the model keep what its ``load_weights`` says it loaded; returns the names of all its parameters."""
    vllm_env.note_what_is_loaded(model)
    return set(_parameters(model))


def _not_loaded(model: torch.nn.Module) -> list[str]:
    """Parameters that the last load left out; none where the model does not tell what it loads."""
    loaded = model.last_loaded
    return [] if loaded is None else [name for name in _parameters(model) if name not in loaded]


def _digests(model: torch.nn.Module, names: Iterable[str]) -> dict[str, torch.Tensor]:
    mine = _parameters(model)
    return {name: digest(mine[name]) for name in names}


def _parameters(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The engine's parameters, by the names that they have without adapters around them."""
    return {plain_name(name): parameter for name, parameter in model.named_parameters()}


def assemble(
    prompts: DataProto,
    token_ids: list[list[int]],
    log_probs: list[list[float]],
    *,
    n: int,
    width: int,
    pad_token_id: int,
) -> DataProto:
    """Responses of different lengths as the batch that the trainer works on; shapes as in ``VLLMRollout.generate``."""
    size = len(token_ids)
    lengths = torch.tensor([len(ids) for ids in token_ids])
    mask = torch.arange(width) < lengths[:, None]
    responses = torch.full((size, width), pad_token_id, dtype=torch.int64)
    responses[mask] = torch.tensor([token for ids in token_ids for token in ids], dtype=torch.int64)
    rollout_log_probs = torch.zeros(size, width)
    rollout_log_probs[mask] = torch.tensor([value for values in log_probs for value in values])
    prompt_ids, prompt_mask, prompt_positions = (
        prompts.batch[key].repeat_interleave(n, dim=0) for key in ("input_ids", "attention_mask", "position_ids")
    )
    next_positions = prompt_positions[:, -1:] + torch.arange(1, width + 1)
    return DataProto.from_dict(
        {
            "prompts": prompt_ids,
            "responses": responses,
            "input_ids": torch.cat([prompt_ids, responses], dim=1),
            "attention_mask": torch.cat([prompt_mask, mask.to(prompt_mask.dtype)], dim=1),
            "position_ids": torch.cat([prompt_positions, next_positions], dim=1),
            "response_mask": mask.to(torch.int64),
            "rollout_log_probs": rollout_log_probs,
        }
    )
