"""Settings of a Rejection Steering run, with the names that LLaMA-Factory and Hugging Face users know.

The files that they name, and the rows in them, are judged by ``RS.checks``.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from verl.config.worker import Dtype, not_negative, positive, seed_problems
from verl.settings.path_types import PathText, Sources, TemplateText
from verl.utils.environment import whole_variable

Objective = Literal[
    "rejection",
    "ga",
    "npo",
    "simnpo",
    "dpo",
    "altpo",
    "wga",
    "satimp",
    "undial",
    "ceu",
    "rmu",
    "task_vector",
    "whp",
]
OWN: dict[str, dict[str, Any]] = {
    "npo": {"beta": 0.1},
    "simnpo": {"beta": 2.5, "gamma": 0.0},
    "dpo": {"beta": 0.1, "rejected_key": "answer"},
    "altpo": {"beta": 0.1, "rejected_key": "answer"},
    "wga": {"alpha": 1.0},
    "satimp": {"beta": 5.0, "beta2": 1.0},
    "undial": {"gamma": 10.0},
    "rmu": {"steering": 20.0, "layer": None},
    "task_vector": {"alpha": 1.0},
    "whp": {"alpha": 5.0, "reinforced_model": None},
}
"""settings that only some objectives read, and what null means there; for any other objective they must be null"""


@dataclass(frozen=True)
class RSConfig:
    model: PathText
    """Hugging Face folder or hub id of the model to train"""
    data: Sources | list[Sources]
    """training rows: a JSON, JSONL or parquet file, a folder, a hub id (``name@split``), or several"""
    output_dir: PathText
    """where ``epoch_<k>/``, ``metrics.jsonl``, ``config.yaml`` and, last, DONE are written"""
    objective: Objective = "rejection"
    """what is minimised on ``data``: ``rejection`` is supervised fine-tuning; the others are the papers' baselines
    (docs/methods.md)"""
    retain_loss: Literal["none", "gdr", "klr", "hidden"] = "none"
    """what is added on ``retain_data``: its likelihood (gdr), the KL from the original model to the trained (klr), or
    the distance between their hidden states (hidden; rmu's)"""
    retain_weight: float = 1.0
    """weight of the retain loss"""
    retain_data: Sources | list[Sources] | None = None
    """rows to keep; of RL rows the ``<normal>`` ones. As many are drawn each step as forget rows"""
    response_key: str | None = None
    """column trained on instead of ``output`` (alpaca rows), the solution (RL rows) or the assistant's last turn
    (``messages``); for example ``answer``"""
    rejected_key: str | None = None
    """dpo, altpo: column of the dispreferred response; null: ``answer``"""
    alpha: float | None = None
    """wga: exponent of a token's probability (null: 1); task_vector: how far to go back beyond the original (1); whp:
    strength of the correction (5)"""
    beta: float | None = None
    """npo, dpo, altpo, simnpo: inverse temperature (null: 0.1; simnpo 2.5); satimp: exponent of a token's probability
    (5)"""
    beta2: float | None = None
    """satimp: exponent of one minus a token's probability (null: 1)"""
    gamma: float | None = None
    """simnpo: margin (null: 0); undial: what is taken from a token's logit (10)"""
    layer: int | None = None
    """rmu, retain_loss=hidden: the layer, from 0, whose output is steered and kept; null: a quarter of the way up"""
    steering: float | None = None
    """rmu: length of the vector that hidden states are steered to (null: 20)"""
    reinforced_model: PathText | None = None
    """whp: the model after further training on what must be forgotten (RS/configs/reinforce.yaml)"""
    system_prompt: str | None = None
    """a system message before every prompt that has none of its own"""
    override_chat_template: TemplateText | None = None
    """jinja chat template instead of the tokenizer's: a path ending in .jinja, or the text itself"""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """further arguments of the chat template, for example ``{enable_thinking: false}``; one that the template does not
    read is an error"""
    cutoff_len: int = 512
    """tokens of the longest example: responses are cut there, rows whose prompt leaves no room are dropped"""
    num_train_epochs: int = 3
    """passes over ``data``"""
    batch_size: int = 8
    """EXAMPLES of an optimiser step, over all ranks and micro-batches together"""
    micro_batch_size: int | Literal["auto"] = "auto"
    """examples of a forward and backward pass on one rank, at most; ``auto``: as many as fill 1,024 tokens on a CPU and
    4,096 on a GPU. Changes memory and speed, not the result"""
    learning_rate: float = 1e-5
    """peak learning rate"""
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "cosine"
    """shape after warm-up; linear and cosine end at 0"""
    warmup_steps: int | None = None
    """warm-up in optimiser steps; wins over the ratio"""
    warmup_ratio: float = 0.0
    """warm-up as a share of all optimiser steps"""
    weight_decay: float = 0.0
    """decoupled weight decay"""
    max_grad_norm: float = 1.0
    """gradients are scaled down to this norm"""
    optimizer: Literal["adamw", "adamw_bf16"] = "adamw"
    """``adamw_bf16``: bf16 weights with their lower 16 bits beside them, three quarters of the memory"""
    precision: Dtype = "bf16"
    """type of the arithmetic, the weights staying fp32; ``auto``: bf16 where the hardware is faster at it"""
    lora_rank: int = 0
    """rank of LoRA adapters, which are merged into every saved model; 0 trains all weights"""
    lora_alpha: int = 16
    """scale of the adapters is alpha / rank"""
    lora_target: str | list[str] = "all-linear"
    """modules that get adapters: ``all-linear``; names, as a list or separated by commas, each of one module or the end
    of several modules' names (``q_proj``); or a regular expression for whole names"""
    gradient_checkpointing: bool = False
    """recompute activations in the backward pass"""
    padding_free: bool = True
    """pack sequences without padding"""
    fsdp_size: int = -1
    """ranks that share one copy of the weights (FSDP2); -1: all; 1: every rank has its own, as in DDP"""
    max_skipped_steps: int = 3
    """steps with a non-finite loss or gradient that are skipped; one more ends the run"""
    seed: int = 1
    """seed of the order of the rows and of new adapters"""
    trust_remote_code: bool = False
    """run code that comes with the model"""
    dry_run: bool = False
    """print the resolved settings and the plan, write nothing"""

    @property
    def has_pairs(self) -> bool:
        """Whether a row of ``data`` has a preferred and a dispreferred response."""
        return self.objective in ("dpo", "altpo")

    @property
    def needs_reference(self) -> bool:
        """Whether the original model's likelihoods of ``data``, worked out once, are part of the objective."""
        return self.objective == "npo" or self.has_pairs

    @property
    def keeps_original(self) -> bool:
        """Whether the original model runs beside the trained one."""
        return self.objective in ("undial", "whp") or self.retain_loss in ("klr", "hidden")

    @property
    def reads_layer(self) -> bool:
        """Whether the hidden states of a layer are part of the loss."""
        return self.objective == "rmu" or self.retain_loss == "hidden"

    @property
    def pushes_down(self) -> bool:
        """Whether the responses of ``data`` are what must be forgotten."""
        return self.objective != "rejection" and not self.has_pairs

    def own(self, name: str) -> Any:
        """A setting that not every objective reads: as it was set, or what null means for this objective."""
        value = getattr(self, name)
        return OWN[self.objective][name] if value is None else value

    def warmup(self, training_steps: int) -> int:
        """Optimiser steps of warm-up in a run of ``training_steps``."""
        return self.warmup_steps if self.warmup_steps is not None else int(self.warmup_ratio * training_steps)

    def problems(self) -> list[str]:
        found = positive(
            self,
            *(name for name in ("beta", "steering") if getattr(self, name) is not None),
            "cutoff_len",
            "num_train_epochs",
            "batch_size",
            "learning_rate",
            "max_grad_norm",
            "lora_alpha",
        )
        found += seed_problems(self.seed)
        if self.micro_batch_size != "auto":
            found += positive(self, "micro_batch_size")
        found += not_negative(self, "retain_weight", "weight_decay", "lora_rank", "max_skipped_steps")
        found += not_negative(self, "alpha", "beta2", "gamma", "layer")
        if not 0 <= self.warmup_ratio < 1:
            found.append(f"warmup_ratio={self.warmup_ratio}: must lie in [0, 1)")
        ranks = whole_variable("WORLD_SIZE", 1)
        if self.fsdp_size != -1 and (self.fsdp_size < 1 or ranks % self.fsdp_size):
            found.append(f"fsdp_size={self.fsdp_size}: must divide the {ranks} rank(s), or be -1 (all)")
        if self.lora_rank and self.optimizer == "adamw_bf16":
            found.append("optimizer=adamw_bf16: saves memory on full training only; set adamw, or lora_rank=0")
        return found + self._objective_problems()

    def _objective_problems(self) -> list[str]:
        found = []
        if self.retain_loss != "none" and self.retain_data is None:
            found.append(f"retain_loss={self.retain_loss}: needs rows to keep; give retain_data=FILE")
        if self.retain_loss == "none" and self.retain_data is not None:
            found.append(
                f"retain_data={self.retain_data}: is not used; set retain_loss=gdr, klr or hidden, or leave it out"
            )
        if self.objective == "rmu" and self.retain_loss == "none":
            found.append("objective=rmu: spoils what it does not keep; set retain_loss=hidden retain_data=FILE")
        if self.objective == "task_vector" and self.retain_loss != "none":
            found.append(
                f"retain_loss={self.retain_loss}: objective=task_vector would take away what is kept, too; leave it out"
            )
        if self.objective == "whp" and self.reinforced_model is None:
            found.append(
                "objective=whp: needs the model after further training on data; train it with "
                "RS/configs/reinforce.yaml and give reinforced_model=FOLDER"
            )
        read = {*OWN.get(self.objective, ()), *(["layer"] if self.reads_layer else [])}
        for name in sorted({name for names in OWN.values() for name in names} - read):
            if getattr(self, name) is not None:
                readers = ", ".join(objective for objective, names in OWN.items() if name in names)
                found.append(
                    f"{name}={getattr(self, name)}: does nothing with objective={self.objective} (it is {readers}'s); "
                    "leave it out"
                )
        return found
