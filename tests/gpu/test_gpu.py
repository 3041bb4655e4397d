"""What only CUDA can show: the variable-length kernels, and a training step that sleeps and wakes the engine."""

import pytest
import torch

from tests.gpu.attention_cases import CASES, TOLERANCE, errors, path
from tests.training_kit import arguments, metrics_of, run_cli
from verl.models.log_probs import log_probs_and_entropy

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("shared", [False, True], ids=["apart", "shared"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_packed_attention_is_plain_attention_forward_and_backward(case, shared):
    assert max(errors(case, "cuda", shared=shared).values()) <= TOLERANCE[case.dtype]
    if case.dtype == torch.bfloat16 and case.width % 8 == 0 and case.softcap is None:
        assert path(case, "cuda") in ("varlen_attn", "flash_attn_varlen_func")


def test_compiled_log_probs_are_the_plain_ones():
    torch.manual_seed(0)
    labels = torch.randint(1000, (64,), device="cuda")
    plain = torch.randn(64, 1000, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    fused = plain.detach().clone().requires_grad_()
    results = [log_probs_and_entropy(logits, labels, compiled=logits is fused) for logits in (plain, fused)]
    for log_probs, _ in results:
        log_probs.sum().backward()
    torch.testing.assert_close(*results)
    torch.testing.assert_close(plain.grad, fused.grad)


AWAY = [f"worker.actor.offload.offload_{what}=true" for what in ("params", "optimizer")]
AWAY += ["worker.ref.offload.offload_params=true"]


@pytest.mark.parametrize(
    "changes",
    [
        [],
        AWAY,
        [*AWAY, "algorithm.kl_penalty=full"],
        ["worker.actor.model.lora.rank=8", "worker.rollout.lora_weights=adapter"],  # frozen weights survive the sleep
    ],
    ids=["plain", "offloaded", "exact KL, offloaded", "adapters"],
)
def test_a_run_on_one_gpu_trains_and_the_engine_agrees_with_the_trainer(tmp_path, tiny_model, changes):
    run_cli(arguments(tiny_model, tmp_path, "run", "trainer.n_gpus_per_node=1", *changes))
    rows = metrics_of(tmp_path / "run")
    assert len(rows) == 3
    assert all(row["rollout/mean_abs_diff"] < 1e-2 and row["actor/grad_norm"] > 0 for row in rows)
