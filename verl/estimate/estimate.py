"""What a configuration will need: bytes of a rank in every phase of a step, and seconds.

Counted from the configuration and the models' sizes alone. What is counted, and what a measured peak is, is
written down in docs/architecture.md. Left out: the batch itself, NCCL's and CUDA's own buffers, fragmentation.
One model's share is ``model_memory``'s, time is ``step_time``'s.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..config.worker import ActorConfig
from ..models.log_probs import ELEMENTS
from ..models.optim import CHUNK
from ..utils.environment import whole_variable
from ..utils.memory import GIB
from .flops import ModelShape
from .hardware import Hardware
from .model_memory import Role, bytes_of, forward_activations, role_of, saved_activations, working_activations
from .step_time import Work, phase_seconds, role_name

if TYPE_CHECKING:
    from ..config.run import PPOConfig
    from ..config.worker import BatchConfig

CPU_RUNTIME = int(0.1 * GIB)
"""What a process on the CPU grows by beside its tensors: modules that vLLM imports late, buffers of gloo and of the
engine. Measured: 105 MiB with the model of 3.5 million parameters."""
CPU_PACKING = 0.25
"""What the CPU engine keeps beside its packed weights, as a share of them. Measured with 98 million parameters."""
HEAP_SLACK = 0.5
"""Resident memory that glibc's heap holds on the CPU beyond a phase's passing tensors, as a share of these. Measured:
0.7 in the update of 98 million parameters; next to nothing with MALLOC_MMAP_THRESHOLD_=262144, which is slower."""
HEAP_UNSHARDED = 4
"""The same where layers are gathered and reduced over ranks in an update: the heap holds on to that many copies of all
layers (gathered, copied out, their gradients, the reduction). Measured: 1.2 to 1.5 GiB where layers have 0.32 GiB."""
PASSING = ("activations", "logits")
PASSING_WEIGHTS = ("gathered", "gradients", "unsharded gradients")


# ---- the batch ----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Micro:
    """A micro-batch: all its tokens, and those of responses; of an update also those of gold answers among them."""

    tokens: int
    responses: int
    golds: int = 0


def micro_batch(config: "PPOConfig", settings: "BatchConfig", prompt: int, *, update: bool) -> Micro:
    """A rank's share of the largest micro-batch, if every response is as long as it may be.

    Args:
        prompt: tokens of a prompt.
    """
    data, world, sharing = config.data, config.data_parallel_size, config.worker.actor.ulysses_size
    samples = settings.micro_batch_size_per_device_for_experience
    available = data.rollout_batch_size * config.worker.rollout.n // world
    if update:
        samples = settings.micro_batch_size_per_device_for_update
        available = settings.global_batch_size * config.worker.rollout.n // world
    if settings.dynamic_batching and not settings.shares_prompts:  # shorter prompts leave room for more samples
        samples = samples * (data.max_prompt_length + data.max_response_length) // (prompt + data.max_response_length)
    budget, samples = samples, max(1, min(samples, available))
    groups = -(-samples // config.worker.rollout.n)
    retains = update and isinstance(settings, ActorConfig) and config.algorithm.retain_loss != "none"
    golds = groups if retains else 0
    rows = samples + golds
    if settings.dynamic_batching:  # a budget holds gold answers, too, but for a sample by itself with its own
        rows = min(rows, max(budget, 2))
    prompts = groups if settings.shares_prompts else rows
    responses, golds = rows * data.max_response_length, golds * data.max_response_length
    return Micro(*(-(-tokens // sharing) for tokens in (prompts * prompt + responses, responses, golds)))


# ---- phases -------------------------------------------------------------------------------------------------------
Parts = dict[str, int]


def _sum(parts: Parts) -> int:
    return sum(parts.values())


@dataclass(frozen=True)
class Estimate:
    """Bytes of a rank by phase and part, host memory while loading, and seconds by phase."""

    phases: dict[str, Parts]
    host_load: int
    """of a process that reads its own shards"""
    host_load_whole: int
    """of one that reads the whole model, where shards cannot be read"""
    seconds: dict[str, float]
    hardware: Hardware

    def total(self, phase: str) -> int:
        return _sum(self.phases[phase])

    @property
    def peak(self) -> int:
        """Largest total of the phases of a step (not of loading)."""
        return max(self.total(phase) for phase in self.phases if phase != "load")

    def lines(self) -> list[str]:
        names = list(self.phases)
        rows = list(dict.fromkeys(part for parts in self.phases.values() for part in parts))
        table = [f"{'memory of a rank, GiB':<22}" + "".join(f"{name:>15}" for name in names)]
        for row in rows:
            cells = "".join(f"{self.phases[name].get(row, 0) / GIB:15.3f}" for name in names)
            table.append(f"  {row:<20}{cells}")
        table.append(f"  {'sum':<20}" + "".join(f"{self.total(name) / GIB:15.3f}" for name in names))
        room = f" of {self.hardware.memory / GIB:.1f}" if self.hardware.memory else " beside the libraries' own"
        table.append(f"peak of a step         {self.peak / GIB:.3f} GiB a rank{room} ({self.hardware.name})")
        if self.hardware.memory and self.peak > self.hardware.memory:
            table.append("                       does not fit: see docs/architecture.md, 'Memory and time model'")
        table.append(
            f"host memory, loading   {self.host_load / GIB:.3f} GiB a rank; {self.host_load_whole / GIB:.3f} GiB where "
            "one rank must read the whole model"
        )
        times = ", ".join(f"{name} {value:.3g}" for name, value in self.seconds.items())
        table.append(f"seconds of a step      {sum(self.seconds.values()):.3g} ({times})")
        return table


def estimate(
    config: "PPOConfig", shapes: Mapping[str, ModelShape], hardware: Hardware, prompt_tokens: int | None = None
) -> Estimate:
    """Memory and time of one rank.

    Args:
        config: with numbers for all sizes of micro-batches (``micro_batches.with_micro_batches``).
        shapes: of ``actor``, and of ``ref`` and ``critic`` where they differ from it.
        prompt_tokens: of a usual prompt; None: data.max_prompt_length.
    """
    prompt = min(prompt_tokens or config.data.max_prompt_length, config.data.max_prompt_length)
    return _Estimator(config, shapes, hardware, prompt).result()


class _Estimator:
    """Puts the roles of one configuration together, phase by phase."""

    def __init__(self, config: "PPOConfig", shapes: Mapping[str, ModelShape], hardware: Hardware, prompt: int) -> None:
        self.config, self.hardware, self.prompt = config, hardware, prompt
        self.on_gpu = hardware.memory is not None
        worker, world = config.worker, config.trainer.world_size
        actor = worker.actor
        self.roles = {
            "actor": role_of(
                shapes["actor"], actor.fsdp, actor.offload, world, batch=actor, lora=actor.model.lora, hardware=hardware
            )
        }
        if config.use_reference and worker.reference_is_actor:
            self.roles["ref"] = replace(self.roles["actor"], trained=0, borrowed=True)
        elif config.use_reference:
            shape = shapes.get("ref", shapes["actor"])
            self.roles["ref"] = role_of(
                shape, worker.ref.fsdp, worker.ref.offload, world, batch=None, hardware=hardware
            )
        if config.use_critic:
            critic, shape = worker.critic, shapes.get("critic", shapes["actor"])
            self.roles["critic"] = role_of(
                shape,
                critic.fsdp,
                critic.offload,
                world,
                batch=critic,
                lora=critic.model.lora,
                hardware=hardware,
                heads=0,
            )

    def result(self) -> Estimate:
        phases = {"load": self._load(), "rollout": self._rollout()}
        if not self.config.exactly_on_policy:
            phases["log-probs"] = self._scoring("actor")
        if self.config.reference_pass:
            phases["reference"] = self._scoring("ref")
        if "critic" in self.roles:
            phases["values"] = self._scoring("critic")
            phases["update critic"] = self._update("critic")
        phases["update actor"] = self._update("actor")
        if not self.on_gpu:
            for phase, parts in phases.items():
                parts["heap slack"] = self._heap_slack(phase, parts)
        roles = self.roles.values()
        on_host = sum(role.whole // role.ranks for role in roles if role.on_host and not role.borrowed)
        loading = on_host + max(role.largest_slice for role in roles)
        whole = on_host + max(role.whole for role in roles)
        return Estimate(phases, loading, whole, self._seconds(list(phases)), self.hardware)

    def _heap_slack(self, phase: str, parts: Parts) -> int:
        role = self.roles[role_name(phase)]
        slack = HEAP_SLACK * sum(parts.get(name, 0) for name in PASSING)
        if phase.startswith("update") and role.ranks > 1:
            return int(slack) + HEAP_UNSHARDED * role.shape.layers * role.layer
        return int(slack + HEAP_SLACK * sum(parts.get(name, 0) for name in PASSING_WEIGHTS))

    def _resident(self, active: str | None, *, updating: bool = False) -> Parts:
        """What lies on the device while ``active`` works: all but what is moved away. Moments come for an update."""
        if active and self.roles[active].borrowed:
            active = "actor"
        here = {name: role for name, role in self.roles.items() if name == active or not role.weights_away}
        moments = sum(
            role.optimizer
            for name, role in self.roles.items()
            if (updating and name == active) or not role.optimizer_away
        )
        left = sum(role.left_gathered for name, role in here.items() if name == "ref" and name != active)
        parts = {"weights": sum(role.weights for role in here.values()), "optimizer": moments, "gathered": left}
        if not self.on_gpu:
            parts["engine"] = int(self._engine_weights() * (1 + CPU_PACKING)) + self._kv_cache()
            parts["runtime"] = CPU_RUNTIME
        return parts

    def _engine_weights(self) -> int:
        rollout = self.config.worker.rollout
        shape = self.roles["actor"].shape
        return shape.parameters * bytes_of(rollout.dtype) // rollout.tensor_parallel_size

    def _sync_bytes(self) -> int:
        """What each step's weight sync gathers on a rank, in the engine's type: all weights, and adapters beside them.

        An engine that takes adapters keeps the frozen weights where it does not sleep, on a CPU.
        """
        actor, rollout = self.roles["actor"], self.config.worker.rollout
        apart = bool(actor.adapters) and rollout.lora_weights == "adapter"
        weights = actor.shape.parameters if self.on_gpu or not apart else 0
        return (weights + apart * actor.adapters) * bytes_of(rollout.dtype)

    def _kv_cache(self) -> int:
        return whole_variable("VLLM_CPU_KVCACHE_SPACE", 1) * GIB

    def _load(self) -> Parts:
        """Roles are built one after the other, then the engine."""
        roles = list(self.roles.values())
        if not self.on_gpu:
            parts = {"weights": sum(role.weights for role in roles), "runtime": CPU_RUNTIME}
            return parts | {"largest slice": max(role.largest_slice for role in roles)}
        staying = sum(role.weights for role in roles if not role.weights_away)
        building = staying + max(role.weights for role in roles if role.weights_away or role is roles[-1])
        return max({"weights": building}, {"weights": staying, "engine": self._engine_share()}, key=_sum)

    def _engine_share(self) -> int:
        return int(self.config.worker.rollout.gpu_memory_utilization * self.hardware.memory)

    def _rollout(self) -> Parts:
        """On the GPU the fuller of the weight sync, when the KV cache is still away, and of sampling."""
        parts, rollout, actor = self._resident(None), self.config.worker.rollout, self.roles["actor"]
        if self.on_gpu:
            sync = self._resident("actor") | {"engine": self._engine_weights()}
            return max(parts | {"engine": self._engine_share()}, sync, key=_sum)
        shape, c = actor.shape, bytes_of(rollout.dtype)
        samples = self.config.data.rollout_batch_size * rollout.n // self.config.rollout_replicas
        tokens = min(samples * self.prompt, max(rollout.max_num_batched_tokens, self.prompt))
        largest = shape.vocab * shape.hidden * (actor.keep + c)
        return parts | {"activations": max(forward_activations(shape, tokens, c), largest)}

    def _micro(self, name: str, *, update: bool) -> Micro:
        settings = getattr(self.config.worker, "critic" if name == "critic" else "actor")
        return micro_batch(self.config, settings, self.prompt, update=update)

    def _scoring(self, name: str) -> Parts:
        """A forward pass without gradients."""
        role, micro = self.roles[name], self._micro(name, update=False)
        parts = self._resident(name)
        parts["gathered"] += role.gathered
        parts["activations"] = forward_activations(role.shape, micro.tokens, role.compute)
        parts["logits"] = 0 if name == "critic" else self._logits(micro, role, copies=1)
        return parts

    def _logits(self, micro: Micro, role: Role, *, copies: int) -> int:
        """The logits of a micro-batch (and their gradient), and three numbers in fp32 for each of those in work."""
        numbers = micro.responses * role.shape.vocab
        return copies * numbers * role.compute + 12 * min(numbers, ELEMENTS["cuda" if self.on_gpu else "cpu"])

    def _update(self, name: str) -> Parts:
        """The fullest moment: at the head, behind it, in the last layer, at the embedding, in the optimiser."""
        role, micro = self.roles[name], self._micro(name, update=True)
        base = self._resident(name, updating=True)
        saved = saved_activations(role, micro.tokens, on_gpu=self.on_gpu)
        working = working_activations(role, micro.tokens, on_gpu=self.on_gpu)
        logits = 0 if name == "critic" else self._logits(micro, role, copies=2)
        beside = 0  # the reference as it runs within the update
        if name == "actor" and self.config.reference_in_update:
            reference = self.roles["ref"]
            base["weights"] += reference.weights if reference.weights_away else 0
            beside = reference.gathered
            asked = micro.responses if self.config.exact_kl_in_loss else micro.golds
            logits += asked * role.shape.vocab * reference.compute
            if self.config.algorithm.retain_loss == "klr":  # gold answers' own, copied out, and back into all gradients
                logits += (micro.golds + micro.responses) * role.shape.vocab * role.compute
        share = role.trained / role.parameters
        reduced = 0 if role.unsharded else role.reduce / role.compute
        end_gathered = role.gathered if role.unsharded else role.end if role.shape.tied else 0
        layer = int(role.layer * share * (1 + reduced))
        # Weights are freed before their gradient is reduced. Of one gradient for both ends the two parts and their sum
        # are there at once.
        end = int(role.end * share * (1 + reduced))
        # The head's gradient waits: whole for the embedding's where they are one, else in the reduction.
        waiting = int(role.end * share * (1 if role.shape.tied else reduced))
        # Gradients: those of this rank's shards, or all that were added up in the passes before.
        waiting_all = {"unsharded gradients": role.whole_gradients, "gradients": 0}
        at_once = not role.deferred or role.unsharded
        held = {"unsharded gradients": 0, "gradients": role.gradients} if at_once else waiting_all
        whole = held["unsharded gradients"]
        moments = [
            held | {"gathered": role.gathered + beside, "activations": saved, "logits": logits},
            held
            | {"gathered": role.gathered_layer, "activations": saved + working}
            | {"unsharded gradients": waiting + layer + whole},
            {"gradients": role.gradients, "gathered": end_gathered}
            | {"unsharded gradients": end + (waiting if role.shape.tied else 0)},
            {"gradients": role.gradients, "activations": self._scratch(role)},
        ]
        if not role.shape.tied:
            gathered = role.gathered if role.unsharded else role.end
            behind = {"gathered": gathered, "activations": saved, "logits": logits // 2}
            moments.append(held | behind | {"unsharded gradients": end + whole})
        worst = max(moments, key=_sum)
        return base | worst | {"gathered": base["gathered"] + worst.get("gathered", 0)}

    def _scratch(self, role: Role) -> int:
        """What an update of the weights needs besides, of the parameters that are in work at once."""
        at_once = min(CHUNK["cuda" if self.on_gpu else "cpu"], role.largest_slice // role.keep)
        return role.scratch * at_once

    def _seconds(self, phases: list[str]) -> dict[str, float]:
        config, actor = self.config, self.config.worker.actor
        prompts, loss = config.data.rollout_batch_size, config.algorithm.retain_loss
        samples = prompts * config.worker.rollout.n
        work = Work(
            samples=samples,
            prompts=prompts,
            golds=0 if loss == "none" else prompts - round((config.data.forget_share or 0) * prompts),
            reference_on_golds=loss == "klr",
            prompt_tokens=self.prompt,
            response_tokens=config.data.max_response_length,
            world=config.trainer.world_size,
            ranks_per_node=config.trainer.n_gpus_per_node,
            engines=config.rollout_replicas,
            engine_bytes=self._engine_weights(),
            sync_bytes=self._sync_bytes(),
            kv_bytes_per_token=self.roles["actor"].shape.kv_bytes_per_token
            * bytes_of(config.worker.rollout.dtype)
            // (2 * config.worker.rollout.tensor_parallel_size),
            shares_prompts=actor.shares_prompts,
        )
        tokens = {phase: work.computed(phase)[0] // work.world for phase in phases}
        micros = {
            phase: -(-tokens[phase] // self._micro(role_name(phase), update=phase.startswith("update")).tokens)
            for phase in phases
        }
        return phase_seconds(phases, self.roles, work, micros, config.mini_batches, actor.ppo_epochs, self.hardware)
