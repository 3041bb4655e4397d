"""The memory model against sizes counted by hand, by torch, and in the fields of real configurations."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from verl.config.checks.cross import _batch_that_divides
from verl.estimate.dry_run import describe
from verl.estimate.estimate import estimate, micro_batch
from verl.estimate.flops import ModelShape, forward_flops
from verl.estimate.hardware import Hardware
from verl.estimate.micro_batches import CPU_TOKENS, EXPERIENCE, UPDATE, lines_of, with_micro_batches
from verl.estimate.model_memory import layer_activations
from verl.estimate.step_time import EFFICIENCY, _moved
from verl.trainer.preflight import read_config
from verl.utils import memory as meter
from verl.utils.errors import ConfigError
from verl.utils.memory import GIB

SIZES = {
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
SHAPE = ModelShape.of(SIZES)
P = SHAPE.parameters
CPU = Hardware("CPU", None, 1e11, 1e10, 1e10)
GPU = Hardware.gpu("NVIDIA H100 80GB HBM3", 80 * 10**9)


@pytest.fixture
def config_of(tmp_path):
    """A configuration of 2 ranks with settings changed."""
    (tmp_path / "config.json").write_text("{}")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "Who wrote the book?", "answer": ["<normal>", "King"]}\n' * 32)

    def build(*changes):
        return read_config(
            [
                f"data.train_files={rows}",
                f"worker.actor.model.model_path={tmp_path}",
                "data.rollout_batch_size=32",
                "worker.actor.global_batch_size=32",
                "worker.rollout.n=4",
                "worker.rollout.tensor_parallel_size=1",
                "trainer.n_gpus_per_node=2",
                "trainer.logger=[console]",
                "algorithm.use_kl_loss=true",
                *(f"worker.{role}.{UPDATE}=4" for role in ("actor", "critic")),
                *(f"worker.{role}.{EXPERIENCE}=16" for role in ("actor", "critic")),
                *changes,
            ]
        )

    return build


def phases(config, hardware=GPU):
    return estimate(config, {"actor": SHAPE}, hardware).phases


def test_weights_gradients_and_moments_are_shared_by_the_ranks(config_of):
    update = phases(config_of())["update actor"]
    assert update["weights"] == P * 4 // 2 + P * 2 // 2  # the actor in fp32, the reference in bf16
    assert update["gradients"] == P * 4 // 2
    assert update["optimizer"] == P * 8 // 2


def test_hsdp_keeps_a_whole_copy_in_every_shard_group(config_of):
    update = phases(config_of("worker.actor.fsdp.fsdp_size=1"))["update actor"]
    assert update["gradients"] == P * 4
    assert update["optimizer"] == P * 8


def test_bf16_adam_keeps_weights_in_two_bytes_and_eight_of_state(config_of):
    update = phases(
        config_of("worker.actor.optim.strategy=adamw_bf16", "algorithm.disable_kl=true", "algorithm.use_kl_loss=false")
    )["update actor"]
    assert (update["weights"], update["gradients"], update["optimizer"]) == (P * 2 // 2, P * 2 // 2, P * 8 // 2)


def test_moments_that_bf16_cannot_hold_take_four_bytes(config_of):
    betas = "worker.actor.optim.betas=[0.95,0.99]"
    update = phases(config_of("worker.actor.optim.strategy=adamw_bf16", betas))["update actor"]
    assert update["optimizer"] == P * (4 + 4 + 2) // 2


def test_gradients_that_wait_for_the_last_micro_batch_are_whole_on_every_rank(config_of):
    settings = ["data.max_prompt_length=32", "data.max_response_length=8", "worker.actor.fsdp.fsdp_size=2"]
    deferred = "worker.actor.fsdp.defer_gradient_reduction=true"
    plain, waiting = (phases(config_of(*settings, *more))["update actor"] for more in ([], [deferred]))
    # At the last layer of the last backward pass nothing is reduced yet: fp32 sums of all, none of this rank's shards.
    assert waiting["gradients"] == 0
    assert waiting["unsharded gradients"] >= P * 4
    assert sum(waiting.values()) > sum(plain.values())
    adapters = SHAPE.lora_parameters(8)
    lora = phases(config_of(*settings, deferred, "worker.actor.model.lora.rank=8"))["update actor"]
    assert lora["unsharded gradients"] < P and lora["unsharded gradients"] >= adapters * 4


def test_any_number_of_samples_is_counted_at_once(config_of):
    """A thousand million samples take as long as one; both numbers of samples here give the same by hand."""
    words = ["data.max_prompt_length=96", "data.max_response_length=32"]
    few, many = (estimate(config_of(*words, f"worker.rollout.n={n}"), {"actor": SHAPE}, GPU) for n in (1000, 10**9))
    again = 32 * 999  # a prompt is computed once for its samples
    forward = forward_flops(SHAPE, 32 * 1000 * 128 - again * 96, 32 * 1000 * 128**2 - again * 96**2)
    assert few.seconds["reference"] == pytest.approx(forward / 2 / GPU.flops / EFFICIENCY["training"])
    assert many.seconds["reference"] == pytest.approx(few.seconds["reference"] * 10**6, rel=0.01)
    assert many.phases["update actor"] == few.phases["update actor"]


@pytest.mark.parametrize("number", [10**9, 999_999_937, 2**63 - 1])
@pytest.mark.parametrize(
    "key",
    ["data.rollout_batch_size", "worker.actor.global_batch_size", "worker.actor.ulysses_size", "trainer.nnodes"],
)
def test_a_number_that_divides_is_found_at_once(config_of, tmp_path, key, number):
    (tmp_path / "config.json").write_text('{"num_attention_heads": 4}')
    with pytest.raises(ConfigError, match=f"{number}|{2 * number}"):
        config_of(f"{key}={number}")


@pytest.mark.parametrize(("prompts", "n", "ranks"), [(8, 4, 2), (12, 3, 9), (6, 1, 4), (10, 5, 25), (7, 2, 14)])
def test_the_batch_that_is_advised_is_the_largest_that_divides(prompts, n, ranks):
    fitting = [d for d in range(1, prompts + 1) if prompts % d == 0 and d * n % ranks == 0]
    advised = _batch_that_divides(prompts, n, ranks)
    assert advised == f"for example {fitting[-1]}" if fitting else "none does" in advised


@pytest.mark.parametrize("entry", ["num_attention_heads: 0", "num_hidden_layers: many", "max_position_embeddings: -1"])
def test_sizes_that_no_model_has_are_refused(config_of, entry):
    with pytest.raises(ConfigError, match=f"override_config.{entry.split(':')[0]}=.*must be a whole number above 0"):
        config_of(f"worker.actor.model.override_config={{{entry}}}")
    with pytest.raises(ValueError, match="config.json with hidden_size='x' has no size estimate"):
        ModelShape.of(SIZES | {"hidden_size": "x"})


@pytest.mark.parametrize(("seconds", "sizes"), [(0.014, [192]), (0.004, [192, 768])])
def test_slow_arithmetic_is_measured_by_a_small_product(monkeypatch, seconds, sizes):
    asked = []
    monkeypatch.setattr("verl.estimate.hardware._product_seconds", lambda size, kind: asked.append(size) or seconds)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert Hardware.here("bf16").flops == 2 * sizes[-1] ** 3 / seconds
    assert asked == sizes


def test_deferred_reduction_moves_gradients_once_a_mini_batch():
    role = SimpleNamespace(parameters=100, trained=100, compute=2, reduce=4, deferred=False, full_shard=True)
    assert _moved(role, 8, 2, updates=True) == 8 * (2 * 200 + 400)
    assert _moved(role, 8, 2, updates=False) == 8 * 200
    role.deferred = True
    assert _moved(role, 8, 2, updates=True) == 8 * 2 * 200 + 2 * 400
    role.full_shard = False  # so the weights stay gathered, too
    assert _moved(role, 8, 2, updates=True) == 2 * (200 + 400)


def test_loading_needs_a_slice_of_the_largest_tensor_or_the_whole_model(config_of):
    found = estimate(config_of(), {"actor": SHAPE}, GPU)
    assert (found.host_load, found.host_load_whole) == (1000 * 64 * 4 // 2, P * 4)
    on_host = estimate(config_of("worker.actor.fsdp.enable_cpu_offload=true"), {"actor": SHAPE}, GPU)
    assert on_host.host_load == 1000 * 64 * 4 // 2 + P * 4 // 2


def test_lora_keeps_its_base_in_the_arithmetics_type_and_is_its_own_reference(config_of):
    adapters = SHAPE.lora_parameters(8)
    found = phases(config_of("worker.actor.model.lora.rank=8"))
    update = found["update actor"]
    assert update["gradients"] == adapters * 4 // 2
    assert update["optimizer"] == adapters * 8 // 2
    assert update["weights"] == found["reference"]["weights"] == (P * 2 + adapters * 4) // 2
    away = phases(config_of("worker.actor.model.lora.rank=8", "worker.actor.offload.offload_params=true"))
    assert away["rollout"]["weights"] == 0
    assert away["reference"]["weights"] == update["weights"]
    other = phases(config_of("worker.actor.model.lora.rank=8", "worker.ref.model.model_path=an/other"))
    assert other["reference"]["weights"] == update["weights"] + P * 2 // 2


def test_offloading_takes_idle_roles_off_the_device(config_of):
    away = [f"worker.{role}.offload.offload_params=true" for role in ("actor", "ref")]
    found = phases(config_of(*away, "worker.actor.offload.offload_optimizer=true"))
    assert found["rollout"]["weights"] == found["rollout"]["optimizer"] == 0
    assert found["reference"]["weights"] == P * 2 // 2
    assert found["update actor"]["weights"] == P * 4 // 2
    assert found["update actor"]["optimizer"] == P * 8 // 2


def test_cpu_offload_keeps_everything_on_the_host(config_of):
    update = phases(config_of("worker.actor.fsdp.enable_cpu_offload=true"))["update actor"]
    assert update["gradients"] == update["optimizer"] == 0
    assert update["weights"] == P * 2 // 2  # the reference
    on_cpu = phases(config_of("worker.actor.fsdp.enable_cpu_offload=true"), CPU)["update actor"]
    assert on_cpu["optimizer"] == P * 8 // 2  # nowhere to go


def test_the_engine_has_its_share_of_the_gpu_and_sleeps_while_the_model_learns(config_of):
    found = phases(config_of("worker.rollout.gpu_memory_utilization=0.5"))
    assert found["rollout"]["engine"] == 40 * 10**9
    assert "engine" not in found["update actor"]


def test_on_the_cpu_the_engine_stays(config_of, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "2")
    found = phases(config_of("worker.rollout.dtype=fp32"), CPU)
    assert found["update actor"]["engine"] == found["rollout"]["engine"] == P * 5 + 2 * GIB  # packed: 1.25 x


def test_without_full_shard_the_reference_stays_gathered(config_of):
    whole, kept = (
        phases(config_of(f"worker.ref.fsdp.enable_full_shard={value}"))["rollout"]["gathered"]
        for value in ("true", "false")
    )
    assert (whole, kept) == (0, (P * 2))


def test_a_critic_has_phases_of_its_own(config_of):
    found = phases(config_of("algorithm.adv_estimator=gae", "worker.critic.global_batch_size=32"))
    assert {"values", "update critic"} <= found.keys()
    assert found["update critic"].get("logits", 0) == 0
    assert found["update actor"]["optimizer"] == 2 * (P * 8 // 2)


def test_micro_batches_are_as_large_as_the_budget_and_the_batch_allow(config_of):
    config = config_of(
        "data.max_prompt_length=96",
        "data.max_response_length=32",
        "worker.actor.micro_batch_size_per_device_for_update=4",
    )
    actor = config.worker.actor
    assert vars(micro_batch(config, actor, 96, update=True)) == {"tokens": 96 + 4 * 32, "responses": 4 * 32, "golds": 0}
    assert vars(micro_batch(config, actor, 32, update=True)) == {"tokens": 32 + 4 * 32, "responses": 4 * 32, "golds": 0}
    apart = replace(actor, share_prompts=False)
    assert vars(micro_batch(config, apart, 96, update=True)) == {"tokens": 4 * 128, "responses": 4 * 32, "golds": 0}
    # Prompts of 32 tokens: 8 samples of 64 tokens fill the budget of 512.
    assert vars(micro_batch(config, apart, 32, update=True)) == {"tokens": 512, "responses": 8 * 32, "golds": 0}
    fixed = config_of("worker.actor.dynamic_batching=false", "worker.actor.micro_batch_size_per_device_for_update=4")
    assert micro_batch(fixed, fixed.worker.actor, 32, update=True).responses == 4 * 512


def test_gold_answers_fill_the_budget_too_and_klr_holds_their_logits_under_both_models(config_of):
    """Four samples of a prompt of 96 tokens and its gold answer, of 32 tokens each: a budget of 4 samples holds 4 of
    them, and that of one, which may be a sample with its own answer, holds 2."""
    lengths = ["data.max_prompt_length=96", "data.max_response_length=32", "worker.actor.dynamic_batching=false"]
    plain, gdr, klr = (config_of(*lengths, f"algorithm.retain_loss={loss}") for loss in ("none", "gdr", "klr"))
    micro = micro_batch(gdr, gdr.worker.actor, 96, update=True)
    assert vars(micro) == {"tokens": 96 + 5 * 32, "responses": 5 * 32, "golds": 32}
    by_tokens = [replace(gdr.worker.actor, dynamic_batching=True, **{UPDATE: size}) for size in (4, 1)]
    assert [micro_batch(gdr, actor, 96, update=True).responses for actor in by_tokens] == [4 * 32, 2 * 32]
    assert micro_batch(gdr, gdr.worker.critic, 96, update=True).golds == 0
    logits = [phases(config)["update actor"]["logits"] for config in (plain, gdr, klr)]
    c = 2  # bytes in bf16
    assert logits[1] - logits[0] == 32 * 1000 * (2 * c + 12)
    assert logits[2] - logits[1] == (32 + 32 + 160) * 1000 * c
    alone = [replace(config, trainer=replace(config.trainer, n_gpus_per_node=1)) for config in (plain, gdr, klr)]
    seconds = [estimate(config, {"actor": SHAPE}, CPU).seconds["update actor"] for config in alone]
    assert seconds == sorted(set(seconds))


def test_saved_activations_are_what_autograd_keeps():
    from transformers import LlamaConfig, LlamaForCausalLM

    from verl.models.attention import Packing

    sizes = {"vocab_size": 50, "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4}
    saved = {}
    for layers in (1, 3):
        config = LlamaConfig(num_hidden_layers=layers, num_key_value_heads=2, **sizes)
        model = LlamaForCausalLM._from_config(config, attn_implementation="packed")
        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        kept = {}

        def pack(tensor, kept=kept, weights=weights):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        packing = Packing.of(torch.tensor([32, 32, 32]))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = model(
                input_ids=torch.zeros(1, 96, dtype=torch.int64),
                position_ids=packing.columns.unsqueeze(0),
                packing=packing,
                use_cache=False,
            )
        saved[layers] = sum(kept.values())
        del output
    shape = ModelShape.of(config.to_dict())
    assert (saved[3] - saved[1]) / 2 / 96 == pytest.approx(layer_activations(shape, 4, on_gpu=False), rel=0.05)


def test_checkpointing_saves_one_hidden_state_a_layer(config_of):
    settings = [
        "data.max_prompt_length=2048",
        "worker.actor.micro_batch_size_per_device_for_update=8",
        "worker.actor.fsdp.fsdp_size=2",
    ]
    changes = [f"worker.actor.model.enable_gradient_checkpointing={value}" for value in ("true", "false")]
    with_it, without = (estimate(config_of(*settings, change), {"actor": SHAPE}, GPU) for change in changes)
    assert with_it.total("update actor") < without.total("update actor")


def test_ranks_that_share_samples_share_their_activations_and_logits(config_of):
    alone, shared = (phases(config_of(f"worker.actor.ulysses_size={size}"))["update actor"] for size in (1, 2))
    assert shared["activations"] == alone["activations"] // 2
    assert shared["logits"] == alone["logits"] // 2
    assert shared["weights"] == alone["weights"]


def test_an_exact_kl_in_the_loss_holds_the_references_logits_in_the_update(config_of):
    sampled, exact = (phases(config_of(f"algorithm.kl_penalty={kl}")) for kl in ("low_var_kl", "full"))
    assert "reference" in sampled and "reference" not in exact
    assert sum(exact["update actor"].values()) > sum(sampled["update actor"].values())


def test_time_follows_the_ranks_and_checkpointing(config_of):
    one, two = (estimate(config_of(f"trainer.n_gpus_per_node={n}"), {"actor": SHAPE}, GPU).seconds for n in (1, 2))
    assert two["rollout"] < one["rollout"]
    plain = estimate(
        config_of("worker.actor.model.enable_gradient_checkpointing=false", "trainer.n_gpus_per_node=1"),
        {"actor": SHAPE},
        GPU,
    )
    assert one["update actor"] == pytest.approx(plain.seconds["update actor"] * 4 / 3)


def test_dry_run_says_why_there_is_no_estimate(config_of, tmp_path):
    [line] = describe(config_of(), [{"prompt": "p"}])
    assert "no estimate: config.json without hidden_size" in line
    (tmp_path / "config.json").write_text(json.dumps({"num_experts": 4}))
    assert "mixture of experts" in describe(config_of(), [{"prompt": "p"}])[0]


AUTO = [f"worker.actor.{size}=auto" for size in (UPDATE, EXPERIENCE)]
LENGTHS = ["data.max_prompt_length=96", "data.max_response_length=32"]
BIG = ModelShape.of(SIZES | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 8, "head_dim": 1024})


def found(config, shapes, memory):
    actor = with_micro_batches(config, shapes, memory).worker.actor
    return getattr(actor, UPDATE), getattr(actor, EXPERIENCE)


def test_micro_batches_of_a_cpu_have_the_tokens_that_amortise_a_pass_over_the_weights(config_of):
    shapes, apart = {"actor": SHAPE}, "worker.actor.share_prompts=false"
    assert found(config_of(*AUTO, *LENGTHS, apart), shapes, None) == (CPU_TOKENS // (96 + 32),) * 2
    assert found(config_of(*AUTO, *LENGTHS, "worker.rollout.n=8"), shapes, None) == (CPU_TOKENS // (96 // 8 + 32),) * 2
    # A rank's share: 8 prompts of 2 samples are updated at once, 32 scored, by 2 ranks.
    few = config_of(*AUTO, *LENGTHS, "worker.rollout.n=2", "worker.actor.global_batch_size=8")
    assert found(few, shapes, None) == (8, 32)
    assert found(config_of(*AUTO, "data.max_prompt_length=4096", apart), shapes, None) == (1, 1)


def test_micro_batches_of_a_gpu_are_the_largest_power_of_two_that_fits(config_of):
    words = [*LENGTHS, "worker.rollout.n=64", "worker.actor.share_prompts=false"]
    words += ["worker.actor.offload.offload_params=true"]
    config = config_of(*AUTO, *words)
    update, experience = found(config, {"actor": BIG}, GPU.memory)
    assert update < experience == 1024 == 32 * 64 // 2  # its share
    assert update.bit_count() == 1
    for samples, fits in ((update, True), (2 * update, False)):
        sizes = [f"worker.actor.{UPDATE}={samples}", f"worker.actor.{EXPERIENCE}=1", *words]
        worst = max(
            estimate(config_of(*sizes), {"actor": BIG}, GPU, prompt).total("update actor") for prompt in (1, 96)
        )
        assert (worst <= 0.75 * GPU.memory) == fits
    assert found(config, {"actor": BIG}, GIB) == (1, 1)


def test_models_without_an_estimate_get_easyr1s_micro_batches(config_of):
    assert found(config_of(*AUTO), None, GPU.memory) == (4, 16)
    padded = config_of(*AUTO, "worker.actor.padding_free=false")
    assert found(padded, {"actor": SHAPE}, GPU.memory) == (4, 16)


def test_numbers_that_are_given_stay(config_of):
    config = config_of(AUTO[1], f"worker.actor.{UPDATE}=3")
    assert found(config, {"actor": SHAPE}, None)[0] == 3
    assert with_micro_batches(config_of(), None, None) == config_of()


def test_the_dry_run_says_which_micro_batches_it_found(config_of):
    apart = "worker.actor.share_prompts=false"
    config = with_micro_batches(config_of(*AUTO, *LENGTHS, apart), {"actor": SHAPE}, None)
    [line] = lines_of(config)
    assert line == "micro-batches, actor   32 samples (update) and 32 (experience), 4096 and 4096 tokens"


@pytest.mark.parametrize("word", ["all", "0", "-1", "1.5", "2k"])
def test_micro_batches_are_numbers_or_auto(config_of, word):
    with pytest.raises(ConfigError, match=f"worker.critic.{UPDATE}='?{word}'?: must be"):
        config_of(f"worker.critic.{UPDATE}={word}")


def test_a_rank_alone_gathers_nothing_where_no_type_differs(config_of):
    in_fp32 = [f"worker.{role}.fsdp.mp_param_dtype=fp32" for role in ("ref", "actor")]
    whole, cast = (phases(config_of("trainer.n_gpus_per_node=1", *words), CPU) for words in (in_fp32, in_fp32[:1]))
    assert whole["reference"]["gathered"] == whole["update actor"]["gathered"] == 0
    assert cast["update actor"]["gathered"] == P * 2  # held from pass to pass
    assert whole["update actor"]["gradients"] == P * 4


@pytest.mark.parametrize(
    ("variables", "calls"), [({}, [(-3, 2**30), (-1, 2**31 - 1)]), ({"MALLOC_TRIM_THRESHOLD_": "1"}, [])]
)
def test_freed_tensors_are_kept_unless_the_user_has_set_glibcs_thresholds(monkeypatch, variables, calls):
    asked = []
    monkeypatch.setattr(meter.ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=lambda *words: asked.append(words)))
    monkeypatch.setattr(meter.sys, "platform", "linux")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    meter.keep_freed()
    assert asked == calls


def test_a_later_run_of_a_process_counts_from_where_the_first_did():
    first = meter.MemoryMeter(on_gpu=False)
    kept = torch.ones(2**26)  # what the run before left behind, touched and so resident
    later = meter.MemoryMeter(on_gpu=False)
    assert later.held() == pytest.approx(first.held(), abs=kept.nbytes / 8)
