"""What Rejection Steering minimises, and the unlearning baselines that the papers' tables set beside it.

Every function returns a SUM over the examples it was given; the caller divides by ``weight`` of the whole batch, over
all micro-batches and ranks. Pure functions of tensors: nothing here knows models, ranks or files.

Shapes: b examples, T response tokens (padded), N response tokens of a batch, V vocabulary, D hidden features.
``log_probs_bT`` holds log p(token | before) of the model being trained and zeros in the padding: its sum over T is a
sequence's. ``logits_NV`` and ``states_ND`` are what the model says and holds where it predicts a response token.
"""

import torch
import torch.nn.functional as F

EXAMPLE_WEIGHTED = ("npo", "simnpo", "dpo", "altpo")
"""objectives whose mean is over examples; the others' is over response tokens"""


def weight(objective: str, response_lengths: list[int]) -> int:
    """What a batch with these response lengths weighs: its tokens, or its examples."""
    return len(response_lengths) if objective in EXAMPLE_WEIGHTED else sum(response_lengths)


def rejection(log_probs_bT: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of the response: -sum log p.

    On refusals it is fine-tuning to refuse (RULE, arXiv 2506.07171; RWKU's RT; open-unlearning's IdkNLL); on the
    answers it makes the reinforced model that task vectors and WHP start from.
    """
    return -log_probs_bT.sum()


def gradient_ascent(log_probs_bT: torch.Tensor) -> torch.Tensor:
    """Log-likelihood of what must be forgotten, to be driven down (GA; Jang et al., arXiv 2210.01504). Unbounded."""
    return log_probs_bT.sum()


def weighted_ascent(log_probs_bT: torch.Tensor, alpha: float) -> torch.Tensor:
    """Gradient ascent that leaves alone what is unlikely already (weighted gradient ascent, WGA, arXiv 2502.19301).

    p^alpha log p a token, the weight p^alpha without a gradient; alpha 0 is GA.
    """
    return (log_probs_bT.detach().exp() ** alpha * log_probs_bT).sum()


def satimp(log_probs_bT: torch.Tensor, beta: float, beta2: float) -> torch.Tensor:
    """Gradient ascent weighted by saturation and importance (SatImp, arXiv 2505.11953).

    p^beta (1 - p)^beta2 log p a token, the weight without a gradient: it fades where a token is forgotten, and where it
    is so sure that it carries no knowledge.
    """
    p_bT = log_probs_bT.detach().exp()
    return (p_bT**beta * (1 - p_bT) ** beta2 * log_probs_bT).sum()


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


def altpo(
    chosen_bT: torch.Tensor,
    rejected_bT: torch.Tensor,
    reference_chosen_b: torch.Tensor,
    reference_rejected_b: torch.Tensor,
    beta: float,
) -> torch.Tensor:
    """Another plausible answer preferred to the true one (AltPO, arXiv 2409.13474).

    -(2 / beta) log sigmoid(beta (chosen - rejected)): DPO in the scale of NPO, which matters beside a retain loss.
    """
    return 2 / beta * dpo(chosen_bT, rejected_bT, reference_chosen_b, reference_rejected_b, beta)


def undial(
    logits_NV: torch.Tensor, reference_logits_NV: torch.Tensor, labels_N: torch.Tensor, gamma: float
) -> torch.Tensor:
    """Self-distillation with adjusted logits (UNDIAL, arXiv 2402.10052).

    -sum_v q_v log p_v with q = softmax(v_original - gamma [v is the token to forget]).
    """
    lowered_N1 = torch.full_like(labels_N, -gamma, dtype=torch.float32)[:, None]
    return _cross_entropy(logits_NV, reference_logits_NV.float().scatter_add(-1, labels_N[:, None], lowered_N1))


def ceu(logits_NV: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
    """Cross-entropy to the model's own prediction without the token to forget (CE-U, arXiv 2503.01224).

    -sum_v q_v log p_v with q = softmax(v, that token's logit at minus infinity), which moves with the model and carries
    no gradient. open-unlearning leaves out an answer's first token; in a short answer that is the knowledge itself, so
    here none is left out.
    """
    goal_NV = logits_NV.detach().float().scatter(-1, labels_N[:, None], -torch.inf)
    return _cross_entropy(logits_NV, goal_NV)


def whp(
    logits_NV: torch.Tensor, reference_logits_NV: torch.Tensor, reinforced_logits_NV: torch.Tensor, alpha: float
) -> torch.Tensor:
    """Cross-entropy to generic predictions (WHP, "Who's Harry Potter", arXiv 2310.02238, equation 1).

    -sum_v q_v log p_v with q = softmax(v - alpha relu(v_reinforced - v)), v of the original model: what further
    training on the target makes likelier is pushed down. Left out: the paper's second source of generic labels, a
    dictionary of the target's own words, which a language model wrote for one book.
    """
    original_NV = reference_logits_NV.float()
    return _cross_entropy(logits_NV, original_NV - alpha * F.relu(reinforced_logits_NV.float() - original_NV))


def _cross_entropy(logits_NV: torch.Tensor, goal_logits_NV: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits_NV.float(), goal_logits_NV.softmax(dim=-1), reduction="sum")


def random_direction(features: int, seed: int) -> torch.Tensor:
    """(D,) unit vector with entries drawn from [0, 1), as RMU draws it; the same on every rank, on the CPU."""
    drawn_D = torch.rand(features, generator=torch.Generator().manual_seed(seed))
    return drawn_D / drawn_D.norm()


def hidden_distance(states_ND: torch.Tensor, goal_ND: torch.Tensor) -> torch.Tensor:
    """|h - goal|^2 / D, summed over tokens: both terms of RMU (arXiv 2403.03218).

    On forget rows the goal is c u, a fixed random direction; on retain rows, the original model's hidden states. The
    paper's norm is not divided by D; its code, as here, does. The ratio of the terms is the same.
    """
    return (states_ND.float() - goal_ND.float()).square().mean(dim=-1).sum()


def kl_to_reference(logits_NV: torch.Tensor, reference_logits_NV: torch.Tensor) -> torch.Tensor:
    """KL(reference || model) at every response token of a retain batch (KLR in MUSE, arXiv 2407.06460).

    The other retain term, GDR, is ``rejection`` on retain rows (Liu et al., arXiv 2203.12817). Both weigh tokens.
    """
    log_p_NV = F.log_softmax(logits_NV.float(), dim=-1)
    reference_NV = F.log_softmax(reference_logits_NV.float(), dim=-1)
    return F.kl_div(log_p_NV, reference_NV, reduction="sum", log_target=True)
