"""The critic of PPO: the value of each response token, and its update."""

import torch

from ...algorithms.losses import loss_weight, value_loss
from ...config.run import PPOConfig
from ...models.forward import forward_responses
from ...models.ulysses import SequenceParallel
from ...protocol import DataProto
from ..batching import MetricSums, by_micro_batch
from ..stepper import Stepper


class DataParallelPPOCritic:
    """Works on a sharded token-classification model with one output. Shapes: B samples of this rank, T tokens."""

    def __init__(
        self,
        config: PPOConfig,
        module: torch.nn.Module,
        *,
        device: torch.device,
        max_tokens_for_experience: int | None,
        parallel: SequenceParallel | None,
        stepper: Stepper,
    ) -> None:
        self.config, self.module, self.device, self.stepper = config, module, device, stepper
        self.max_tokens_for_experience, self.parallel = max_tokens_for_experience, parallel

    def _values(self, micro: DataProto) -> torch.Tensor:
        settings = self.config.worker.critic
        outputs = forward_responses(
            self.module,
            micro.batch,
            padding_free=settings.padding_free,
            share_prompts=settings.share_prompts,
            parallel=self.parallel,
        )
        return outputs.scatter(outputs.logits_nV.squeeze(-1).float())

    @torch.no_grad()
    def compute_values(self, data: DataProto) -> torch.Tensor:
        """(B, T) value before each response token, zeros in the padding."""
        self.module.eval()
        keys = ["input_ids", "attention_mask", "position_ids", "response_mask"]
        data = data.select(batch_keys=keys, non_tensor_batch_keys=[]).to(self.device)
        return by_micro_batch(data, self.config.worker.critic, self.max_tokens_for_experience, self._values)

    def update_critic(self, data: DataProto) -> dict[str, float]:
        """Train on this rank's share: ``values`` and ``returns`` (B, T) beside the forward keys."""
        self.module.train()
        settings = self.config.worker.critic
        data = data.to(self.device)
        sums = MetricSums(self.device)
        size = settings.global_batch_size * self.config.worker.rollout.n // self.config.data_parallel_size
        for _ in range(settings.ppo_epochs):
            for mini in data.split(size):
                weight = loss_weight(mini.batch["response_mask"], settings.loss_avg_mode)
                self.stepper.step(mini, self._loss, weight, sums)
        return self.stepper.finish(sums)

    def _loss(self, micro: DataProto) -> tuple[torch.Tensor, dict]:
        settings, mask_bT = self.config.worker.critic, micro.batch["response_mask"]
        loss, metrics = value_loss(
            self._values(micro),
            micro.batch["returns"],
            micro.batch["values"],
            mask_bT,
            settings.cliprange_value,
            loss_avg_mode=settings.loss_avg_mode,
            constant_length=self.config.data.max_response_length,
        )
        metrics["vf_loss"] = (loss, loss_weight(mask_bT, settings.loss_avg_mode))
        return loss, metrics
