"""The evaluator's settings. Light: parsing them imports neither torch nor vLLM."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from ..settings.path_types import PathText, folder_problem
from .judge import JudgeConfig
from .muse.config import MuseConfig

PromptStyle = Literal["plain", "rwku"]


@dataclass(frozen=True)
class EvalConfig:
    """One checkpoint, one benchmark, one folder of numbers."""

    model: PathText
    """Checkpoint: a Hugging Face folder or hub id."""
    suite: Literal["rwku", "muse", "atlas", "validation"]
    """Benchmark. ``atlas`` is RWKU's forget and neighbor parts plus Atlas' own utility probes; ``validation`` asks the
    validation rows of a target, as training asks."""
    data: PathText
    """Folder of the target (RWKU, Atlas) or of the corpus (MUSE), or a folder of such folders: each is measured."""
    out: PathText
    """Folder for parts/*.jsonl, results.json and, last, DONE; with several targets for a folder of these per target."""
    parts: list[str] | None = None
    """Parts to measure; null means all of the suite. Finished parts are not measured again."""
    prompt_style: PromptStyle | None = None
    """How RWKU probes are asked. ``rwku``: an instruction, the question and an opened "Answer:", as the benchmark does;
    ``plain``: the question alone, as RULE trains. null means ``plain`` for atlas and ``rwku`` otherwise."""
    prompts: PathText | None = None
    """YAML file with the words of RWKU's prompts, the benchmark's own for example; null: ours (verl/eval/prompts.yaml,
    which says what the keys are). Probes asked plainly have no words besides their own."""
    system_prompt: str | None = None
    """A system message before every prompt of every part that asks something: for in-context unlearning (ICU) and
    robustness studies. Raw texts (MIA, PrivLeak) have none; MUSE's raw prompts get it as a paragraph in front."""
    shots: int = 0
    """Answered questions about the target in front of every forget and neighbor probe: the few-shot attack. They are
    other FB and QA probes, none of which gives away the answer that is asked for."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """What the chat template is rendered with besides the messages, for example {enable_thinking: false}. What a model
    thinks (<think>...</think>) is never scored."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Arithmetic of both engines. ``auto``: bfloat16 on a GPU, float32 without one, whatever the checkpoint holds, so
    that all rows of a table are computed alike."""
    quantization: str | None = None
    """A vLLM weight quantisation, such as ``bitsandbytes`` or ``fp8``; parts that need likelihoods refuse it."""
    max_model_len: int | None = None
    """Tokens of prompt and answer together; null means the model's positions, at most 8192."""
    tensor_parallel_size: int = 1
    """GPUs the generating engine is split over."""
    gpu_memory_utilization: float = 0.6
    """Share of each GPU's memory the generating engine may take."""
    token_budget: int = 16384
    """Padded tokens a likelihood batch may have. Changes speed and memory, not values."""
    bootstrap_samples: int = 1000
    """Resamples behind each 95 % confidence interval."""
    seed: int = 0
    """Seed of the bootstrap. Decoding is greedy and has none."""
    trust_remote_code: bool = False
    """Run code that a checkpoint brings along."""
    muse: MuseConfig = field(default_factory=MuseConfig)
    """Settings of the MUSE suite."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    """The judge of the naturalness part, which the RWKU and Atlas suites have once ``judge.base_url`` is set."""

    def asks(self) -> PromptStyle:
        """The prompt style in force."""
        return self.prompt_style or ("plain" if self.suite in ("atlas", "validation") else "rwku")

    def problems(self) -> list[str]:
        rules = {
            "bootstrap_samples": self.bootstrap_samples >= 1,
            "token_budget": self.token_budget >= 1,
            "tensor_parallel_size": self.tensor_parallel_size >= 1,
            "max_model_len": self.max_model_len is None or self.max_model_len >= 1,
        }
        out = [f"{key}={getattr(self, key)}: must be at least 1" for key, holds in rules.items() if not holds]
        if reason := folder_problem(Path(self.out)):
            out.append(f"out={self.out}: {reason}")
        for key in ("seed", "shots"):
            if getattr(self, key) < 0:
                out.append(f"{key}={getattr(self, key)}: must be 0 or greater")
        if not 0 < self.gpu_memory_utilization <= 1:
            out.append(f"gpu_memory_utilization={self.gpu_memory_utilization}: must be in (0, 1]")
        if self.parts is not None and not self.parts:
            out.append("parts=[]: names nothing to measure; leave the key out to measure all parts")
        return out + self._inert()

    def _inert(self) -> list[str]:
        """Settings that the suite does not read."""
        muse, other = self.suite == "muse", self.suite in ("muse", "validation")
        idle = {
            "prompt_style": other and self.prompt_style is not None,
            "prompts": (other or (self.suite == "atlas" and self.asks() == "plain")) and self.prompts is not None,
            "shots": other and self.shots > 0,
            "judge.base_url": other and self.judge.base_url is not None,
            "muse": not muse and self.muse != MuseConfig(),
        }
        return [
            f"{key}: does nothing with suite={self.suite}{' asked plainly' * (key == 'prompts')}; leave it out"
            for key, is_idle in idle.items()
            if is_idle
        ]


@dataclass(frozen=True)
class EvalCommand(EvalConfig):
    """One benchmark and one folder of data, and one checkpoint or several, which share the engines."""

    model: PathText | list[PathText]
    """Checkpoint: a Hugging Face folder or hub id. Or a list of several: those that differ in their weights alone share
    one engine."""
    out: PathText | list[PathText]
    """Folder for parts/*.jsonl, results.json and, last, DONE; with several targets for a folder of these per target. Of
    several checkpoints a list, a folder for each."""

    def each(self) -> list[EvalConfig]:
        """An evaluation of each checkpoint."""
        shared = {item.name: getattr(self, item.name) for item in fields(EvalConfig)}
        pairs = zip(_listed(self.model), _listed(self.out), strict=True)
        return [EvalConfig(**{**shared, "model": model, "out": out}) for model, out in pairs]

    def problems(self) -> list[str]:
        models, outs = _listed(self.model), _listed(self.out)
        if not models:
            return ["model=[]: names no checkpoint; give at least one"]
        if len(models) != len(outs):
            return [f"out={self.out}: must be a folder for each of {len(models)} model(s), in the same order"]
        if len({Path(out).resolve() for out in outs}) < len(outs):
            return [f"out={self.out}: names a folder twice; give each model a folder of its own"]
        return list(dict.fromkeys(problem for one in self.each() for problem in one.problems()))


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value
