"""vLLM's scheduler at work without a model: a KV cache that holds token ids shows what a request would attend to.

Needs vLLM, so only tests that have imported it anyway use this.
"""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

BLOCK = 32


@dataclass
class Load:
    """Prompts that are sampled ``n`` times each, and the limits of the engine that samples them."""

    prompts: Sequence[list[int]]
    n: int
    max_tokens: int
    stops: list[int]
    max_seqs: int
    tokens_a_step: int
    blocks: int


def random_load(generator: random.Random) -> Load:
    """Prompts on both sides of a block's end, some of them twice, in engines with too little room or with plenty."""
    lengths = [generator.choice([1, 2, 12, 31, 32, 33, 38, 60]) for _ in range(generator.randint(1, 6))]
    prompts = [[generator.randrange(50, 99) for _ in range(length)] for length in lengths]
    return Load(
        prompts=[*prompts, prompts[0]] if generator.random() < 0.3 else prompts,
        n=generator.randint(1, 8),
        max_tokens=generator.choice([1, 2, 12, 16]),
        stops=generator.choice([[], [5, 7, 9]]),
        max_seqs=generator.choice([2, 5, 64]),
        tokens_a_step=generator.choice([80, 512]),  # 80 hold any request whole
        blocks=generator.choice([8, 20, 400]),  # 8 make requests give way to others
    )


class Simulation:
    """One load in one scheduler; ``run`` returns each request's tokens, log-probabilities and reasons to end."""

    def __init__(self, config: Any, load: Load, *, plain: bool) -> None:
        """``plain``: with what ``GroupScheduler`` adds; otherwise vLLM's own way."""
        import torch
        from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
        from vllm.v1.structured_output import StructuredOutputManager

        from verl.workers.rollout.group_scheduler import GroupScheduler

        spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=8, dtype=torch.float32)
        cache = KVCacheConfig(
            num_blocks=load.blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)]
        )
        before, config.cache_config.num_gpu_blocks = config.cache_config.num_gpu_blocks, load.blocks
        self.scheduler = GroupScheduler(config, cache, StructuredOutputManager(config), BLOCK, log_stats=False)
        config.cache_config.num_gpu_blocks = before
        limits = dict.fromkeys(("max_num_running_reqs", "max_num_active_reqs"), load.max_seqs)
        vars(self.scheduler).update(limits, plain=plain, max_num_scheduled_tokens=load.tokens_a_step)
        self.load, self.computed = load, 0
        self.cache = np.full((load.blocks, BLOCK), -1)
        self.table: dict[str, list[int]] = {}
        self.known: dict[str, list[int]] = {}
        self.found: dict[str, tuple[list[int], list[float], list[Any]]] = defaultdict(lambda: ([], [], []))

    def run(self) -> dict[str, tuple[list[int], list[float], list[Any]]]:
        self._add_requests()
        while self.scheduler.has_unfinished_requests():
            step = self.scheduler.schedule()
            self.computed += step.total_num_scheduled_tokens
            for outputs in self.scheduler.update_from_output(step, self._model(step)).values():
                for one in outputs.outputs:
                    tokens, values, reasons = self.found[one.request_id]
                    tokens += one.new_token_ids
                    values += one.new_logprobs.logprobs[:, 0].tolist()
                    reasons += [one.finish_reason] if one.finish_reason is not None else []
        assert self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks() == self.load.blocks - 1
        return dict(self.found)

    def _add_requests(self) -> None:
        from vllm.sampling_params import RequestOutputKind, SamplingParams
        from vllm.utils.hashing import sha256
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
        from vllm.v1.request import Request

        init_none_hash(sha256)
        hasher = get_request_block_hasher(BLOCK, sha256)
        for number, prompt in enumerate(self.load.prompts):
            for sample in range(self.load.n):
                params = SamplingParams(
                    max_tokens=self.load.max_tokens,
                    logprobs=0,
                    stop_token_ids=self.load.stops,
                    detokenize=False,
                    output_kind=RequestOutputKind.FINAL_ONLY,
                )
                name = f"{number}-{sample}"
                self.known[name] = list(prompt)
                self.scheduler.add_request(Request(name, list(prompt), params, None, block_hasher=hasher))

    def _model(self, step: Any) -> Any:
        """Writes the step's tokens into the cache, checks what every request sees there, and samples."""
        from vllm.v1.outputs import LogprobsLists, ModelRunnerOutput

        for copy in step.kv_cache_block_copies or []:
            self.cache[copy.dst_block_id] = self.cache[copy.src_block_id]
        starts = self._note_blocks(step)
        ends = {name: starts[name] + count for name, count in step.num_scheduled_tokens.items()}
        for name, end in ends.items():
            for place in range(starts[name], end):
                self.cache[self._slot(name, place)] = self.known[name][place]
        tokens, values = [], np.zeros((len(ends), 1))
        for row, (name, end) in enumerate(ends.items()):
            assert [self.cache[self._slot(name, place)] for place in range(end)] == self.known[name][:end]
            sampled = [random.Random(f"{name}/{end}").randrange(3, 50)] if end == len(self.known[name]) else []
            self.known[name] += sampled
            tokens.append(sampled)
            values[row] = end
        return ModelRunnerOutput(
            req_ids=list(ends),
            req_id_to_index={name: row for row, name in enumerate(ends)},
            sampled_token_ids=tokens,
            logprobs=LogprobsLists(np.zeros_like(values), values, np.zeros(len(ends))),
            prompt_logprobs_dict={},
            pooler_output=[],
        )

    def _note_blocks(self, step: Any) -> dict[str, int]:
        """Every request's blocks; returns how many tokens each has computed before this step."""
        self.table |= {one.req_id: list(one.block_ids[0]) for one in step.scheduled_new_reqs}
        again = step.scheduled_cached_reqs
        for name, blocks in zip(again.req_ids, again.new_block_ids, strict=True):
            if blocks is not None:
                self.table[name] = [*([] if name in again.resumed_req_ids else self.table[name]), *blocks[0]]
        starts = {one.req_id: one.num_computed_tokens for one in step.scheduled_new_reqs}
        return starts | dict(zip(again.req_ids, again.num_computed_tokens, strict=True))

    def _slot(self, name: str, place: int) -> tuple[int, int]:
        return self.table[name][place // BLOCK], place % BLOCK
