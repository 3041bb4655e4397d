"""Makes the samples of a step: draws prompts, has them answered and scored, keeps the groups worth learning from."""

import logging
from itertools import count
from typing import Any

import numpy as np
import ray
import torch

from ..protocol import DataProto, object_array, pad_dataproto_to_divisor
from ..single_controller import WorkerGroup
from ..utils.dataset import RLHFDataset
from ..utils.errors import DataError
from ..workers.reward.function import RewardError, RewardWorker
from .config import PPOConfig
from .data_loader import PromptLoader, prompt_batch
from .metrics import Timer, reward_metrics

logger = logging.getLogger(__name__)


class TrainingError(RuntimeError):
    """The run cannot go on; the message names the step."""


class ExperienceMaker:
    """Samples and scores with the ranks' engines and the reward process.

    Args:
        workers: the ranks; ``generate_sequences`` is called on them.
        loader: where prompts come from.
        noisy: the loader's rows with ``data.extra_prompt`` in front, for ``noise_rollout`` samples of each group.
    """

    def __init__(
        self,
        config: PPOConfig,
        tokenizer: Any,
        workers: WorkerGroup,
        loader: PromptLoader,
        noisy: RLHFDataset | None = None,
    ) -> None:
        self.config, self.tokenizer, self.workers, self.loader = config, tokenizer, workers, loader
        self.noisy = noisy
        reward = config.worker.reward
        self.reward = ray.remote(num_cpus=reward.num_cpus)(RewardWorker).remote(reward)
        self.reward_errors = 0

    def collect(self, step: int, timer: Timer, metrics: dict[str, float]) -> DataProto:
        """A batch of scored samples; online filtering draws prompts until enough informative groups are in."""
        data, algorithm = self.config.data, self.config.algorithm
        wanted = data.rollout_batch_size * self.config.worker.rollout.n
        draw = data.mini_rollout_batch_size if algorithm.online_filtering else None
        kept, rewards, splits = [], [], []
        for attempt in count(1):
            samples = self._sample_and_score(self.loader.next(draw or data.rollout_batch_size), step, timer)
            rewards += list(samples.non_tensor_batch["reward"])
            splits += list(samples.non_tensor_batch["split"])
            kept.append(self._informative(samples) if algorithm.online_filtering else samples)
            if sum(map(len, kept)) >= wanted:
                break
            if attempt == self.config.trainer.max_try_make_batch:
                raise TrainingError(
                    f"step {step}: after {attempt} draws online filtering has kept {sum(map(len, kept))} of "
                    f"{wanted} samples; widen algorithm.filter_low/filter_high, or raise trainer.max_try_make_batch"
                )
        metrics |= reward_metrics(rewards, splits)
        if algorithm.online_filtering:
            metrics |= {"filter/draws": attempt, "filter/kept": sum(map(len, kept)) / len(rewards)}
        return DataProto.concat([part for part in kept if len(part)])[:wanted]

    def _sample_and_score(self, prompts: DataProto, step: int, timer: Timer) -> DataProto:
        """Rows with ``token_level_scores`` (B, T) and their ``reward`` parts; for ReMax also ``reward_baselines``."""
        settings = self.config.worker.rollout
        with timer("gen"):
            samples = self._sample(prompts, step)
        with timer("reward"):
            scores = self.score(samples, step)
            samples.non_tensor_batch["reward"] = object_array(scores)
            totals = [score["overall"] for score in scores]
            samples.batch["token_level_scores"] = on_last_token(totals, samples.batch["response_mask"])
        if self.config.algorithm.adv_estimator == "remax":
            with timer("baseline"):
                greedy = self.score(self.generate(prompts, step, n=1, temperature=0.0), step)
                baselines = torch.tensor([score["overall"] for score in greedy])
                samples.batch["reward_baselines"] = baselines.repeat_interleave(settings.n)
        return samples

    def _sample(self, prompts: DataProto, step: int) -> DataProto:
        """n samples of each prompt side by side, the last ``noise_rollout`` of them from the prompt's noisy twin."""
        settings = self.config.worker.rollout
        noise = settings.noise_rollout
        clean = self.generate(prompts, step, n=settings.n - noise, temperature=settings.temperature)
        if not noise:
            return clean
        twins = prompt_batch([self.noisy[row] for row in prompts.non_tensor_batch["row"]], "noisy")
        noisy = self.generate(twins, step, n=noise, temperature=settings.temperature)
        noisy.non_tensor_batch["uid"] = prompts.non_tensor_batch["uid"].repeat(noise)  # one group with the clean ones
        both = DataProto.concat([clean, noisy])
        owners = [np.repeat(np.arange(len(prompts)), count) for count in (settings.n - noise, noise)]
        return both[np.argsort(np.concatenate(owners), kind="stable")]

    def generate(
        self,
        prompts: DataProto,
        step: int,
        *,
        n: int,
        temperature: float,
        top_p: float | None = None,
        top_k: int | None = None,
    ) -> DataProto:
        """Responses to P prompts on all engines: P * n rows, the prompts' other columns repeated beside them."""
        settings = self.config.worker.rollout
        tensors = ["input_ids", "attention_mask", "position_ids"]
        request = prompts.select(tensors, ["raw_prompt_ids", "uid"], meta_info_keys=[])
        request, _ = pad_dataproto_to_divisor(request, self.config.rollout_replicas)
        request.meta_info = {
            "n": n,
            "temperature": temperature,
            "top_p": settings.top_p if top_p is None else top_p,
            "top_k": settings.top_k if top_k is None else top_k,
            "step": step,
        }
        shares = self.workers.split("generate_sequences", request, settings.tensor_parallel_size)
        samples = DataProto.concat(shares)[: len(prompts) * n]
        columns = prompts.select(batch_keys=[]).repeat(n, interleave=True).non_tensor_batch
        return DataProto(samples.batch, columns)

    def score(self, samples: DataProto, step: int) -> list[dict[str, float]]:
        """The reward function's parts for every sample.

        Raises:
            TrainingError: the function raised or returned no reward, unless such errors are tolerated.
        """
        inputs = self.reward_inputs(samples)
        try:
            return ray.get(self.reward.score.remote(inputs))
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            if not isinstance(cause, RewardError | DataError):
                raise
            if isinstance(cause, DataError) or not self.config.trainer.tolerate_reward_errors:
                raise TrainingError(f"step {step}: {cause}") from error
            self.reward_errors += 1
            logger.error("step %d: %s; the batch counts 0 (error %d)", step, cause, self.reward_errors)
            return [dict.fromkeys(("overall", self.config.algorithm.filter_key), 0.0) for _ in inputs]

    def reward_inputs(self, samples: DataProto) -> list[dict[str, Any]]:
        """What the reward function sees of every sample."""
        responses = self.decode(samples)
        lengths = samples.batch["response_mask"].sum(dim=1).tolist()
        columns = samples.non_tensor_batch
        return [
            {
                **columns["extra"][i],
                "response": responses[i],
                "response_length": lengths[i],
                "ground_truth": columns["ground_truth"][i],
                "prompt": columns["prompt"][i],
                "split": columns["split"][i],
            }
            for i in range(len(samples))
        ]

    def decode(self, samples: DataProto) -> list[str]:
        """The text of every response."""
        skip = self.config.worker.reward.skip_special_tokens
        lengths = samples.batch["response_mask"].sum(dim=1).tolist()
        ids = [row[:length] for row, length in zip(samples.batch["responses"].tolist(), lengths, strict=True)]
        return self.tokenizer.batch_decode(ids, skip_special_tokens=skip)

    def _informative(self, samples: DataProto) -> DataProto:
        """The groups whose mean reward lies strictly inside the filter's bounds."""
        algorithm, groups = self.config.algorithm, {}
        for row, uid in enumerate(samples.non_tensor_batch["uid"]):
            groups.setdefault(uid, []).append(row)
        rewards = samples.non_tensor_batch["reward"]
        if algorithm.filter_key not in rewards[0]:
            known = ", ".join(rewards[0])
            raise TrainingError(
                f"algorithm.filter_key={algorithm.filter_key}: the reward has no such part; it has {known}"
            )
        rows = []
        for members in groups.values():
            mean = sum(rewards[row][algorithm.filter_key] for row in members) / len(members)
            if algorithm.filter_low < mean < algorithm.filter_high:
                rows += members
        return samples[rows]


def on_last_token(scores: list[float], mask_BT: torch.Tensor) -> torch.Tensor:
    """(B, T) zeros with each sample's score at its last response token."""
    scores_BT = torch.zeros(mask_BT.shape)
    last_B = mask_BT.sum(dim=1).clamp(min=1) - 1
    return scores_BT.scatter(1, last_B[:, None], torch.tensor(scores, dtype=torch.float32)[:, None])
