"""Makes the samples of a step: draws prompts, has them answered and scored, keeps the groups worth learning from.

A phase of sampling hands the actor's weights to the engines once, however often it samples.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

import numpy as np
import ray
import torch

from ..config.run import PPOConfig
from ..protocol import DataProto, object_array, pad_dataproto_to_divisor
from ..single_controller import WorkerGroup
from ..utils.chat import written_end
from ..utils.errors import DataError
from ..workers.reward.function import RewardError
from ..workers.reward.processes import RewardProcesses, Scoring
from .data_loader import PromptLoader, prompt_batch
from .dataset import RLHFDataset
from .metrics import Timer, group_metrics, reward_metrics

logger = logging.getLogger(__name__)


class TrainingError(RuntimeError):
    """The run cannot go on; the message names the step."""


class ExperienceMaker:
    """Samples and scores with the ranks' engines and the reward process.

    Args:
        workers: the ranks; ``open_engine``, ``generate_sequences`` and ``close_engine`` are called on them.
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
        self.rewards = RewardProcesses(config.worker.reward)
        self.reward_errors = 0
        self.pending: list[Scoring] = []  # of the samples of ``collect``, and under ReMax of their greedy responses
        self.handed_over: dict[str, float] = {}  # since the last ``collect``: perf/weight_syncs, and what they gathered

    @contextmanager
    def sampling(self, timer: Timer) -> Iterator[None]:
        """A phase in which the engines sample with the actor's weights of now, handed over once.

        The engines close behind it, and on an error that is not the ranks' own: one that hangs in a collective would
        never answer. Such an error ends the run, and with it the ranks.
        """
        with timer("sync"):
            self.workers.all("open_engine")
        try:
            yield
        except TrainingError:
            self.workers.all("close_engine")
            raise
        for name, value in self.workers.all("close_engine")[0].items():
            self.handed_over[f"perf/{name}"] = self.handed_over.get(f"perf/{name}", 0.0) + value

    def collect(self, step: int, timer: Timer, metrics: dict[str, float]) -> DataProto:
        """A batch of samples whose scores are on their way (``add_rewards``), or there under online filtering."""
        self.handed_over = {}
        with self.sampling(timer):
            if self.config.algorithm.online_filtering:
                return self._collect_informative(step, timer, metrics)
            prompts = self.loader.next(self.config.data.rollout_batch_size)
            return self._sample(prompts, step, timer)

    def _collect_informative(self, step: int, timer: Timer, metrics: dict[str, float]) -> DataProto:
        """Scored samples; prompts are drawn until enough groups whose rewards teach something are in."""
        data, config = self.config.data, self.config
        wanted = data.rollout_batch_size * config.worker.rollout.n
        draw = data.mini_rollout_batch_size or data.rollout_batch_size
        columns: dict[str, list[Any]] = {"reward": [], "split": [], "uid": []}  # of all samples, dropped ones too
        kept = []
        for attempt in count(1):
            samples = self._sample_and_score(self.loader.next(draw), step, timer)
            for key, values in columns.items():
                values += list(samples.non_tensor_batch[key])
            kept.append(self._informative(samples))
            if sum(map(len, kept)) >= wanted:
                break
            if attempt == config.trainer.max_try_make_batch:
                raise TrainingError(
                    f"step {step}: after {attempt} draws online filtering has kept {sum(map(len, kept))} of "
                    f"{wanted} samples; widen algorithm.filter_low/filter_high, or raise trainer.max_try_make_batch "
                    "(groups whose rewards are all equal are never kept)"
                )
        rewards = columns["reward"]
        metrics |= reward_metrics(rewards, columns["split"]) | group_metrics(rewards, columns["uid"])
        metrics |= {"filter/draws": attempt, "filter/kept": sum(map(len, kept)) / len(rewards)}
        return DataProto.concat([part for part in kept if len(part)])[:wanted]

    def _sample_and_score(self, prompts: DataProto, step: int, timer: Timer) -> DataProto:
        """Rows as ``add_rewards`` leaves them."""
        samples = self._sample(prompts, step, timer)
        with timer("reward"):
            self.add_rewards(samples, step, {})
        return samples

    def _sample(self, prompts: DataProto, step: int, timer: Timer) -> DataProto:
        """Samples that are being scored, and so are ReMax's greedy responses; ``sample`` is a row's place there."""
        with timer("gen"):
            samples = self._clean_and_noisy(prompts, step)
        timer.generated += int(samples.batch["response_mask"].sum())
        samples.non_tensor_batch["sample"] = object_array(range(len(samples)))
        self.pending = [self.rewards.start(self.reward_inputs(samples))]
        if self.config.algorithm.adv_estimator == "remax":
            with timer("baseline"):
                greedy = self.generate(prompts, step, n=1, temperature=0.0)
            self.pending.append(self.rewards.start(self.reward_inputs(greedy)))
        return samples

    def add_rewards(self, batch: DataProto, step: int, metrics: dict[str, float]) -> None:
        """Wait for the scores of a batch from ``collect``, whose rows may lie in another order by now.

        Adds ``token_level_scores`` (B, T) and the ``reward`` parts; for ReMax also ``reward_baselines`` (B,).
        """
        if not self.pending:  # online filtering has them already
            return
        scores, *baselines = [self.wait_for(scoring, step) for scoring in self.pending]
        self.pending = []
        places = list(batch.non_tensor_batch.pop("sample"))
        batch.non_tensor_batch["reward"] = object_array(scores[place] for place in places)
        totals = [scores[place]["overall"] for place in places]
        batch.batch["token_level_scores"] = on_last_token(totals, batch.batch["response_mask"])
        for greedy in baselines:
            greedy_P = torch.tensor([score["overall"] for score in greedy])
            batch.batch["reward_baselines"] = greedy_P[torch.tensor(places) // self.config.worker.rollout.n]
        ordered = np.argsort(places)  # means do not depend on how rows were shared out over the ranks
        splits, uids = (list(batch.non_tensor_batch[key][ordered]) for key in ("split", "uid"))
        metrics |= reward_metrics(scores, splits) | group_metrics(scores, uids)

    def _clean_and_noisy(self, prompts: DataProto, step: int) -> DataProto:
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

    def wait_for(self, scoring: Scoring, step: int) -> list[dict[str, float]]:
        """The reward function's parts for every sample.

        Raises:
            TrainingError: the function raised or returned no reward, unless such errors are tolerated; or its process
                died.
        """
        try:
            return scoring.wait()
        except ray.exceptions.RayActorError as error:
            raise TrainingError(f"step {step}: a reward process died: {error}") from error
        except (RewardError, DataError) as error:
            if isinstance(error, DataError) or not self.config.trainer.tolerate_reward_errors:
                raise TrainingError(f"step {step}: {error}") from error
            self.reward_errors += 1
            logger.error("step %d: %s; the batch counts 0 (error %d)", step, error, self.reward_errors)
            return [dict.fromkeys(("overall", self.config.algorithm.filter_key), 0.0) for _ in scoring.inputs]

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
        if skip:  # some vocabularies do not call the end of a turn special
            end = written_end(self.tokenizer, self.config.data.chat_template_kwargs)[-1:]
            ids = [row[:-1] if row[-1:] == end else row for row in ids]
        return self.tokenizer.batch_decode(ids, skip_special_tokens=skip)

    def _informative(self, samples: DataProto) -> DataProto:
        """The groups whose rewards differ and have a mean strictly inside the filter's bounds.

        A group of one sample has nothing to differ from.
        """
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
            values = [rewards[row][algorithm.filter_key] for row in members]
            differ = len(values) == 1 or len(set(values)) > 1
            if differ and algorithm.filter_low < sum(values) / len(values) < algorithm.filter_high:
                rows += members
        return samples[rows]


def on_last_token(scores: list[float], mask_BT: torch.Tensor) -> torch.Tensor:
    """(B, T) zeros with each sample's score at its last response token."""
    scores_BT = torch.zeros(mask_BT.shape)
    last_B = mask_BT.sum(dim=1).clamp(min=1) - 1
    return scores_BT.scatter(1, last_B[:, None], torch.tensor(scores, dtype=torch.float32)[:, None])


def add_gold(batch: DataProto, gold: Mapping[int, Sequence[int]]) -> None:
    """Add ``gold`` (B, T): beside the first sample of every prompt the token ids of its gold answer, else -1.

    Args:
        gold: token ids by a row's number, T at most; none for rows without an answer.
    """
    gold_BT, seen = torch.full_like(batch.batch["responses"], -1), set()
    for i, (uid, row) in enumerate(zip(batch.non_tensor_batch["uid"], batch.non_tensor_batch["row"], strict=True)):
        if uid not in seen and (ids := gold.get(row)):
            gold_BT[i, : len(ids)] = torch.tensor(ids)
        seen.add(uid)
    batch.batch["gold"] = gold_BT
