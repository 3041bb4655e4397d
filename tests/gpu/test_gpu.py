"""What only CUDA can show: the variable-length kernels, and a training step that sleeps and wakes the engine."""

import pytest
import torch

from tests.training_kit import arguments, metrics_of, run_cli
from verl.utils.attention import Packing, packed_attention
from verl.utils.log_probs import log_probs_and_entropy

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_the_packed_kernel_gives_what_each_sequence_gives_alone():
    torch.manual_seed(0)
    lengths = torch.tensor([5, 64, 17], device="cuda")
    total, heads, width = int(lengths.sum()), 4, 64
    query = torch.randn(1, heads, total, width, device="cuda", dtype=torch.bfloat16)
    key, value = (torch.randn(1, 2, total, width, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    packed, _ = packed_attention(None, query, key, value, None, packing=Packing.of(lengths))
    start = 0
    for length in lengths.tolist():
        part = slice(start, start + length)
        alone = torch.nn.functional.scaled_dot_product_attention(
            query[:, :, part], key[:, :, part], value[:, :, part], is_causal=True, enable_gqa=True
        )
        torch.testing.assert_close(packed[0, part], alone[0].transpose(0, 1), atol=2e-2, rtol=2e-2)
        start += length


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
