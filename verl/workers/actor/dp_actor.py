"""The actor (and, without an optimiser, the reference): log-probabilities of responses, and the policy update.

Under a retain loss a micro-batch has gold answers behind its samples, as further rows of the same pass: they share
prompts, and every rank makes as many passes as the others, wherever the gold answers are.

Shapes: B samples of this rank, b of a micro-batch, g gold answers, S prompt and T response tokens. The algorithms are
``verl.algorithms``'.
"""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch
from tensordict import TensorDict

from ...algorithms.kl import compute_kl, exact_kl
from ...algorithms.losses import loss_weight, masked_aggregate, policy_loss, rollout_weights
from ...config.run import PPOConfig
from ...models.build import as_reference
from ...models.forward import ResponseOutputs, forward_responses
from ...models.log_probs import log_probs_and_entropy
from ...models.ulysses import SequenceParallel
from ...protocol import DataProto
from ..batching import MetricSums, by_micro_batch
from ..stepper import Stepper

FORWARD_KEYS = ["input_ids", "attention_mask", "position_ids", "response_mask", "responses"]


class DataParallelPPOActor:
    """Works on a sharded causal language model.

    Args:
        parallel: the ranks that work on the same samples.
        stepper: the optimiser's side; None for a reference, which may share the actor's module and then works without
            its LoRA adapters.

    ``reference`` is another of these, needed for the exact KL and KLR only; the worker sets it.
    """

    reference: "DataParallelPPOActor | None" = None

    def __init__(
        self,
        config: PPOConfig,
        module: torch.nn.Module,
        *,
        device: torch.device,
        max_tokens_for_experience: int | None,
        parallel: SequenceParallel | None,
        stepper: Stepper | None = None,
    ) -> None:
        self.config, self.module, self.device, self.stepper = config, module, device, stepper
        self.parallel = parallel
        self.max_tokens_for_experience = max_tokens_for_experience
        self.compiled = config.worker.actor.use_torch_compile and device.type == "cuda"

    def _outputs(self, batch: TensorDict, temperature: float) -> ResponseOutputs:
        settings = self.config.worker.actor
        with as_reference(self.module) if self.stepper is None else nullcontext():
            outputs = forward_responses(
                self.module,
                batch,
                padding_free=settings.padding_free,
                share_prompts=settings.share_prompts,
                parallel=self.parallel,
            )
        if temperature != 1.0 and "is_gold" in batch:  # answers are judged as they are, samples as they came
            temperature_bT = torch.where(batch["is_gold"], 1.0, temperature)[:, None].expand(outputs.mask_bT.shape)
            outputs.logits_nV.div_(outputs.pick(temperature_bT)[:, None])
        elif temperature != 1.0:
            outputs.logits_nV.div_(temperature)
        return outputs

    def _forward(self, micro: DataProto) -> tuple[torch.Tensor, torch.Tensor, ResponseOutputs]:
        """(b, T) log-probabilities at the sampling temperature, this rank's (n,) entropies, and where they are from."""
        outputs = self._outputs(micro.batch, self.config.worker.rollout.temperature)
        labels_n = outputs.pick(micro.batch["responses"])
        log_probs_n, entropy_n = log_probs_and_entropy(outputs.logits_nV, labels_n, compiled=self.compiled)
        return outputs.scatter(log_probs_n), entropy_n, outputs

    @torch.no_grad()
    def compute_log_prob(self, data: DataProto) -> torch.Tensor:
        """(B, T) log-probability of every response token, zeros in the padding."""
        self.module.eval()
        return self._by_micro_batch(data, lambda micro: self._forward(micro)[0])

    @torch.no_grad()
    def compute_reference_kl(self, data: DataProto) -> torch.Tensor:
        """(B, T) exact KL to the reference before every response token, zeros in the padding."""
        self.module.eval()
        return self._by_micro_batch(data, lambda micro: self._exact_kl(micro, self._forward(micro)[2]))

    def _by_micro_batch(self, data: DataProto, function: Callable[[DataProto], torch.Tensor]) -> torch.Tensor:
        """(B, T) on the CPU, put together from a function's (b, T)."""
        data = data.select(batch_keys=FORWARD_KEYS, non_tensor_batch_keys=[]).to(self.device)
        return by_micro_batch(data, self.config.worker.actor, self.max_tokens_for_experience, function)

    def _exact_kl(self, micro: DataProto, outputs: ResponseOutputs) -> torch.Tensor:
        """(b, T) KL of the distributions behind ``outputs`` to the reference's."""
        reference = self.reference._outputs(micro.batch, self.config.worker.rollout.temperature)
        return outputs.scatter(exact_kl(outputs.logits_nV, reference.logits_nV))

    @torch.no_grad()
    def score_tokens(self, token_ids: list[int]) -> torch.Tensor:
        """(len - 1,) log-probability of each token after the first, at temperature 1. A collective."""
        ids = torch.tensor([token_ids], device=self.device)
        ones = torch.ones_like(ids)
        batch = {"input_ids": ids, "attention_mask": ones, "position_ids": ones.cumsum(1) - 1}
        self.module.eval()
        outputs = self._outputs({**batch, "response_mask": ones[:, 1:]}, temperature=1.0)
        return outputs.scatter(log_probs_and_entropy(outputs.logits_nV, outputs.pick(ids[:, 1:]))[0])[0].cpu()

    def update_policy(self, data: DataProto) -> tuple[dict[str, float], torch.Tensor]:
        """Train on this rank's share of a batch.

        Args:
            data: FORWARD_KEYS and ``advantages`` (B, T); ``old_log_probs`` unless the step is exactly on-policy;
                ``ref_log_probs`` under a KL loss unless it is exact; ``rollout_log_probs``; ``loss_weights`` (B, T)
                under replay; ``gold`` (B, T) under a retain loss. ``meta_info["kl_coef"]`` is the KL loss's weight now.

        Returns:
            metrics averaged over ranks, and the (B, T) log-probabilities that the first pass saw.
        """
        self.module.train()
        settings = self.config.worker.actor
        data = data.to(self.device)
        data.batch["row"] = torch.arange(len(data), device=self.device)
        log_probs_EBT = torch.zeros(settings.ppo_epochs, *data.batch["responses"].shape, device=self.device)
        sums = MetricSums(self.device)
        for log_probs_BT in log_probs_EBT:
            loss_function = partial(self._loss, kl_coef=data.meta_info["kl_coef"], seen_BT=log_probs_BT)
            for mini in data.split(len(data) // self.config.mini_batches):
                weight = loss_weight(mini.batch["response_mask"], settings.loss_avg_mode)
                if "gold" in mini.batch:
                    weight = torch.stack([weight, _gold_tokens(mini.batch)])
                self.stepper.step(mini, loss_function, weight, sums)
        return self.stepper.finish(sums), log_probs_EBT[0].cpu()

    def _loss(self, micro: DataProto, kl_coef: float, seen_BT: torch.Tensor) -> tuple[torch.Tensor, dict]:
        """Sum of the policy loss (and KL loss) over a micro-batch, and under a retain loss that one's behind it.

        The samples' log-probabilities are noted in ``seen_BT``.
        """
        settings, batch, retains = self.config.worker.actor, micro.batch, "gold" in micro.batch
        mask_bT = batch["response_mask"]
        rows = DataProto(_with_gold(batch)) if retains else micro
        log_probs, entropy_n, outputs = self._forward(rows)
        log_probs_bT = log_probs[: len(micro)]
        seen_BT[batch["row"]] = log_probs_bT.detach()
        old_log_probs_bT = batch.get("old_log_probs", log_probs_bT.detach())
        average = {
            "loss_avg_mode": settings.loss_avg_mode,
            "constant_length": self.config.data.max_response_length,
        }
        loss, metrics = policy_loss(
            log_probs_bT,
            old_log_probs_bT,
            batch["advantages"],
            mask_bT,
            loss_type=settings.loss_type,
            clip_ratio_low=settings.clip_ratio_low,
            clip_ratio_high=settings.clip_ratio_high,
            clip_ratio_dual=settings.clip_ratio_dual,
            tau_positive=settings.tau_positive,
            tau_negative=settings.tau_negative,
            weights_BT=self._weights(batch, old_log_probs_bT),
            **average,
        )
        weight = loss_weight(mask_bT, settings.loss_avg_mode)
        metrics["pg_loss"] = (loss, weight)
        if self.config.algorithm.kl_in_loss:
            if self.config.algorithm.kl_estimator == "full":
                kl_bT = self._exact_kl(rows, outputs)[: len(micro)]
            else:
                kl_bT = compute_kl(log_probs_bT, batch["ref_log_probs"], self.config.algorithm.kl_estimator)
            kl_loss = masked_aggregate(kl_bT, mask_bT, settings.loss_avg_mode, self.config.data.max_response_length)
            metrics["kl_loss"] = (kl_loss, weight)
            loss = loss + kl_coef * kl_loss
        if retains:
            entropy_n = entropy_n[outputs.pick(~_gold_mask(rows.batch))]
            retain_loss = self._retain_loss(rows.batch, log_probs[len(micro) :], outputs)
            metrics["retain_loss"] = (retain_loss, _gold_tokens(batch))
            loss = torch.stack([loss, self.config.algorithm.retain_coef * retain_loss])
        metrics["entropy"] = (entropy_n.sum(), len(entropy_n))
        return loss, metrics

    def _retain_loss(self, rows: TensorDict, log_probs_gT: torch.Tensor, outputs: ResponseOutputs) -> torch.Tensor:
        """Sum over the tokens of gold answers: -log p (GDR), or KL(reference || model) (KLR; both as in RS.objectives).

        Args:
            rows: what ``_with_gold`` made, from which the model gave ``outputs``.
        """
        if self.config.algorithm.retain_loss != "klr":
            return -log_probs_gT.sum()
        mask_xT = _gold_mask(rows)
        asked = rows.copy()
        asked["response_mask"] = rows["response_mask"] * mask_xT
        if self.parallel is None:  # else the reference must lay out all rows as the model did, to have the same tokens
            # Without a gold answer one row goes through all the same: other ranks' passes wait for this one's.
            asked = asked[-max(1, len(log_probs_gT)) :]
        reference = self.reference._outputs(asked, temperature=1.0)
        kl_n = exact_kl(reference.logits_nV, outputs.logits_nV[outputs.pick(mask_xT)])
        return reference.scatter(kl_n).sum()

    def _weights(self, batch: TensorDict, old_log_probs_bT: torch.Tensor) -> torch.Tensor | None:
        """(b, T) weight of each token's policy loss: rollout correction times what the driver asked for."""
        algorithm, weights_bT = self.config.algorithm, batch.get("loss_weights", None)
        if algorithm.rollout_is == "off":
            return weights_bT
        correction_bT = rollout_weights(
            old_log_probs_bT,
            batch["rollout_log_probs"],
            batch["response_mask"],
            mode=algorithm.rollout_is,
            cap=algorithm.rollout_is_cap,
        )
        return correction_bT if weights_bT is None else weights_bT * correction_bT


def _with_gold(batch: TensorDict) -> TensorDict:
    """What a pass over samples and gold answers reads: (b + g) rows, of which ``is_gold`` says the kind."""
    samples = batch.select("input_ids", "attention_mask", "response_mask", "responses")
    has_gold_b = (batch["gold"] >= 0).any(dim=1)
    gold_gT = batch["gold"][has_gold_b]
    mask_gT = (gold_gT >= 0).to(batch["response_mask"].dtype)
    gold = samples[has_gold_b]
    gold["responses"], gold["response_mask"] = gold_gT.clamp(min=0), mask_gT
    width = gold_gT.shape[1]
    for key, behind_gT in (("input_ids", gold["responses"]), ("attention_mask", mask_gT)):
        gold[key] = torch.cat([gold[key][:, :-width], behind_gT], dim=1)
    rows = torch.cat([samples, gold])
    rows["is_gold"] = torch.arange(len(rows), device=rows.device) >= len(samples)
    return rows


def _gold_mask(rows: TensorDict) -> torch.Tensor:
    """(b + g, T) bool: the tokens of gold answers."""
    return rows["response_mask"].bool() & rows["is_gold"][:, None]


def _gold_tokens(batch: TensorDict) -> torch.Tensor:
    """How many tokens the gold answers of these samples have; a scalar."""
    return (batch["gold"] >= 0).sum().float()
