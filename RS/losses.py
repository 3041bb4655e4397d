"""From examples to the loss sum of an objective: which passes of which models it takes.

The formulas are ``RS.objectives``'. Dividing, and adding up over micro-batches and ranks, is ``RS.trainer``'s.
"""

from collections.abc import Callable

import torch

from RS import objectives
from RS.config import RSConfig
from RS.utils.batches import Sequence, collate
from RS.utils.data import Example
from verl.models.build import as_reference
from verl.models.forward import ResponseOutputs, forward_responses
from verl.models.log_probs import log_probs_and_entropy


class Losses:
    """The models of a run and what their passes give.

    Args:
        module: the model that is trained.
        pad_id: token that fills up shorter sequences.
        layer: whose hidden states are steered and kept, for a loss that asks for it.

    Attributes:
        original: the model before training, for a loss that asks for it; under LoRA the trained one, whose adapters are
            switched off then.
        reinforced: whp's reinforced model.
    """

    def __init__(
        self, config: RSConfig, module: torch.nn.Module, pad_id: int, device: torch.device, layer: int | None = None
    ) -> None:
        self.config, self.module, self.pad_id, self.device, self.layer = config, module, pad_id, device, layer
        self.original: torch.nn.Module | None = None
        self.reinforced: torch.nn.Module | None = None

    def forget(self, examples: list[Example], scores: list[torch.Tensor]) -> torch.Tensor:
        """The objective's loss sum.

        Args:
            scores: what ``sequence_scores`` said of these examples before training, if the objective needs it.
        """
        return _FORGET[self.config.objective](self, examples, scores)

    def retain(self, examples: list[Example]) -> torch.Tensor:
        """The retain loss' sum over response tokens."""
        return _RETAIN[self.config.retain_loss](self, examples)

    def sequence_scores(self, examples: list[Example]) -> list[torch.Tensor]:
        """(b,) log-likelihoods of the responses, and of the rejected ones where there are pairs."""
        parts = self.pairs(examples) if self.config.has_pairs else [self.log_probs(examples)]
        return [log_probs_bT.sum(dim=1) for log_probs_bT in parts]

    def pairs(self, examples: list[Example]) -> tuple[torch.Tensor, torch.Tensor]:
        """(b, T) of the chosen and of the rejected responses, computed side by side behind their common prompts."""
        log_probs_2bT = self._log_probs(
            [(row.prompt, response) for row in examples for response in (row.response, row.rejected)]
        )
        return log_probs_2bT[0::2], log_probs_2bT[1::2]

    def log_probs(self, examples: list[Example]) -> torch.Tensor:
        """(b, T) log-probability of every response token, zeros in the padding."""
        return self._log_probs(_responses(examples))

    def _log_probs(self, sequences: list[Sequence]) -> torch.Tensor:
        outputs, labels_N = self._pass(self.module, sequences)
        return outputs.scatter(log_probs_and_entropy(outputs.logits_nV, labels_N)[0])

    def lengths(self, examples: list[Example]) -> torch.Tensor:
        """(b,) response tokens."""
        return torch.tensor([len(row.response) for row in examples], device=self.device)

    def logits(self, examples: list[Example]) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, V) logits of the trained model that predict the response tokens, and (N,) those tokens."""
        outputs, labels_N = self._pass(self.module, _responses(examples))
        return outputs.logits_nV, labels_N

    def frozen_logits(self, module: torch.nn.Module, examples: list[Example]) -> torch.Tensor:
        """The same of a model that is not trained; asked before the trained one's, which may be the same module's."""
        with as_reference(module):
            return self._pass(module, _responses(examples))[0].logits_nV

    def hidden(self, module: torch.nn.Module, examples: list[Example]) -> torch.Tensor:
        """(N, D) hidden states behind the layer, where the response tokens are predicted."""
        return self._pass(module, _responses(examples), self.layer)[0].logits_nV

    def _pass(
        self, module: torch.nn.Module, sequences: list[Sequence], layer: int | None = None
    ) -> tuple[ResponseOutputs, torch.Tensor]:
        batch = collate(sequences, self.pad_id, self.device)
        outputs = forward_responses(module, batch, padding_free=self.config.padding_free, layer=layer)
        return outputs, outputs.pick(batch["responses"])

    def likelihood(self, examples: list[Example], *_: list[torch.Tensor]) -> torch.Tensor:
        return objectives.rejection(self.log_probs(examples))

    def undial(self, examples: list[Example], *_: list[torch.Tensor]) -> torch.Tensor:
        original_NV = self.frozen_logits(self.original, examples)
        logits_NV, labels_N = self.logits(examples)
        return objectives.undial(logits_NV, original_NV, labels_N, self.config.own("gamma"))

    def whp(self, examples: list[Example], *_: list[torch.Tensor]) -> torch.Tensor:
        original_NV, reinforced_NV = (self.frozen_logits(m, examples) for m in (self.original, self.reinforced))
        return objectives.whp(self.logits(examples)[0], original_NV, reinforced_NV, self.config.own("alpha"))

    def steer(self, examples: list[Example], *_: list[torch.Tensor]) -> torch.Tensor:
        states_ND = self.hidden(self.module, examples)
        direction_D = objectives.random_direction(states_ND.shape[-1], self.config.seed).to(self.device)
        return objectives.hidden_distance(states_ND, self.config.own("steering") * direction_D)

    def keep_logits(self, examples: list[Example]) -> torch.Tensor:
        original_NV = self.frozen_logits(self.original, examples)
        return objectives.kl_to_reference(self.logits(examples)[0], original_NV)

    def keep_hidden(self, examples: list[Example]) -> torch.Tensor:
        with as_reference(self.original):
            original_ND = self.hidden(self.original, examples)
        return objectives.hidden_distance(self.hidden(self.module, examples), original_ND)


_FORGET: dict[str, Callable[[Losses, list[Example], list[torch.Tensor]], torch.Tensor]] = {
    "rejection": Losses.likelihood,
    "task_vector": Losses.likelihood,  # towards the reinforced model; the one that is saved lies the other way
    "ga": lambda run, rows, _: objectives.gradient_ascent(run.log_probs(rows)),
    "wga": lambda run, rows, _: objectives.weighted_ascent(run.log_probs(rows), run.config.own("alpha")),
    "satimp": lambda run, rows, _: objectives.satimp(
        run.log_probs(rows), run.config.own("beta"), run.config.own("beta2")
    ),
    "npo": lambda run, rows, scores: objectives.npo(run.log_probs(rows), *scores, run.config.own("beta")),
    "simnpo": lambda run, rows, _: objectives.simnpo(
        run.log_probs(rows), run.lengths(rows), run.config.own("beta"), run.config.own("gamma")
    ),
    "dpo": lambda run, rows, scores: objectives.dpo(*run.pairs(rows), *scores, run.config.own("beta")),
    "altpo": lambda run, rows, scores: objectives.altpo(*run.pairs(rows), *scores, run.config.own("beta")),
    "undial": Losses.undial,
    "ceu": lambda run, rows, _: objectives.ceu(*run.logits(rows)),
    "whp": Losses.whp,
    "rmu": Losses.steer,
}
_RETAIN: dict[str, Callable[[Losses, list[Example]], torch.Tensor]] = {
    "gdr": Losses.likelihood,
    "klr": Losses.keep_logits,
    "hidden": Losses.keep_hidden,
}


def _responses(examples: list[Example]) -> list[Sequence]:
    return [(example.prompt, example.response) for example in examples]
