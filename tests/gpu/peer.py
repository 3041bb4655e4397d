"""Steps of TRL's GRPOTrainer, timed: the peer that ours are compared with."""

import time
from pathlib import Path
from typing import Any

ON_CPU = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False}


def trl_seconds(
    model: Any,
    tokenizer: Any,
    prompts: list[str],
    output: Path,
    *,
    prompts_a_step: int,
    rollouts: int,
    tokens: int,
    micro: int,
    steps: int,
    **settings: Any,
) -> list[float]:
    """Seconds of each step, KL to a reference in the loss. Responses are ``tokens`` long under transformers; vLLM also
    needs ``generation_kwargs={"ignore_eos": True}``.

    Args:
        model: a model, or the folder of one.
        micro: samples of a forward and backward pass.
        settings: other fields of GRPOConfig.
    """
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    seconds: list[float] = []

    class Stopwatch(TrainerCallback):
        def on_step_begin(self, *_, **__):
            self.start = time.perf_counter()

        def on_step_end(self, *_, **__):
            seconds.append(time.perf_counter() - self.start)

    config = {
        "output_dir": str(output),
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": prompts_a_step * rollouts // micro,
        "num_generations": rollouts,
        "max_completion_length": tokens,
        "max_steps": steps,
        "beta": 0.01,
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 1000,
        "disable_tqdm": True,
    }
    if not settings.get("use_vllm"):
        config["generation_kwargs"] = {"min_new_tokens": tokens}
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **_: [float(len(str(text)) % 7) for text in completions],
        args=GRPOConfig(**config | settings),
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
        processing_class=tokenizer,
        callbacks=[Stopwatch()],
    )
    trainer.train()
    return seconds
