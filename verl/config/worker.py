"""Settings of the workers. Keys, meanings and units are EasyR1's; where a default differs, the docstring says why."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ..settings.path_types import PathText

Dtype = Literal["auto", "bf16", "fp16", "fp32"]
LossAvgMode = Literal["token", "seq", "constant"]
MAX_SEQUENCES = 512
"""sequences a rollout engine works on at once, at most"""
MOST_PROCESSES = 1024
"""of one kind on one machine"""
MOST_REPLAYED = 1000
"""groups replayed for each fresh one, at most"""
ADAPTER_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""ranks that vLLM has room for LoRA adapters of"""


def positive(config: Any, *names: str) -> list[str]:
    """A problem for every named field that is not greater than zero."""
    return [
        f"{name}={getattr(config, name)}: must be greater than 0" for name in names if not getattr(config, name) > 0
    ]


def not_negative(config: Any, *names: str) -> list[str]:
    """A problem for every named field that is less than zero."""
    values = {name: getattr(config, name) for name in names}
    return [
        f"{name}={value}: must be 0 or greater" for name, value in values.items() if value is not None and value < 0
    ]


def seed_problems(seed: int) -> list[str]:
    """A seed that could not be mixed with an epoch or a step and still be a generator's."""
    return [] if 0 <= seed < 2**43 else [f"seed={seed}: must lie in [0, 2^43); 1 is usual"]


@dataclass(frozen=True)
class LoraConfig:
    rank: int = 0
    """rank of the adapters; 0 trains all weights"""
    alpha: int = 64
    """scale of the adapters is alpha / rank"""
    target_modules: str | list[str] = "all-linear"
    """modules that get adapters: ``all-linear``; names, as a list or separated by commas, each of one module or the end
    of several modules' names (``q_proj``); or a regular expression for whole names"""
    exclude_modules: str | list[str] | None = None
    """modules that get none, named in the same ways"""

    def problems(self) -> list[str]:
        found = [] if self.rank >= 0 else [f"rank={self.rank}: must be 0 (off) or greater"]
        return found + positive(self, "alpha")


@dataclass(frozen=True)
class ModelConfig:
    model_path: PathText | None = None
    """Hugging Face folder or hub id"""
    tokenizer_path: PathText | None = None
    """folder or hub id of the tokenizer; null: the model's own"""
    override_config: dict[str, Any] = field(default_factory=dict)
    """entries of the model's config.json to replace"""
    enable_gradient_checkpointing: bool = True
    """recompute activations in the backward pass"""
    trust_remote_code: bool = False
    """run code that comes with the model. EasyR1 defaults to true; nothing from outside runs here unasked"""
    freeze_vision_tower: bool = False
    """accepted for EasyR1's files; text models have no vision tower"""
    lora: LoraConfig = field(default_factory=LoraConfig)

    @property
    def tokenizer(self) -> str | None:
        return self.tokenizer_path or self.model_path


@dataclass(frozen=True)
class OptimConfig:
    lr: float = 1e-6
    """peak learning rate"""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    """Adam's decay rates of the first and second moment"""
    weight_decay: float = 1e-2
    """decoupled weight decay"""
    strategy: Literal["adamw", "adamw_bf16"] = "adamw"
    """``adamw``: moments in the parameters' type; ``adamw_bf16``: bf16 weights and first moments, fp32 second moments,
    and the weights' lower 16 bits, so that small updates are not rounded away"""
    lr_warmup_ratio: float = 0.0
    """warm-up as a share of all training steps"""
    lr_warmup_steps: int | None = None
    """warm-up in training steps, each of which may have several optimiser steps; wins over the ratio"""
    min_lr_ratio: float | None = None
    """where a cosine ends, as a share of lr; null: 0"""
    lr_scheduler_type: Literal["constant", "cosine"] = "constant"
    """shape of the learning rate after warm-up"""

    def warmup_steps(self, training_steps: int) -> int:
        """Steps of warm-up in a run of ``training_steps``."""
        if self.lr_warmup_steps is not None:
            return self.lr_warmup_steps
        return int(self.lr_warmup_ratio * training_steps)

    def problems(self) -> list[str]:
        found = positive(self, "lr") + not_negative(self, "weight_decay", "lr_warmup_steps")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            found.append(f"betas={self.betas}: must be two numbers in [0, 1), for example [0.9,0.999]")
        if not 0 <= self.lr_warmup_ratio <= 1:
            found.append(f"lr_warmup_ratio={self.lr_warmup_ratio}: must lie in [0, 1]")
        if self.min_lr_ratio is not None and not 0 <= self.min_lr_ratio <= 1:
            found.append(f"min_lr_ratio={self.min_lr_ratio}: must lie in [0, 1]")
        if self.min_lr_ratio is not None and self.lr_scheduler_type == "constant":
            found.append(f"min_lr_ratio={self.min_lr_ratio}: acts on a cosine only; set lr_scheduler_type=cosine")
        return found


@dataclass(frozen=True)
class FSDPConfig:
    enable_full_shard: bool = True
    """free the gathered parameters after the forward pass (ZeRO-3); false keeps them until the backward (ZeRO-2)"""
    enable_cpu_offload: bool = False
    """keep sharded parameters, gradients and optimiser state in CPU memory, and run the optimiser there"""
    enable_rank0_init: bool = True
    """where ranks cannot read their own shards (transformers converts the checkpoint as it loads it, or it is no
    safetensors): read the whole model on rank 0 only and broadcast the shards; false reads it on every rank"""
    use_orig_params: bool = False
    """accepted for EasyR1's files; FSDP2 always keeps the original parameters"""
    torch_dtype: Dtype | None = None
    """type the weights are kept in; null: fp32 where they are trained (bf16 under adamw_bf16), mp_param_dtype else.
    LoRA adapters are always kept in fp32"""
    fsdp_size: int = -1
    """ranks that share one copy of the weights; -1: all. A smaller number replicates the shards (HSDP)"""
    mp_param_dtype: Dtype = "bf16"
    """type of the arithmetic; ``auto``: bf16 where the hardware is faster at it, fp32 elsewhere"""
    mp_reduce_dtype: Literal["bf16", "fp16", "fp32"] = "fp32"
    """type of the gradient reduction"""
    mp_buffer_dtype: Literal["fp32"] = "fp32"
    """type of buffers; FSDP2 leaves them as they are"""
    defer_gradient_reduction: bool = False
    """add up whole gradients on every rank, and reduce them once a mini-batch, not once a micro-batch: less
    communication for 4 bytes (mp_reduce_dtype) of GPU memory a trained weight. Without enable_full_shard the weights
    stay gathered as long, too"""


@dataclass(frozen=True)
class OffloadConfig:
    offload_params: bool = False
    """move the weights to CPU memory while another phase runs; nothing to do under fsdp.enable_cpu_offload"""
    offload_optimizer: bool = False
    """move the optimiser's state to CPU memory while another phase runs; nothing to do under fsdp.enable_cpu_offload"""


@dataclass(frozen=True)
class BatchConfig:
    """What the actor and the critic share: how a batch is cut up and averaged."""

    strategy: Literal["fsdp"] = "fsdp"
    """sharding: FSDP2"""
    global_batch_size: int = 256
    """PROMPTS of a mini-batch over all ranks (each brings rollout.n samples); one optimiser step a mini-batch"""
    micro_batch_size_per_device_for_update: int | Literal["auto"] = "auto"
    """samples of a forward and backward pass on one rank, which change time and memory, not the result. ``auto``: on a
    GPU the largest power of two that the memory model finds room for, on a CPU what amortises a pass over the weights;
    the dry run says which. EasyR1 defaults to 4"""
    micro_batch_size_per_device_for_experience: int | Literal["auto"] = "auto"
    """samples of a forward pass without gradients on one rank; ``auto`` as above. EasyR1 defaults to 16"""
    max_grad_norm: float = 1.0
    """gradients are scaled down to this norm"""
    loss_avg_mode: LossAvgMode = "token"
    """``token``: every token of the mini-batch weighs the same; ``seq``: every response; ``constant``: every token,
    divided by max_response_length whatever the responses' lengths (Dr. GRPO)"""
    ppo_epochs: int = 1
    """passes over each rollout batch"""
    padding_free: bool = True
    """pack sequences without padding"""
    share_prompts: bool = True
    """compute a prompt once for all its samples in a micro-batch; needs padding_free, and changes nothing but time"""
    dynamic_batching: bool = True
    """cut micro-batches by tokens: micro_batch_size x (max_prompt_length + max_response_length), instead of samples"""
    ulysses_size: int = 1
    """neighbouring ranks that share each micro-batch, a part of its tokens each (sequence parallelism); the reference
    takes the actor's"""
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    fsdp: FSDPConfig = field(default_factory=FSDPConfig)
    offload: OffloadConfig = field(default_factory=OffloadConfig)

    @property
    def shares_prompts(self) -> bool:
        return self.share_prompts and self.padding_free

    def problems(self) -> list[str]:
        sizes = ("micro_batch_size_per_device_for_update", "micro_batch_size_per_device_for_experience")
        found = positive(self, "global_batch_size", "max_grad_norm", "ppo_epochs", "ulysses_size")
        found += positive(self, *(name for name in sizes if getattr(self, name) != "auto"))
        kept, strategy, lora = self.fsdp.torch_dtype, self.optim.strategy, self.model.lora.rank > 0
        if strategy == "adamw" and kept not in (None, "fp32") and not lora:
            found.append(
                f"fsdp.torch_dtype={kept}: adamw would round most of a small update away; set null (fp32), or "
                "optim.strategy=adamw_bf16"
            )
        if strategy == "adamw_bf16" and lora:
            found.append("optim.strategy=adamw_bf16: saves memory on full training only; set adamw under LoRA")
        if strategy == "adamw_bf16" and kept not in (None, "auto", "bf16"):
            found.append(f"fsdp.torch_dtype={kept}: optim.strategy=adamw_bf16 keeps bf16 weights; set null, or adamw")
        if self.ulysses_size > 1 and not self.padding_free:
            found.append(
                f"ulysses_size={self.ulysses_size}: shares packed rows; set padding_free=true, or ulysses_size=1"
            )
        return found


@dataclass(frozen=True)
class ActorConfig(BatchConfig):
    clip_ratio_low: float = 0.2
    """lower clip of the probability ratio is 1 - this"""
    clip_ratio_high: float = 0.3
    """upper clip of the probability ratio is 1 + this"""
    clip_ratio_dual: float = 3.0
    """ratio beyond which a negative advantage stops growing (dual clip); acts in loss_type=default alone"""
    loss_type: Literal["default", "gspo", "gspo_token", "cispo", "sapo"] = "default"
    """policy loss: PPO's clip, GSPO, CISPO or SAPO"""
    tau_positive: float = 1.0
    """SAPO's gate temperature for positive advantages"""
    tau_negative: float = 1.05
    """SAPO's gate temperature for negative advantages"""
    use_torch_compile: bool = True
    """compile the log-probability kernel (CUDA only)"""

    def problems(self) -> list[str]:
        found = super().problems() + positive(self, "tau_positive", "tau_negative")
        for name in ("clip_ratio_low", "clip_ratio_high"):
            if not getattr(self, name) >= 0:
                found.append(f"{name}={getattr(self, name)}: must be 0 or greater")
        if self.clip_ratio_dual <= 1:
            found.append(f"clip_ratio_dual={self.clip_ratio_dual}: must be greater than 1; EasyR1 uses 3.0")
        return found


@dataclass(frozen=True)
class CriticConfig(BatchConfig):
    cliprange_value: float = 0.5
    """new values may leave the old ones by this much before their loss is clipped"""


@dataclass(frozen=True)
class RefConfig:
    strategy: Literal["fsdp"] = "fsdp"
    """sharding: FSDP2"""
    model: ModelConfig = field(default_factory=ModelConfig)
    """``model_path``: another reference than the actor's starting point, for example the original model. Under LoRA
    and without it, the reference is the actor with its adapters switched off, and needs no memory"""
    fsdp: FSDPConfig = field(default_factory=FSDPConfig)
    offload: OffloadConfig = field(default_factory=OffloadConfig)


def _sampling_problems(config: "RolloutConfig | ValRolloutConfig") -> list[str]:
    found, top_p, top_k = [], config.top_p, config.top_k
    if top_p is not None and not 0 < top_p <= 1:
        found.append(f"top_p={top_p}: must lie in (0, 1]")
    if top_k is not None and (top_k == 0 or top_k < -1):
        found.append(f"top_k={top_k}: must be -1 (all tokens) or at least 1")
    return found


@dataclass(frozen=True)
class ValRolloutConfig:
    n: int | None = None
    """samples of a prompt in validation; null, here as below: as in training"""
    temperature: float | None = None
    """sampling temperature in validation; 0: greedy"""
    top_p: float | None = None
    """nucleus sampling in validation"""
    top_k: int | None = None
    """sample among the k likeliest tokens in validation; -1: all"""

    def problems(self) -> list[str]:
        found = [] if self.n is None else positive(self, "n")
        if self.temperature is not None and self.temperature < 0:
            found.append(f"temperature={self.temperature}: must be 0 (greedy) or greater")
        return found + _sampling_problems(self)


@dataclass(frozen=True)
class RolloutConfig:
    name: Literal["vllm"] = "vllm"
    """the engine"""
    n: int = 1
    """samples of a prompt"""
    noise_rollout: int = 0
    """of these n, samples whose prompt has data.extra_prompt in front; 0: extra_prompt, if given, is in front of all"""
    temperature: float = 1.0
    """sampling temperature; the trainer's log-probabilities are taken at the same one"""
    top_p: float = 1.0
    """nucleus sampling"""
    top_k: int = -1
    """sample among the k likeliest tokens; -1: all"""
    seed: int = 1
    """with step, prompt and sample index, the seed of every single sample"""
    limit_images: int = 0
    """vision only: must stay 0"""
    dtype: Dtype = "bf16"
    """type of the engine's weights and arithmetic"""
    gpu_memory_utilization: float = 0.6
    """share of GPU memory for the engine's weights and KV cache"""
    ignore_eos: bool = False
    """go on behind the tokens that end an answer"""
    enforce_eager: bool = False
    """no CUDA graphs (always so on CPU)"""
    enable_chunked_prefill: bool | None = None
    """cut long prompts into chunks; null: as the engine likes. false needs max_num_batched_tokens for a sequence. On
    CPUs prompts are always whole, since vLLM cannot sample with seeds behind a chunk there"""
    lora_weights: Literal["adapter", "merged"] = "adapter"
    """under LoRA, what each step hands to the engine: the adapters, which it then applies as the trainer does, or all
    weights with the adapters merged, which samples faster and rounds small updates away in bf16"""
    sync_tolerance: float | None = None
    """largest mean difference in nats, over a fixed text, between the engine's log-probabilities and the actor's after
    a weight sync; null: 3 % of their mean size in bf16, 0.7 % in fp16, 0.015 % in fp32 (0.15 % on a GPU)"""
    tensor_parallel_size: int = 2
    """ranks that share one engine"""
    max_model_len: int | None = None
    """longest sequence in tokens; null: max_prompt_length + max_response_length"""
    max_num_batched_tokens: int = 8192
    """tokens of one engine step"""
    disable_log_stats: bool = True
    """keep the engine's statistics off the log"""
    disable_tqdm: bool = False
    """no progress bar while sampling"""
    val_override_config: ValRolloutConfig = field(default_factory=ValRolloutConfig)

    def problems(self) -> list[str]:
        found = positive(self, "n", "temperature", "tensor_parallel_size", "max_num_batched_tokens")
        if not 0 <= self.noise_rollout < max(self.n, 1):
            found.append(f"noise_rollout={self.noise_rollout}: must be at least 0 and less than n={self.n}")
        found += _sampling_problems(self)
        if not 0 < self.gpu_memory_utilization < 1:
            found.append(f"gpu_memory_utilization={self.gpu_memory_utilization}: must lie in (0, 1)")
        if self.sync_tolerance is not None and not self.sync_tolerance > 0:
            found.append(f"sync_tolerance={self.sync_tolerance}: must be greater than 0, or null")
        if self.limit_images:
            found.append(f"limit_images={self.limit_images}: this trainer is for text models; set 0")
        return found


@dataclass(frozen=True)
class RewardConfig:
    reward_function: PathText | None = "examples/reward_function/rule.py:compute_score"
    """``path.py:function``; the file says REWARD_TYPE = "batch" or "sequential" """
    reward_function_kwargs: dict[str, Any] = field(default_factory=dict)
    """keyword arguments of that function, for RULE's ``preset: forget_two_stage_abs_target``"""
    skip_special_tokens: bool = True
    """leave special tokens out of the text that is scored"""
    num_cpus: int = 1
    """CPUs that Ray reserves for rewards: that many processes share the samples of a sequential function, one process
    gets them all for a function of batches"""

    def problems(self) -> list[str]:
        found = positive(self, "num_cpus")
        if self.num_cpus > MOST_PROCESSES:
            found.append(f"num_cpus={self.num_cpus}: each is a process; set at most {MOST_PROCESSES}")
        return found


@dataclass(frozen=True)
class WorkerConfig:
    hybrid_engine: bool = True
    """actor, reference and rollout share each device"""
    actor: ActorConfig = field(default_factory=ActorConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    ref: RefConfig = field(default_factory=RefConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)

    def model_of(self, role: str) -> ModelConfig:
        """What ``actor``, ``critic`` or ``ref`` is built from: the reference is the actor's model without adapters, and
        both the reference and the critic start from the actor's weights unless they name others."""
        path = getattr(self, role).model.model_path or self.actor.model.model_path
        if role == "ref":
            return replace(self.actor.model, model_path=path, lora=replace(self.actor.model.lora, rank=0))
        return replace(getattr(self, role).model, model_path=path)

    @property
    def reference_is_actor(self) -> bool:
        """True where the reference is the actor's own module with its adapters switched off."""
        return self.actor.model.lora.rank > 0 and self.model_of("ref").model_path == self.actor.model.model_path

    def problems(self) -> list[str]:
        return [] if self.hybrid_engine else ["hybrid_engine=false: workers always share devices here; set true"]
