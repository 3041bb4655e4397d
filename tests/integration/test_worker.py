"""One rank with its engine, without Ray: weight sync, LoRA, the on-policy short cut, non-finite steps, seeds."""

import json
import random
import socket
import tempfile
import traceback
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.conftest import save_tiny_model
from tests.scheduler_simulation import Simulation, random_load
from tests.training_kit import FORKS, arguments
from verl.models.export import exported_tensors
from verl.models.fsdp import local_shard
from verl.protocol import DataProto
from verl.trainer.data_loader import PromptLoader
from verl.trainer.dataset import RLHFDataset
from verl.trainer.preflight import read_config
from verl.workers.fsdp_workers import FSDPWorker
from verl.workers.sharding_manager.fsdp_vllm import DivergedError, StaleWeightsError

SAMPLING = {"temperature": 1.0, "top_p": 1.0, "top_k": -1}


def weights(worker) -> list[torch.Tensor]:
    return [local_shard(param).clone() for param in worker.actor.module.parameters()]


def prompts(worker, count: int) -> DataProto:
    data = worker.config.data
    dataset = RLHFDataset(data.train_files, worker.tokenizer, "prompt", "solution", data.max_prompt_length)
    batch = PromptLoader(dataset, shuffle=False, seed=1).next(count)
    tensors, others = ["input_ids", "attention_mask", "position_ids"], ["raw_prompt_ids", "uid"]
    return batch.select(tensors, others)


def samples(worker, count=4, n=4, step=1) -> DataProto:
    request = prompts(worker, count)
    request.meta_info = {"n": n, "step": step, **SAMPLING}
    return sampled(worker, request)


def sampled(worker, request) -> DataProto:
    """In a phase of its own."""
    worker.open_engine()
    batch = worker.generate_sequences(request)
    worker.close_engine()
    return batch


def to_update(batch: DataProto, **tensors) -> DataProto:
    generator = torch.Generator().manual_seed(0)
    shape = batch.batch["responses"].shape
    batch = batch.select(non_tensor_batch_keys=[])
    batch.batch["advantages"] = torch.randn(shape, generator=generator)
    batch.batch["ref_log_probs"] = batch.batch["rollout_log_probs"] - 0.1
    batch.batch.update(tensors)
    batch.meta_info = {"kl_coef": 0.01, "step": 1}
    return batch


def check_stale_weights_end_the_run(worker) -> None:
    manager, parameter = worker.sharding_manager, next(iter(worker.actor.module.parameters()))
    manager.open()
    manager.close()
    with torch.no_grad():
        parameter.add_(0.3)
    changed = manager.score(manager.tokens)
    with pytest.raises(StaleWeightsError, match="does not hold the actor's weights"):
        manager.verify(changed)
    manager.open()
    manager.verify(changed)
    manager.close()
    with torch.no_grad():
        parameter.sub_(0.3)
    before = weights(worker)
    with torch.no_grad():
        parameter.fill_(float("inf"))
    with pytest.raises(DivergedError, match="not finite any more.*lower worker.actor.optim.lr"):
        manager.open()
    manager.close()
    restore(worker, before)


def check_a_tensor_that_the_engine_does_not_take_ends_the_run(worker) -> None:
    manager, rollout = worker.sharding_manager, worker.sharding_manager.rollout
    weights = list(exported_tensors(manager.module, torch.float32))
    with pytest.raises(StaleWeightsError, match="left 1 of vLLM's parameters as they were: model.norm.weight"):
        manager._load_weights(pair for pair in weights if pair[0] != "model.norm.weight")
    assert "model.norm.weight" in rollout.kept
    taken, rollout.load_weights = rollout.load_weights, lambda pairs: [] if list(pairs) else []
    renewed = [(name, tensor + 1e-6 * (name == "model.norm.weight")) for name, tensor in weights]
    with pytest.raises(StaleWeightsError, match="1 of vLLM's tensors are not what it was sent: model.norm.weight"):
        manager._load_weights(renewed)
    rollout.load_weights = taken
    manager._load_weights(renewed)


def check_a_sync_gathers_every_weight_once(worker) -> None:
    worker.close_engine()  # counts from here on
    worker.open_engine()
    counted = worker.close_engine()
    parameters = sum(param.numel() for param in worker.actor.module.parameters())
    assert counted == {"weight_syncs": 1, "sync_gathered_gib": 4 * parameters / 2**30}


def check_samples_do_not_depend_on_batching(worker) -> None:
    whole = samples(worker, 4)
    request = prompts(worker, 4)
    for rows in ([2, 3], [0, 1]):
        part = request[rows]
        part.meta_info = {"n": 4, "step": 1, **SAMPLING}
        alone = sampled(worker, part)
        of_whole = whole[[row * 4 + number for row in rows for number in range(4)]]
        assert torch.equal(alone.batch["responses"], of_whole.batch["responses"])
    assert not torch.equal(samples(worker, 4, step=2).batch["responses"], whole.batch["responses"])


def check_a_groups_prompt_is_computed_once_and_its_samples_are_vllms_own(worker) -> None:
    """Also where a group does not fit the engine at once, or a prompt the tokens of a step; counted in tokens."""
    rollout, (groups, n, width) = worker.sharding_manager.rollout, (4, 4, 16)
    scheduler = rollout.llm.llm_engine.engine_core.engine_core.scheduler
    config, rollout.config = rollout.config, replace(rollout.config, ignore_eos=True)
    schedule, computed = scheduler.schedule, []
    scheduler.schedule = lambda *words: computed.append(schedule(*words)) or computed[-1]
    three = dict.fromkeys(("max_num_running_reqs", "max_num_active_reqs"), 3)
    found, usual = [], {key: getattr(scheduler, key) for key in ("plain", "max_num_scheduled_tokens", *three)}
    lengths = prompts(worker, groups).batch["attention_mask"].sum(dim=1).tolist()
    for changes in ({"plain": False}, {}, three, {"max_num_scheduled_tokens": 40}):  # no less than the sync's text
        vars(scheduler).update(usual | changes)
        computed.clear()
        batch = samples(worker, groups, n)
        found.append((batch, sum(step.total_num_scheduled_tokens for step in computed)))
    vars(scheduler).update(usual)
    scheduler.schedule, rollout.config = schedule, config
    decoded = groups * n * (width - 1) + len(worker.sharding_manager.tokens)  # with the text that proves the sync
    once = sum(lengths) + groups * (n - 1) + decoded  # the others begin at the prompt's last token
    own = n * sum(lengths) + decoded  # these prompts are shorter than a block
    assert usual["plain"]
    assert [count for _, count in found] == [own, once, once, once]
    for batch, _ in found[1:]:
        assert torch.equal(batch.batch["responses"], found[0][0].batch["responses"])
        difference = batch.batch["rollout_log_probs"] - found[0][0].batch["rollout_log_probs"]
        assert difference.abs().max() < 1e-5


def check_groups_see_their_own_tokens_wherever_they_meet_a_limit(worker) -> None:
    """Without a model: each request attends to its prompt and its tokens, and ends as in vLLM's own scheduler."""
    config, generator = worker.sharding_manager.rollout.llm.llm_engine.vllm_config, random.Random(0)
    computed = []
    for _ in range(30):
        load = random_load(generator)
        ours, vllms = (Simulation(config, load, plain=plain) for plain in (True, False))
        assert ours.run() == vllms.run(), load
        computed.append((ours.computed, vllms.computed))
    ours, vllms = map(sum, zip(*computed, strict=True))
    assert ours < 0.8 * vllms  # with the tokens that are computed again for requests that gave way


def check_an_engine_samples_between_open_and_close_from_one_hand_over(worker) -> None:
    request = prompts(worker, 2)
    request.meta_info = {"n": 1, "step": 1, **SAMPLING}
    worker.open_engine()
    worker.close_engine()
    worker.open_engine()
    first, second = (worker.generate_sequences(request) for _ in range(2))
    assert torch.equal(first.batch["responses"], second.batch["responses"])
    assert worker.close_engine()["weight_syncs"] == 1
    with pytest.raises(RuntimeError, match="call open_engine before"):
        worker.generate_sequences(request)


def check_responses_go_on_behind_eos_where_that_is_wanted(worker) -> None:
    rollout = worker.sharding_manager.rollout
    config, eos = rollout.config, rollout.eos_token_ids
    assert worker.tokenizer.decode(eos) == "<|eos|><|end|>"  # the model's, and the chat template's
    rollout.eos_token_ids = samples(worker).batch["responses"][:, 0].unique().tolist()  # so that many would end
    assert samples(worker).batch["response_mask"].sum() < 16 * 16
    rollout.config = replace(config, ignore_eos=True)
    assert samples(worker).batch["response_mask"].sum() == 16 * 16
    rollout.config, rollout.eos_token_ids = config, eos


def check_engine_log_probs_are_the_actors(worker) -> None:
    batch = samples(worker)
    actor = worker.actor.compute_log_prob(batch)
    assert (actor - batch.batch["rollout_log_probs"]).abs().max() < 1e-4
    assert (actor != 0).sum() == batch.batch["response_mask"].sum()


def check_the_on_policy_short_cut_changes_nothing(worker) -> None:
    batch = to_update(samples(worker))
    before = weights(worker)
    results, after = [], []
    for extra in ({}, {"old_log_probs": worker.actor.compute_log_prob(batch)}):
        restore(worker, before)
        results.append(worker.update_actor(to_update(batch, **extra)).meta_info["metrics"])
        after.append(weights(worker))
    moving = ("perf/peak", "actor/lr")
    first, second = ({k: v for k, v in one.items() if not k.startswith(moving)} for one in results)
    assert first == second
    assert all(torch.equal(one, other) for one, other in zip(*after, strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(before, after[0], strict=True))


def check_a_step_that_is_not_finite_is_skipped_and_counted(worker) -> None:
    batch = to_update(samples(worker))
    batch.batch["advantages"][0, 0] = float("nan")
    before, skipped = weights(worker), worker.actor.stepper.skipped
    metrics = worker.update_actor(batch).meta_info["metrics"]
    assert metrics["actor/skipped_steps"] == skipped + 1
    assert all(torch.equal(one, other) for one, other in zip(before, weights(worker), strict=True))


def restore(worker, saved) -> None:
    with torch.no_grad():
        for param, value in zip(worker.actor.module.parameters(), saved, strict=True):
            local_shard(param).copy_(value)
    worker.actor.stepper.optimizer.state.clear()


def lora_keeps_a_bf16_base_and_fp32_adapters(worker) -> None:
    types = {name: param.dtype for name, param in worker.actor.module.named_parameters()}
    assert {dtype for name, dtype in types.items() if "lora_" in name} == {torch.float32}
    assert {dtype for name, dtype in types.items() if "lora_" not in name} == {torch.bfloat16}


def lora_engine_agrees_after_updates_that_bf16_would_lose(worker) -> None:
    """Five steps at lr 1e-6 move the adapters by less than bf16 resolves in the weights."""
    start = worker.actor.compute_log_prob(samples(worker, 2, 2))
    for step in range(1, 6):
        batch = to_update(samples(worker, 2, 2, step))
        batch.meta_info["step"] = step
        worker.update_actor(batch)
    batch = samples(worker, 2, 2)
    mask = batch.batch["response_mask"].bool()
    difference = (worker.actor.compute_log_prob(batch) - batch.batch["rollout_log_probs"])[mask]
    assert difference.abs().mean() < 1e-3
    moved = [param.abs().max() for name, param in worker.actor.module.named_parameters() if "lora_B" in name]
    assert 0 < max(moved) < 1e-5
    assert start.isfinite().all()


def lora_reference_is_the_actor_without_adapters(worker) -> None:
    batch = samples(worker, 2, 2)
    module = worker.actor.module
    assert worker.reference.module is module
    apart = {name: param.detach().clone() for name, param in module.named_parameters() if "lora_B" in name}
    before = worker.compute_ref_log_probs(batch).batch["ref_log_probs"]
    with torch.no_grad():
        for name, param in module.named_parameters():
            if name in apart:
                param.add_(0.1)
    assert torch.equal(worker.compute_ref_log_probs(batch).batch["ref_log_probs"], before)
    assert not torch.allclose(worker.actor.compute_log_prob(batch), before, atol=1e-2)
    check_a_saved_adapter_is_the_trainers_model(worker, batch)
    with torch.no_grad():
        for name, param in module.named_parameters():
            if name in apart:
                param.copy_(apart[name])


def check_a_saved_adapter_is_the_trainers_model(worker, batch: DataProto) -> None:
    """What peft opens, on the base in bf16 as the trainer has it, says what the trainer says."""
    with tempfile.TemporaryDirectory() as folder:
        worker.save_checkpoint(folder, True)
        config = worker.config.worker.actor.model
        base = AutoModelForCausalLM.from_pretrained(config.model_path, dtype=torch.bfloat16)
        model = PeftModel.from_pretrained(base, f"{folder}/actor/lora_adapter", autocast_adapter_dtype=False)
        merged = AutoModelForCausalLM.from_pretrained(f"{folder}/actor/huggingface")
    model.to(torch.bfloat16).eval()
    row = batch.select(non_tensor_batch_keys=[])[:1]
    seen = row.batch["attention_mask"][0].bool()
    ids, count = row.batch["input_ids"][0][seen][None], int(row.batch["response_mask"].sum())
    for one, tolerance in ((model, 2e-2), (merged.to(torch.bfloat16), 5e-2)):
        with torch.no_grad():
            log_probs = one(ids).logits[0, :-1].float().log_softmax(-1).gather(1, ids[0, 1:, None])[-count:, 0]
        torch.testing.assert_close(worker.actor.compute_log_prob(row)[0][:count], log_probs, atol=tolerance, rtol=0)


PLAIN = {name.removeprefix("check_"): check for name, check in globals().items() if name.startswith("check_")}
del PLAIN["a_saved_adapter_is_the_trainers_model"]
LORA = {name: check for name, check in globals().items() if name.startswith("lora_")}
IN_BF16 = [
    "worker.actor.model.lora.rank=4",
    "worker.actor.optim.lr=1e-6",
    "worker.actor.fsdp.mp_param_dtype=bf16",
    "worker.rollout.dtype=bf16",
]


def run_checks(checks: dict, changes: list[str], model, folder, port: int) -> None:
    argv = arguments(model, folder, "run", "trainer.n_gpus_per_node=1", *changes)
    worker = FSDPWorker(read_config(argv), 0, 10)
    worker.connect(("127.0.0.1", port), 1)
    worker.init_model()
    verdicts = {}
    for name, check in checks.items():
        try:
            check(worker)
            verdicts[name] = ""
        except (AssertionError, RuntimeError, KeyError, TypeError, ValueError, pytest.fail.Exception):
            verdicts[name] = traceback.format_exc()
    (folder / "verdicts.json").write_text(json.dumps(verdicts))


@pytest.fixture(scope="module")
def verdicts(tiny_model, tmp_path_factory):
    found = {}
    # At the usual initialisation bf16 rounds log-probabilities by less than a thousandth.
    usual = save_tiny_model(tmp_path_factory.mktemp("usual") / "model", initializer_range=0.02)
    for checks, changes, model in ((PLAIN, [], tiny_model), (LORA, IN_BF16, usual)):
        folder = tmp_path_factory.mktemp("worker")
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
            process = FORKS.Process(target=run_checks, args=(checks, changes, model, folder, port))
        process.start()
        process.join()
        assert process.exitcode == 0
        found |= json.loads((folder / "verdicts.json").read_text())
    return found


@pytest.mark.parametrize("name", [*PLAIN, *LORA])
def test_one_rank(verdicts, name):
    assert not verdicts[name], verdicts[name]
