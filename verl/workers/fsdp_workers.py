"""The process of one rank: actor, reference, critic and rollout engine, sharing one device.

The driver calls these methods on all ranks at once and hands each its share of the batch (``single_controller``). What
an update computes is the actor's and the critic's; when things happen is the trainer's.
"""

import logging
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ..config.run import PPOConfig
from ..config.worker import MAX_SEQUENCES, BatchConfig
from ..estimate.flops import ModelShape
from ..estimate.hardware import device_peak_flops
from ..estimate.micro_batches import is_open, lines_of, sizes, with_micro_batches, with_sizes
from ..models.fsdp import build_mesh, load_module, load_optimizer, offload_module, offload_optimizer
from ..models.model_config import decoder_settings, engine_overrides
from ..models.ulysses import SequenceParallel, head_problem
from ..protocol import DataProto
from ..utils import vllm_env
from ..utils.chat import stop_token_ids
from ..utils.checkpoint import write_errors
from ..utils.environment import cores
from ..utils.errors import ConfigError
from ..utils.memory import GIB, MemoryMeter, keep_freed
from ..utils.tokenizer import get_tokenizer

logger = logging.getLogger(__name__)


def free_address() -> tuple[str, int]:
    """This machine's address and a port nobody listens on, for the process group to meet at."""
    import ray

    with socket.socket() as probe:
        probe.bind(("", 0))
        return ray.util.get_node_ip_address(), probe.getsockname()[1]


def check_gpu(rank: int, *, sees_one: bool) -> None:
    """Raise ConfigError where Ray has given this rank a GPU and torch sees none: the rank would work on the CPU."""
    import ray

    given = ray.get_gpu_ids() if ray.is_initialized() else []
    if given and not sees_one:
        raise ConfigError(
            f"rank {rank} on {ray.util.get_node_ip_address()}: Ray has given it GPU {given[0]}, but torch "
            f"{torch.__version__} sees none; install a CUDA build of torch and its driver there, or train on CPUs with "
            'CUDA_VISIBLE_DEVICES=""'
        )


class FSDPWorker:
    """One rank. Built in three calls: the constructor (nothing heavy), ``connect`` (process group), ``init_model``."""

    def __init__(self, config: PPOConfig, rank: int, training_steps: int) -> None:
        logging.basicConfig(level=logging.INFO, format=f"[rank {rank}] %(levelname)s %(name)s: %(message)s")
        for name in ("vllm", "torch._library"):  # on CPU they warn of every GPU feature that they do without
            logging.getLogger(name).setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", category=FutureWarning)
        self.config, self.rank, self.training_steps = config, rank, training_steps
        self.engine: Any = None  # between open_engine and close_engine

    def address(self) -> tuple[str, int]:
        return free_address()

    def connect(self, master: tuple[str, int], threads: int | None = None) -> None:
        """Join the process group of all ranks.

        Args:
            threads: what this process works with on the CPU; None: this machine's cores, shared with its other ranks.

        Raises:
            ConfigError: Ray has given this rank a GPU that torch does not see.
        """
        os.environ.update(
            RANK=str(self.rank),
            WORLD_SIZE=str(self.config.trainer.world_size),
            LOCAL_RANK="0",  # Ray shows each worker its own GPU only
            MASTER_ADDR=master[0],
            MASTER_PORT=str(master[1]),
        )
        self.on_gpu = vllm_env.has_accelerator()
        check_gpu(self.rank, sees_one=self.on_gpu)
        self.device = torch.device("cuda", 0) if self.on_gpu else torch.device("cpu")
        if self.on_gpu:
            torch.cuda.set_device(self.device)
        else:
            keep_freed()
        # Ray says OMP_NUM_THREADS=1. Beside a GPU the host still gathers, casts and steps what is offloaded.
        torch.set_num_threads(threads or max(1, cores() // self.config.trainer.n_gpus_per_node))
        dist.init_process_group("cpu:gloo,cuda:nccl" if self.on_gpu else "gloo")
        self.parallel = SequenceParallel.of(self.config.worker.actor.ulysses_size)
        torch.manual_seed(self.config.data.seed)

    def init_model(self) -> None:
        """Build what the algorithm needs, shard it, load its weights, and start the engine."""
        from transformers.utils.logging import disable_progress_bar

        from ..models.build import load_config

        disable_progress_bar()
        # Before the meter starts: libraries do not count as memory of the run.
        vllm_env.load(log_stats=not self.config.worker.rollout.disable_log_stats)
        self.memory = MemoryMeter(on_gpu=self.on_gpu, alone=dist.get_world_size() == 1)
        worker = self.config.worker
        model = worker.actor.model
        self.tokenizer = get_tokenizer(
            model.tokenizer, self.config.data.override_chat_template, model.trust_remote_code
        )
        self.hf_config = load_config(model)
        if problem := head_problem(worker.actor.ulysses_size, decoder_settings(self.hf_config)):
            raise ConfigError(problem)
        self.config = self._with_micro_batches()
        self.actor = self._build_policy(trained=True)
        self.reference = self._build_policy(trained=False) if self.config.use_reference else None
        if self.config.algorithm.kl_estimator == "full" or self.config.reference_in_update:
            self.actor.reference = self.reference
        self.critic = self._build_critic() if self.config.use_critic else None
        held = self.memory.held()
        self._build_rollout()
        self.memory.start(self.memory.held() - held)

    def _with_micro_batches(self) -> PPOConfig:
        """The configuration with numbers for ``auto``, on every rank those of the one with the least room."""
        if not is_open(self.config):
            return self.config
        from ..models.build import load_config

        memory = torch.cuda.get_device_properties(self.device).total_memory if self.on_gpu else None
        try:
            models = {role: self.config.worker.model_of(role) for role in ("actor", "ref", "critic")}
            shapes = {role: ModelShape.of(decoder_settings(load_config(model))) for role, model in models.items()}
        except ValueError as error:
            logger.warning("micro-batches have EasyR1's sizes: %s", error)
            shapes = None
        found = torch.tensor(sizes(with_micro_batches(self.config, shapes, memory)), device=self.device)
        dist.all_reduce(found, dist.ReduceOp.MIN)
        config = with_sizes(self.config, found.tolist())
        if self.rank == 0:
            logger.info("%s", "; ".join(lines_of(config)))
        return config

    def _tokens(self, samples: int, dynamic: bool) -> int | None:
        """Token budget of a micro-batch: that of ``samples`` full-length ones; None counts samples instead."""
        data = self.config.data
        return samples * (data.max_prompt_length + data.max_response_length) if dynamic else None

    def _stepper(self, settings: BatchConfig, module: torch.nn.Module) -> Any:
        from ..models.optim import build_optimizer, build_scheduler
        from .stepper import Stepper

        optimizer = build_optimizer(module, settings.optim)
        scheduler = build_scheduler(optimizer, settings.optim, self.training_steps)
        budget = self._tokens(settings.micro_batch_size_per_device_for_update, settings.dynamic_batching)
        return Stepper(settings, module, optimizer, scheduler, max_tokens=budget)

    def _build_policy(self, *, trained: bool) -> Any:
        from ..models.build import build_model
        from .actor.dp_actor import DataParallelPPOActor

        settings = self.config.worker.actor
        if not trained and self.config.worker.reference_is_actor:
            module = self.actor.module
        else:
            fsdp = settings.fsdp if trained else self.config.worker.ref.fsdp
            module = build_model(
                self.config.worker.model_of("actor" if trained else "ref"),
                fsdp,
                build_mesh(self.device.type, fsdp.fsdp_size),
                trainable=trained,
                padding_free=settings.padding_free,
                keep_dtype=_kept(settings) if trained else fsdp.mp_param_dtype,
            )
        actor = DataParallelPPOActor(
            self.config,
            module,
            device=self.device,
            max_tokens_for_experience=self._tokens(
                settings.micro_batch_size_per_device_for_experience, settings.dynamic_batching
            ),
            parallel=self.parallel,
            stepper=self._stepper(settings, module) if trained else None,
        )
        self._offload(actor, settings.offload if trained else self._reference_offload)
        return actor

    @property
    def _reference_offload(self) -> Any:
        worker = self.config.worker
        return worker.actor.offload if worker.reference_is_actor else worker.ref.offload

    def _build_critic(self) -> Any:
        from ..models.build import build_model
        from .critic.dp_critic import DataParallelPPOCritic

        settings = self.config.worker.critic
        module = build_model(
            self.config.worker.model_of("critic"),
            settings.fsdp,
            build_mesh(self.device.type, settings.fsdp.fsdp_size),
            trainable=True,
            padding_free=settings.padding_free,
            value_head=True,
            keep_dtype=_kept(settings),
        )
        critic = DataParallelPPOCritic(
            self.config,
            module,
            device=self.device,
            max_tokens_for_experience=self._tokens(
                settings.micro_batch_size_per_device_for_experience, settings.dynamic_batching
            ),
            parallel=self.parallel,
            stepper=self._stepper(settings, module),
        )
        self._offload(critic, settings.offload)
        return critic

    def _build_rollout(self) -> None:
        from ..models.build import resolve_dtype
        from .rollout.vllm_rollout import VLLMRollout
        from .sharding_manager.fsdp_vllm import FSDPVLLMShardingManager, rounding

        data, settings, model = self.config.data, self.config.worker.rollout, self.config.worker.actor.model
        prompts = max(data.rollout_batch_size * settings.n, data.val_batch_size * self.config.val_rollout("n"))
        # Two tokens and one more that the engine samples are the shortest text that shows what a model thinks.
        max_model_len = max(3, settings.max_model_len or data.max_prompt_length + data.max_response_length)
        rollout = VLLMRollout(
            settings,
            model_path=model.model_path,
            tokenizer_path=model.tokenizer,
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_ids=stop_token_ids(self.tokenizer, model.model_path, data.chat_template_kwargs),
            max_model_len=max_model_len,
            max_num_seqs=min(MAX_SEQUENCES, -(-prompts // self.config.rollout_replicas)),
            trust_remote_code=model.trust_remote_code,
            hf_overrides=engine_overrides(self.hf_config, model.override_config),
            adapter_rank=model.lora.rank if settings.lora_weights == "adapter" else 0,
        )
        rollout.sleep()
        dtypes = [resolve_dtype(settings.dtype), resolve_dtype(self.config.worker.actor.fsdp.mp_param_dtype)]
        coarser = min(dtypes, key=lambda dtype: torch.finfo(dtype).bits)
        self.sharding_manager = FSDPVLLMShardingManager(
            self.actor.module,
            rollout,
            score=self.actor.score_tokens,
            dtype=dtypes[0],
            rounding=rounding(coarser, on_gpu=self.on_gpu),
            tolerance=settings.sync_tolerance,
            vocab_size=self.hf_config.get_text_config().vocab_size,
            max_model_len=max_model_len,
        )

    def _offload(self, role: Any, settings: Any) -> None:
        """Move an idle role to CPU memory where the user wants that."""
        if self.on_gpu and settings.offload_params:
            offload_module(role.module)
        if self.on_gpu and getattr(settings, "offload_optimizer", False) and role.stepper:
            offload_optimizer(role.stepper.optimizer)
        self.memory.phase_ends()

    def _load(self, role: Any, settings: Any, *, optimizer: bool = False) -> None:
        if self.on_gpu and settings.offload_params:
            load_module(role.module)
        if self.on_gpu and optimizer and settings.offload_optimizer:
            load_optimizer(role.stepper.optimizer)

    def arithmetic(self) -> tuple[ModelShape, float] | None:
        """The actor's shape and the peak operations a second of this rank's GPU; None where either is not known."""
        peak = device_peak_flops()
        if peak is None:
            return None
        try:
            return ModelShape.of(decoder_settings(self.hf_config)), peak
        except ValueError as error:
            logger.warning("perf/mfu is left out: %s", error)
            return None

    def open_engine(self) -> None:
        """Hand the actor's weights of now to the engine, for all ``generate_sequences`` until ``close_engine``."""
        settings = self.config.worker.actor.offload
        self._load(self.actor, settings)
        self.engine = self.sharding_manager.open(loaded=lambda: self._offload(self.actor, settings))

    def close_engine(self) -> dict[str, float]:
        """Put the engine to sleep. Returns the hand-overs since the last call, and the GiB that this rank gathered."""
        manager, self.engine = self.sharding_manager, None
        manager.close()
        counted = {"weight_syncs": float(manager.syncs), "sync_gathered_gib": manager.synced_bytes / GIB}
        manager.syncs, manager.synced_bytes = 0, 0
        return counted

    def generate_sequences(self, prompts: DataProto) -> DataProto:
        """Sample responses with the weights that ``open_engine`` handed over; sampling settings come in ``meta_info``.

        Raises:
            RuntimeError: the engine is not open, so that its weights are older than the actor's.
        """
        if self.engine is None:
            raise RuntimeError("generate_sequences: the engine sleeps; call open_engine before")
        response_length = self.config.data.max_response_length
        return self.engine.generate(prompts, response_length=response_length, **prompts.meta_info)

    def compute_log_probs(self, data: DataProto) -> DataProto:
        """``old_log_probs`` (B, T) of the current actor."""
        return self._scored(self.actor, self.config.worker.actor.offload, data, "old_log_probs")

    def compute_ref_log_probs(self, data: DataProto) -> DataProto:
        """``ref_log_probs`` (B, T) of the reference."""
        return self._scored(self.reference, self._reference_offload, data, "ref_log_probs")

    def compute_ref_kl(self, data: DataProto) -> DataProto:
        """``ref_kl`` (B, T): the exact KL of the current actor to the reference."""
        with self._reference_beside_actor():
            self._load(self.actor, self.config.worker.actor.offload)
            kl_BT = self.actor.compute_reference_kl(data)
            self._offload(self.actor, self.config.worker.actor.offload)
        return DataProto.from_dict({"ref_kl": kl_BT})

    @contextmanager
    def _reference_beside_actor(self) -> Iterator[None]:
        """The reference on the device where the exact KL needs it while the actor works."""
        reference, settings = self.actor.reference, self._reference_offload
        comes = reference is not None and reference.module is not self.actor.module
        if comes:
            self._load(reference, settings)
        yield
        if comes:
            self._offload(reference, settings)

    def _scored(self, role: Any, settings: Any, data: DataProto, key: str) -> DataProto:
        self._load(role, settings)
        log_probs_BT = role.compute_log_prob(data)
        self._offload(role, settings)
        return DataProto.from_dict({key: log_probs_BT})

    def compute_values(self, data: DataProto) -> DataProto:
        """``values`` (B, T) of the critic."""
        settings = self.config.worker.critic.offload
        self._load(self.critic, settings)
        values_BT = self.critic.compute_values(data)
        self._offload(self.critic, settings)
        return DataProto.from_dict({"values": values_BT})

    def update_actor(self, data: DataProto) -> DataProto:
        """Train the actor. Returns ``log_probs`` (B, T) of the first pass; metrics in ``meta_info["metrics"]``."""
        settings = self.config.worker.actor.offload
        self._load(self.actor, settings, optimizer=True)
        # Dropout, if the model has any, follows from step and rank, so a checkpoint needs no random state.
        torch.manual_seed(self.config.data.seed * 1_000_003 + data.meta_info["step"] * 1_009 + self.rank)
        with self._reference_beside_actor():
            metrics, log_probs_BT = self.actor.update_policy(data)
        self._offload(self.actor, settings)
        metrics = {f"actor/{name}": value for name, value in metrics.items()} | {
            f"perf/peak_memory_{name}": value for name, value in self._peaks().items()
        }
        return DataProto.from_dict({"log_probs": log_probs_BT}, meta_info={"metrics": metrics})

    def update_critic(self, data: DataProto) -> dict[str, float]:
        """Train the critic; returns its metrics."""
        settings = self.config.worker.critic.offload
        self._load(self.critic, settings, optimizer=True)
        metrics = self.critic.update_critic(data)
        self._offload(self.critic, settings)
        return {f"critic/{name}": value for name, value in metrics.items()}

    def save_checkpoint(self, folder: str, model_only: bool) -> None:
        """Write ``<folder>/actor`` (and ``critic``): the training state in shards, and a Hugging Face folder."""
        from ..models.checkpointing import save_role

        with write_errors(folder):
            for name, role in self._trained_roles().items():
                settings = getattr(self.config.worker, name).offload
                self._load(role, settings, optimizer=True)
                model = self.config.worker.model_of(name)
                save_role(role, Path(folder) / name, self.tokenizer, model, model_only=model_only)
                self._offload(role, settings)

    def load_checkpoint(self, folder: str) -> None:
        """Take over the training state that ``save_checkpoint`` wrote, on any number of ranks."""
        from ..models.checkpointing import load_role

        for name, role in self._trained_roles().items():
            settings = getattr(self.config.worker, name).offload
            self._load(role, settings, optimizer=True)
            load_role(role, Path(folder) / name)
            self._offload(role, settings)

    def _peaks(self) -> dict[str, float]:
        """Peak memory of the rank that needed most, and of the one that needed least."""
        peak = self.memory.peak_gib()
        extremes = torch.tensor([peak, -peak], device=self.device)
        dist.all_reduce(extremes, dist.ReduceOp.MAX)
        most, least = extremes.tolist()
        return {"gib": most, "least_rank_gib": -least}

    def _trained_roles(self) -> dict[str, Any]:
        return {"actor": self.actor} | ({"critic": self.critic} if self.critic else {})


def _kept(settings: BatchConfig) -> str:
    """The type that trained weights are kept in."""
    return "bf16" if settings.optim.strategy == "adamw_bf16" else "fp32"
