"""Steps of TRL's GRPOTrainer, timed by phase: the peer that ours are compared with, in its best documented settings.

- Sampling: vLLM in the same process on a GPU. TRL's vLLM needs one, so on a CPU transformers samples, all prompts of a
  step in one batch with a KV cache (TRL's default).
- Weights and optimiser in fp32 (TRL's default), arithmetic in bf16 by autocast where that is fast (``bf16``): what ours
  does. Weights in bf16 would spare the casts and lose most of every update.
- ``gradient_checkpointing`` off where memory allows, TRL's default is on. Fused AdamW and SDPA attention are defaults.
- Not to be had on a CPU: Liger's kernels (Triton), flash attention. ``torch_compile`` compiles anew for every shape.
- Not transformers' continuous batching: under bf16 TRL casts the trained weights for it, and does not cast them back.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PHASES = {"gen": "_generate", "reward": "_calculate_rewards", "ref": "_get_per_token_logps_and_entropies"}
"""a phase and the trainer's method that is it; log-probabilities with a gradient are part of the update"""
SAMPLING = "_generate_and_score_completions"
"""the method that is all of a step but the update"""

FIXED = {
    "beta": 0.01,
    "report_to": [],
    "save_strategy": "no",
    "logging_steps": 100000,
    "disable_tqdm": True,
}
"""what every run has: a KL to the reference, and nothing but steps"""


def trl_settings(*, on_gpu: bool, fast_bf16: bool, longest: int) -> dict[str, Any]:
    """Fields of GRPOConfig for this machine.

    Args:
        longest: tokens of a prompt with its response.
    """
    if not on_gpu:
        return {"use_cpu": True, "bf16": fast_bf16, "gradient_checkpointing": False}
    return {
        "bf16": fast_bf16,
        "gradient_checkpointing": True,
        "use_vllm": True,
        "vllm_mode": "colocate",
        "vllm_gpu_memory_utilization": 0.4,
        "vllm_max_model_length": longest,
        "generation_kwargs": {"ignore_eos": True},
    }


def nothing(*_: Any) -> None:
    """Neither waits nor tells."""


def trl_steps(
    model: str,
    tokenizer: Any,
    prompts: list[Any],
    output: Path,
    *,
    prompts_a_step: int,
    rollouts: int,
    tokens: int,
    micro: int,
    steps: int,
    before: Callable[[], None] = nothing,
    after: Callable[[dict[str, float], int], None] = nothing,
    **settings: Any,
) -> list[dict[str, float]]:
    """Seconds of each step: ``step``, ``gen``, ``reward``, ``ref``, ``update``. KL to a reference in the loss; every
    response is ``tokens`` long.

    Args:
        model: the folder of a model, which the reference is read from, too.
        prompts: texts, or conversations.
        micro: samples of a forward and backward pass.
        before, after: called before a step, outside its time; with its seconds and the tokens of all samples so far.
        settings: other fields of GRPOConfig.
    """
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    found: list[dict[str, float]] = []
    seconds: dict[str, float] = {}

    def note(figures: dict[str, float], seen: int) -> None:
        found.append(figures)
        after(figures, seen)

    config = {
        "output_dir": str(output),
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": prompts_a_step * rollouts // micro,
        "num_generations": rollouts,
        "max_completion_length": tokens,
        "max_steps": steps,
    }
    if not settings.get("use_vllm"):
        config["generation_kwargs"] = {"min_new_tokens": tokens}
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **_: [float(len(str(text)) % 7) for text in completions],
        args=GRPOConfig(**FIXED | config | settings),
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
        processing_class=tokenizer,
        callbacks=[stopwatch(seconds, before, note)],
    )
    for name, method in [*PHASES.items(), (SAMPLING, SAMPLING)]:
        time_method(trainer, name, method, seconds)
    trainer.train()
    return found


def stopwatch(seconds: dict[str, float], before: Callable[[], None], note: Callable[[dict[str, float], int], None]):
    """A callback of transformers' trainer that notes each step, whose methods add to ``seconds``."""
    from transformers import TrainerCallback

    class Stopwatch(TrainerCallback):
        def on_step_begin(self, *_, **__):
            before()
            seconds.clear()
            self.start = time.perf_counter()

        def on_step_end(self, _, state, *__, **___):
            step = time.perf_counter() - self.start
            phases = {name: seconds.get(name, 0.0) for name in PHASES}
            note({"step": step, **phases, "update": step - seconds[SAMPLING]}, int(state.num_input_tokens_seen))

    return Stopwatch()


def time_method(trainer: Any, name: str, method: str, seconds: dict[str, float]) -> None:
    """Add what calls of the trainer's method take to ``seconds[name]``; of ``ref`` those without gradients count."""
    import torch

    inner = getattr(trainer, method)

    def timed(*arguments: Any, **named: Any) -> Any:
        start, counts = time.perf_counter(), name != "ref" or not torch.is_grad_enabled()
        result = inner(*arguments, **named)
        if counts:
            seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start
        return result

    setattr(trainer, method, timed)
