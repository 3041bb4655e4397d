"""The retain loss of an update against autograd on the formula, on transformers' own pass over each gold answer."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch.optim.lr_scheduler import LambdaLR

from tests.conftest import tiny_llama
from verl.config.run import PPOConfig
from verl.models.packable import pack
from verl.protocol import DataProto, object_array
from verl.trainer.experience import add_gold
from verl.workers.actor.dp_actor import DataParallelPPOActor
from verl.workers.seqlen_balancing import Tokens
from verl.workers.stepper import Stepper

PROMPTS = [[5, 6, 7], [8, 9], [10, 11, 12, 13]]
SAMPLES = [[20, 21], [22], [23, 24, 25], [26], [27, 28], [29, 30, 31]]
"""two of each prompt, side by side"""
GOLD = {0: [14, 15, 2], 4: [16, 17, 18, 2]}
"""beside the first sample of the first and of the last prompt"""
S, T, CPU = 4, 4, torch.device("cpu")


@pytest.fixture(autouse=True)
def one_rank():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def batch(gold: dict[int, list[int]] | None) -> DataProto:
    rows = len(SAMPLES)
    ids, seen = torch.zeros(rows, S + T, dtype=torch.int64), torch.zeros(rows, S + T, dtype=torch.int64)
    answers = torch.full((rows, T), -1)
    for row, sample in enumerate(SAMPLES):
        prompt = PROMPTS[row // 2]
        places = slice(S - len(prompt), S + len(sample))
        ids[row, places], seen[row, places] = torch.tensor(prompt + sample), 1
        if gold and row in gold:
            answers[row, : len(gold[row])] = torch.tensor(gold[row])
    generator = torch.Generator().manual_seed(2)
    tensors = {
        "input_ids": ids,
        "attention_mask": seen,
        "position_ids": (seen.cumsum(1) - 1).clamp(min=0),
        "responses": ids[:, S:],
        "response_mask": seen[:, S:],
        "old_log_probs": -3 + torch.rand(rows, T, generator=generator),
        "ref_log_probs": -3 + torch.rand(rows, T, generator=generator),
        "advantages": torch.randn(rows, T, generator=generator),
    }
    return DataProto.from_dict(tensors if gold is None else tensors | {"gold": answers}, meta_info={"kl_coef": 0.1})


def config_of(micro: int, actor: dict, **algorithm) -> PPOConfig:
    config = PPOConfig()
    sizes = {"global_batch_size": 3, "micro_batch_size_per_device_for_update": micro, "max_grad_norm": 1e9}
    worker = replace(
        config.worker,
        actor=replace(config.worker.actor, **sizes, **actor),
        rollout=replace(config.worker.rollout, n=2, temperature=0.7),
    )
    algorithm = {"use_kl_loss": True, "retain_coef": 0.3} | algorithm
    return replace(
        config,
        data=replace(config.data, rollout_batch_size=3),
        worker=worker,
        algorithm=replace(config.algorithm, **algorithm),
        trainer=replace(config.trainer, n_gpus_per_node=1),
    )


def models() -> tuple[torch.nn.Module, torch.nn.Module]:
    """The trained model, and another one as its reference."""
    module, reference = tiny_llama(), tiny_llama()
    with torch.no_grad():
        for param in reference.parameters():
            param.mul_(3.0)
        for param in module.parameters():
            param.mul_(2.0)
    return module, reference


def update(config: PPOConfig, gold: dict | None) -> tuple[dict[str, float], list[torch.Tensor], torch.Tensor]:
    """Metrics, gradients and the log-probabilities that the update saw."""
    module, reference = models()
    if config.worker.actor.padding_free:
        pack(module)
        pack(reference)
    optimizer, grads = torch.optim.SGD(module.parameters(), lr=0.1), []
    settings = config.worker.actor
    stepper = Stepper(settings, module, optimizer, LambdaLR(optimizer, lambda _: 1.0), max_tokens=None)
    optimizer.register_step_pre_hook(lambda *_: grads.extend(param.grad.clone() for param in module.parameters()))
    common = {"device": CPU, "max_tokens_for_experience": None, "parallel": None}
    actor = DataParallelPPOActor(config, module, **common, stepper=stepper)
    actor.reference = DataParallelPPOActor(config, reference, **common)
    metrics, log_probs_BT = actor.update_policy(batch(gold))
    return metrics, grads, log_probs_BT


def by_hand(loss: str) -> tuple[float, list[torch.Tensor]]:
    """Mean over the tokens of all gold answers, each behind its prompt alone, at temperature 1."""
    module, reference = models()
    total = torch.zeros(())
    for row, answer in GOLD.items():
        prompt = PROMPTS[row // 2]
        ids = torch.tensor([prompt + answer])
        places = slice(len(prompt) - 1, len(prompt) + len(answer) - 1)
        log_p, log_q = (model(ids).logits[0, places].log_softmax(-1) for model in (module, reference))
        if loss == "klr":
            total = total + (log_q.exp() * (log_q - log_p)).sum()
        else:
            total = total - log_p[torch.arange(len(answer)), torch.tensor(answer)].sum()
    mean = total / sum(map(len, GOLD.values()))
    return mean.item(), list(torch.autograd.grad(mean, module.parameters()))


@pytest.mark.parametrize(("micro", "packed", "kl"), [(6, True, "low_var_kl+"), (1, True, "full"), (4, False, "full")])
@pytest.mark.parametrize("loss", ["gdr", "klr"])
def test_it_adds_the_gradient_of_the_formula_to_the_policy_loss(loss, micro, packed, kl, one_thread):
    config = config_of(micro, {"padding_free": packed, "dynamic_batching": False}, retain_loss=loss, kl_penalty=kl)
    plain, before, log_probs = update(config, None)
    metrics, grads, log_probs_beside = update(config, GOLD)
    mean, expected = by_hand(loss)
    assert mean > 0.01 and metrics.pop("retain_loss") == pytest.approx(mean, rel=1e-6, abs=1e-6)
    for grad, without, wanted in zip(grads, before, expected, strict=True):
        assert torch.allclose(grad - without, 0.3 * wanted, rtol=1e-5, atol=1e-6)
    assert max(wanted.abs().max() for wanted in expected) > 0.02
    assert torch.allclose(log_probs, log_probs_beside, atol=1e-5)
    assert metrics.keys() == plain.keys()
    for name in metrics.keys() - {"grad_norm"}:
        assert metrics[name] == pytest.approx(plain[name], rel=1e-5), name


def test_sft_is_gdr_and_a_mini_batch_without_gold_answers_adds_nothing(one_thread):
    one, other = (update(config_of(6, {"dynamic_batching": False}, retain_loss=loss), GOLD) for loss in ("gdr", "sft"))
    assert one[0] == other[0] and all(map(torch.equal, one[1], other[1]))
    for loss in ("gdr", "klr"):
        config = config_of(2, {"dynamic_batching": False}, retain_loss=loss)
        metrics, grads, _ = update(config, {})
        assert metrics["retain_loss"] == 0.0
        assert all(map(torch.equal, grads, update(config, None)[1]))


def test_every_prompt_s_first_sample_brings_its_gold_answer():
    """Rows lie in the order of their groups; of row 9 there is no answer."""
    rows = batch(None)
    rows.non_tensor_batch = {
        key: object_array(of) for key, of in (("uid", list("aabbcc")), ("row", [7, 7, 9, 9, 8, 8]))
    }
    add_gold(rows, {7: GOLD[0], 8: GOLD[4], 1: [3]})
    assert torch.equal(rows.batch["gold"], batch(GOLD).batch["gold"])


def test_gold_answers_count_where_they_are_computed():
    """Prompts of 3, 2 and 4 tokens, responses of 12, gold answers of 3 and 4 beside rows 0 and 4."""
    shared, apart = (Tokens.of(batch(GOLD), share_prompts=share) for share in (True, False))
    assert shared() == 9 + 12 + 7
    assert apart() == 2 * 9 + 12 + (3 + 3) + (4 + 4)
    assert [shared([row]) for row in (0, 1)] == [3 + 2 + 3, 3 + 1]
    own = [(p + r - 1) ** 2 for p, r in zip((3, 3, 2, 2, 4, 4), map(len, SAMPLES), strict=True)]
    assert apart.pairs() == sum(own) + 5**2 + 7**2  # last tokens are not computed
    again = 3**2 + 2**2 + 4**2  # of each prompt's second sample
    only = (4**2 - 3**2) + (3**2 - 2**2)  # behind a shared prompt a response's only token stays
    assert shared.pairs() == apart.pairs() - again - 3**2 - 4**2 + only
