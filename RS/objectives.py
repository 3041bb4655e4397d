"""What Rejection Steering minimises, and the unlearning baselines that the papers' tables set beside it.

Every function returns a SUM over the examples it was given; the caller divides by ``weight`` of the whole batch, over
all micro-batches and ranks. Pure functions of tensors: nothing here knows models, ranks or files.

Shapes: b examples, T response tokens (padded), N response tokens of a batch, V vocabulary. ``log_probs_bT`` holds
log p(token | before) of the model being trained and zeros in the padding: its sum over T is a sequence's.
"""

import torch
import torch.nn.functional as F

TOKEN_WEIGHTED = ("rejection", "ga")
"""objectives whose mean is over response tokens; the others' is over examples"""


def weight(objective: str, response_lengths: list[int]) -> int:
    """What a batch with these response lengths weighs: its tokens, or its examples."""
    return sum(response_lengths) if objective in TOKEN_WEIGHTED else len(response_lengths)


def rejection(log_probs_bT: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of the response: fine-tuning on refusals (RULE, arXiv 2506.07171; RWKU's RT)."""
    return -log_probs_bT.sum()


def gradient_ascent(log_probs_bT: torch.Tensor) -> torch.Tensor:
    """Log-likelihood of what must be forgotten, to be driven down (GA; Jang et al., arXiv 2210.01504). Unbounded."""
    return log_probs_bT.sum()


def npo(log_probs_bT: torch.Tensor, reference_b: torch.Tensor, beta: float) -> torch.Tensor:
    """Negative preference optimisation (arXiv 2404.05868, equation 3).

    -(2 / beta) log sigmoid(-beta log(p / p_ref)) a sequence: gradient ascent whose pull fades once p << p_ref.

    Args:
        reference_b: sequence log-likelihoods under the model before training.
    """
    log_ratio_b = log_probs_bT.sum(dim=1) - reference_b
    return -(2 / beta) * F.logsigmoid(-beta * log_ratio_b).sum()


def simnpo(log_probs_bT: torch.Tensor, lengths_b: torch.Tensor, beta: float, gamma: float) -> torch.Tensor:
    """NPO without a reference: length-normalised, with a margin (SimNPO, arXiv 2410.07163, equation 4).

    Args:
        lengths_b: response tokens of each sequence.
    """
    mean_b = log_probs_bT.sum(dim=1) / lengths_b
    return -(2 / beta) * F.logsigmoid(-beta * mean_b - gamma).sum()


def dpo(
    chosen_bT: torch.Tensor,
    rejected_bT: torch.Tensor,
    reference_chosen_b: torch.Tensor,
    reference_rejected_b: torch.Tensor,
    beta: float,
) -> torch.Tensor:
    """Direct preference optimisation (arXiv 2305.18290, equation 7): the refusal preferred to the answer."""
    chosen_b = chosen_bT.sum(dim=1) - reference_chosen_b
    rejected_b = rejected_bT.sum(dim=1) - reference_rejected_b
    return -F.logsigmoid(beta * (chosen_b - rejected_b)).sum()


def kl_to_reference(logits_NV: torch.Tensor, reference_logits_NV: torch.Tensor) -> torch.Tensor:
    """KL(reference || model) at every response token of a retain batch (KLR in MUSE, arXiv 2407.06460).

    The other retain term, GDR, is ``rejection`` on retain rows (Liu et al., arXiv 2203.12817). Both weigh tokens.
    """
    log_p_NV = F.log_softmax(logits_NV.float(), dim=-1)
    reference_NV = F.log_softmax(reference_logits_NV.float(), dim=-1)
    return F.kl_div(log_p_NV, reference_NV, reduction="sum", log_target=True)
