"""vLLM's scheduler for groups of samples on CPUs: a prompt is computed once, and a decoded token costs little Python.

vLLM finds the prompts of a group in its prefix cache by whole blocks, which on CPUs hold 32 tokens or more, so that
short prompts share nothing. Here a group's first sample computes the prompt, and the others begin at the prompt's last
token with its keys and values: full blocks are shared, the last one is copied, by vLLM's own means for hits that end
inside a block. A step in which all requests decode is put together without vLLM's questions to each of them, and a
request's tokens are handed over at once when it ends.

It extends the inside of vLLM, so ``vllm_rollout`` takes it for the versions alone that it was written against. Models
with other caches than one of full attention are vLLM's own scheduler's. What is sampled is the same: seeds are the
requests'.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from vllm.sampling_params import RequestOutputKind
from vllm.v1.core.kv_cache_manager import KVCacheBlocks
from vllm.v1.core.sched.output import CachedRequestData, SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.core.sched.utils import check_stop, remove_all
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.outputs import LogprobsLists, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus


class GroupScheduler(Scheduler):
    """See the module docstring. ``plain`` is False where vLLM's own way is taken throughout."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        managers = self.kv_cache_manager.coordinator.single_type_managers
        beside = (self.connector, self.ec_connector, self.aux_output_connector, self.vllm_config.speculative_config)
        other_ways = (self.log_stats, self.use_pp, self.use_v2_model_runner, self.scheduler_config.async_scheduling)
        self.plain = (
            [type(manager) for manager in managers] == [FullAttentionManager]
            and self.kv_cache_manager.enable_caching
            and not any((*beside, *other_ways))
        )
        self.cache = managers[0] if self.plain else None
        self.groups: dict[tuple, list[str]] = {}  # the requests of each prompt
        self.held = 0  # requests that wait in this step for another one to compute their prompt
        self.log_probs: dict[str, list[float]] = {}  # of the tokens that have not been handed over
        self.collects = False

    def add_request(self, request: Request) -> None:
        if not self.requests:
            self.groups.clear()
            self.log_probs.clear()
            self.collects = self.plain
        self.collects &= _is_collectable(request)
        if self.log_probs and not self.collects:
            raise RuntimeError("a request that wants its tokens one by one came while others are being collected")
        if self.plain:
            self.groups.setdefault(_prompt(request), []).append(request.request_id)
        super().add_request(request)

    # ---- a prompt is computed once --------------------------------------------------------------------------------
    def _handle_blocked_waiting_request(self, request: Request) -> bool:
        """False, so that the request waits a step, while another one computes its prompt.

        Those who wait keep their room: prompts that are begun beside them would share nothing once they have to end.
        """
        if not super()._handle_blocked_waiting_request(request):
            return False
        if not self.plain:
            return True
        other = self._owner(request)
        if other is None:
            return not self.held or len(self.running) + self.held < self.max_num_active_reqs
        waits = other.num_computed_tokens < request.num_prompt_tokens
        self.held += waits
        return not waits

    def _get_local_prefix_cache_hit(self, request: Request) -> tuple[KVCacheBlocks, int, int, bool]:
        """The whole prompt but for its last token, whose logits the first sampled token needs."""
        other, length = self._owner(request) if self.plain else None, request.num_prompt_tokens - 1
        if other is None or not length:
            return super()._get_local_prefix_cache_hit(request)
        blocks = self.cache.req_to_blocks[other.request_id][: -(-length // self.cache.block_size)]
        return self.kv_cache_manager.create_kv_cache_blocks((blocks,)), length, 0, False

    def _owner(self, request: Request) -> Request | None:
        """A running request that has computed the prompt of this one, or else is about to."""
        if request.num_preemptions or request.skip_reading_prefix_cache:
            return None
        begun = None
        for other in map(self.requests.get, self.groups[_prompt(request)]):
            if other is None or other.num_preemptions or other.status != RequestStatus.RUNNING:
                continue
            if other.num_computed_tokens >= request.num_prompt_tokens:
                return other
            begun = begun or other
        return begun

    # ---- a step that only decodes ---------------------------------------------------------------------------------
    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        self.held = 0
        if not self._only_decodes():
            return super().schedule(throttle_prefills)
        full = [request for request in self.running if request.num_computed_tokens % self.cache.block_size == 0]
        if len(full) > self.kv_cache_manager.block_pool.get_num_free_blocks():
            return super().schedule(throttle_prefills)
        self.current_step += 1
        self.kv_cache_manager.new_step_starts()
        blocks = {
            request.request_id: self.kv_cache_manager.allocate_slots(request, 1).get_block_ids(allow_none=True)
            for request in full
        }
        names = [request.request_id for request in self.running]
        step = SchedulerOutput.make_empty()
        step.scheduled_cached_reqs = CachedRequestData(
            req_ids=names,
            resumed_req_ids=set(),
            new_token_ids=[],
            all_token_ids={},
            new_block_ids=[blocks.get(name) for name in names],
            num_computed_tokens=[request.num_computed_tokens for request in self.running],
            num_output_tokens=[request.num_output_tokens for request in self.running],
        )
        step.num_scheduled_tokens = dict.fromkeys(names, 1)
        step.total_num_scheduled_tokens = len(names)
        step.finished_req_ids = self.finished_req_ids
        step.new_block_ids_to_zero = self._get_new_block_ids_to_zero()
        self.prev_step_scheduled_req_ids.clear()
        self.prev_step_scheduled_req_ids.update(names)
        self._update_after_schedule(step)
        return step

    def _only_decodes(self) -> bool:
        """Whether nobody waits, and all who run have one token to compute and were in the last step."""
        return (
            self.collects
            and bool(self.running)
            and len(self.requests) == len(self.running) <= self.max_num_scheduled_tokens
            and not self.reset_preempted_req_ids
            and all(request.num_computed_tokens == request.num_tokens - 1 for request in self.running)
            and self.prev_step_scheduled_req_ids.issuperset(request.request_id for request in self.running)
        )

    # ---- tokens are handed over when a request ends ----------------------------------------------------------------
    def update_from_output(self, step: SchedulerOutput, output: ModelRunnerOutput) -> dict[int, EngineCoreOutputs]:
        if not self.collects:
            return super().update_from_output(step, output)
        values = output.logprobs.logprobs[:, 0].tolist() if output.logprobs else []
        ended = set()
        for name, count in step.num_scheduled_tokens.items():
            request, row = self.requests[name], output.req_id_to_index[name]
            request.num_in_flight_tokens -= count
            for token in output.sampled_token_ids[row]:  # one, or none while a long prompt is computed in parts
                request.append_output_token_ids(token)
                self.log_probs.setdefault(name, []).append(values[row])
                if check_stop(request, self.max_model_len):
                    ended.add(request)
        if not ended:
            return {}
        self.running = remove_all(self.running, ended)
        return {0: EngineCoreOutputs(outputs=list(map(self._handed_over, self._in_order(step, ended))))}

    def _in_order(self, step: SchedulerOutput, ended: set[Request]) -> Iterable[Request]:
        return (request for name in step.num_scheduled_tokens if (request := self.requests[name]) in ended)

    def _handed_over(self, request: Request) -> EngineCoreOutput:
        reason = request.get_finished_reason()
        tokens, values = list(request.output_token_ids), self.log_probs.pop(request.request_id)
        self._free_request(request)
        column = np.array(tokens)[:, None], np.array(values)[:, None], np.zeros(len(tokens), dtype=np.int64)
        return EngineCoreOutput(
            request_id=request.request_id,
            new_token_ids=tokens,
            new_logprobs=LogprobsLists(*column),
            finish_reason=reason,
            stop_reason=request.stop_reason,
        )


def _prompt(request: Request) -> tuple:
    """What two requests of a group have in common."""
    adapter = request.lora_request.lora_int_id if request.lora_request else 0
    return adapter, request.cache_salt, *request.prompt_token_ids


def _is_collectable(request: Request) -> bool:
    """Whether a request wants the sampled tokens and their log-probabilities, nothing else, and all at its end."""
    params = request.sampling_params
    return (
        params is not None
        and params.output_kind == RequestOutputKind.FINAL_ONLY
        and params.num_logprobs == 0
        and params.prompt_logprobs is None
        and not request.use_structured_output
        and not request.resumable
        and not request.has_encoder_inputs
        and request.client_index == 0
    )
