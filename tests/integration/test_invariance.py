"""The loss and the gradient norm of an update do not depend on how the batch is cut up.

With l_t the loss of token t, a mini-batch's loss under ``token`` averaging is (sum over ranks, micro-batches and tokens
t of l_t) / (number of tokens of all ranks and micro-batches). Every cut of the batch sums the same terms in another
order and divides by the same count; so do ``seq`` and ``constant`` with their own weights. Only rounding may differ.
"""

import json
import socket

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from tests.conftest import save_tiny_model
from tests.training_kit import FORKS, arguments
from verl.models.export import exported_tensors
from verl.models.ulysses import SequenceParallel
from verl.protocol import DataProto
from verl.trainer.preflight import read_config
from verl.utils.memory import MemoryMeter
from verl.workers.fsdp_workers import FSDPWorker

ACTOR = "worker.actor"
WHOLE = [
    f"{ACTOR}.padding_free=false",
    f"{ACTOR}.dynamic_batching=false",
    f"{ACTOR}.micro_batch_size_per_device_for_update=8",
]
CUTS = {
    "auto": [f"{ACTOR}.micro_batch_size_per_device_for_update=auto"],
    "micro-batches of 1": [f"{ACTOR}.dynamic_batching=false", f"{ACTOR}.micro_batch_size_per_device_for_update=1"],
    "micro-batches of 3": [f"{ACTOR}.dynamic_batching=false", f"{ACTOR}.micro_batch_size_per_device_for_update=3"],
    "padded micro-batches of 3": [*WHOLE, f"{ACTOR}.micro_batch_size_per_device_for_update=3"],
    "by tokens": [f"{ACTOR}.micro_batch_size_per_device_for_update=1", "data.max_response_length=8"],
    "reduced once": [
        f"{ACTOR}.fsdp.defer_gradient_reduction=true",
        f"{ACTOR}.dynamic_batching=false",
        f"{ACTOR}.micro_batch_size_per_device_for_update=1",
    ],
    "reduced once, gathered once": [
        f"{ACTOR}.fsdp.defer_gradient_reduction=true",
        f"{ACTOR}.fsdp.enable_full_shard=false",
        f"{ACTOR}.dynamic_batching=false",
        f"{ACTOR}.micro_batch_size_per_device_for_update=3",
    ],
    "checkpointed": [f"{ACTOR}.model.enable_gradient_checkpointing=true"],
    "each with its own prompt": [f"{ACTOR}.share_prompts=false"],
}
SHARED = {
    "sequences shared": [f"{ACTOR}.ulysses_size=2"],
    "sequences shared, one at a time": [
        f"{ACTOR}.ulysses_size=2",
        f"{ACTOR}.dynamic_batching=false",
        f"{ACTOR}.micro_batch_size_per_device_for_update=1",
        f"{ACTOR}.model.enable_gradient_checkpointing=true",
    ],
}
"""Two ranks work on the same samples, half of the tokens each."""
LOSSES = {
    "token": [],
    "seq": [f"{ACTOR}.loss_avg_mode=seq"],
    "gspo": [f"{ACTOR}.loss_type=gspo", f"{ACTOR}.loss_avg_mode=seq"],
    "exact KL": ["algorithm.kl_penalty=full", "worker.ref.model.model_path=OTHER"],
    "constant": [f"{ACTOR}.loss_avg_mode=constant"],
    "gspo_token": [f"{ACTOR}.loss_type=gspo_token", f"{ACTOR}.loss_avg_mode=seq"],
    "cispo": [f"{ACTOR}.loss_type=cispo"],
    "sapo": [f"{ACTOR}.loss_type=sapo"],
    "weighted rows, as under replay": ["algorithm.rollout_is=token"],
    "gold answers, sharper samples": ["algorithm.retain_loss=gdr", "worker.rollout.temperature=0.7"],
    "gold answers by KL": ["algorithm.retain_loss=klr", "worker.ref.model.model_path=OTHER"],
}
"""One prompt of three has a gold answer, beside its first row: most micro-batches and one of two ranks have none."""
FEW_CUTS = ("by tokens", "each with its own prompt", "sequences shared")
"""A loss sees the same numbers however the batch is cut, so all but the plain one are cut in few ways."""
SOME_CUTS = {
    "seq": ("micro-batches of 1", *FEW_CUTS),
    "gspo": ("micro-batches of 3", *FEW_CUTS),
    "exact KL": ("padded micro-batches of 3", "checkpointed", *FEW_CUTS),
    "gold answers, sharper samples": ("micro-batches of 1", "padded micro-batches of 3", *FEW_CUTS[::2]),
    "gold answers by KL": ("micro-batches of 1", "padded micro-batches of 3", *FEW_CUTS[::2]),
}


def cuts_of(loss: str, world: int) -> list[str]:
    """What is cut on two ranks is compared with the whole on one; on one rank, only the plain loss is cut."""
    everything = ["whole", *CUTS, *(SHARED if world == 2 else ())]
    if loss == "token" or (loss == "critic" and world == 2):
        return everything
    return ["whole", *(SOME_CUTS.get(loss, FEW_CUTS) if world == 2 else ())]


CRITIC = [
    "algorithm.adv_estimator=gae",
    "worker.critic.global_batch_size=8",
    "worker.critic.fsdp.mp_param_dtype=fp32",
    "worker.critic.optim.lr=1e-30",
]
PROMPT, RESPONSE, ROWS = 12, 8, 8
PROMPT_OF = [0, 0, 0, 3, 4, 4, 4, 3]
"""the row that a row has its prompt from"""


def batch() -> DataProto:
    """Eight samples of three prompts, of different lengths, with everything an update reads."""
    generator = torch.Generator().manual_seed(3)

    def draw(low, high, *shape):
        return torch.randint(low, high, shape, generator=generator)

    prompts, responses = draw(3, 12, ROWS), draw(1, RESPONSE + 1, ROWS)
    attention = torch.zeros(ROWS, PROMPT + RESPONSE, dtype=torch.int64)
    for row, (prompt, response) in enumerate(zip(prompts.tolist(), responses.tolist(), strict=True)):
        attention[row, PROMPT - prompt : PROMPT + response] = 1
    attention[:, :PROMPT] = attention[PROMPT_OF, :PROMPT]
    ids = draw(8, 300, ROWS, PROMPT + RESPONSE)
    ids[:, :PROMPT] = ids[PROMPT_OF, :PROMPT]
    ids *= attention
    noise = torch.rand(6, ROWS, RESPONSE, generator=generator)
    return DataProto.from_dict(
        {
            "input_ids": ids,
            "attention_mask": attention,
            "position_ids": (attention.cumsum(1) - 1).clamp(min=0),
            "responses": ids[:, PROMPT:],
            "response_mask": attention[:, PROMPT:],
            "old_log_probs": -6 + noise[0],
            "ref_log_probs": -6 + noise[1],
            "rollout_log_probs": -6 + noise[2],
            "advantages": noise[3] - 0.5,
            "values": noise[4],
            "returns": noise[5],
        },
        meta_info={"kl_coef": 0.01, "step": 1},
    )


def with_gold(rows: DataProto) -> DataProto:
    """The batch with a gold answer of six tokens for one of its prompts."""
    rows.batch["gold"] = torch.full((ROWS, RESPONSE), -1)
    rows.batch["gold"][4, :6] = torch.tensor([9, 100, 30, 31, 250, 6])
    return rows


def update_all(rank: int, world: int, port: int, cases: dict, model: str, folder: str) -> None:
    """Run one update for every case on this rank; rank 0 writes the metrics of all."""
    results, worker = {}, None
    for name, changes in cases.items():
        # Two epochs, so that old log-probabilities are taken from the batch.
        fixed = [f"trainer.n_gpus_per_node={world}", "worker.actor.ppo_epochs=2", "data.max_response_length=8"]
        argv = arguments(model, folder, "run", *fixed, "worker.actor.optim.lr=1e-30", *changes)
        worker = FSDPWorker(read_config(argv), rank, 1)
        if not dist.is_initialized():
            worker.connect(("127.0.0.1", port), 1)
        worker.on_gpu, worker.device, worker.memory = False, torch.device("cpu"), MemoryMeter(on_gpu=False)
        worker.config = worker._with_micro_batches()
        sharing = worker.config.worker.actor.ulysses_size
        worker.parallel = SequenceParallel.of(sharing)
        part = batch().chunk(world // sharing)[rank // sharing]
        if name.startswith("gold"):
            part = with_gold(batch()).chunk(world // sharing)[rank // sharing]
        if name.startswith("weighted"):
            part.batch["loss_weights"] = 0.5 + part.batch["values"]
        if name.startswith("critic"):
            worker.critic = worker._build_critic()
            with torch.no_grad():
                worker.critic.module.score.weight.fill_(0.1)  # zero at first, which lets no gradient through
            results[name] = worker.update_critic(part)
            continue
        worker.actor = worker._build_policy(trained=True)
        if name.startswith(("exact", "gold answers by KL")):
            worker.actor.reference = worker._build_policy(trained=False)
        worker.memory.start(0)
        results[name] = worker.update_actor(part).meta_info["metrics"]
    module = worker.critic.module  # the last one built; its head has one row, which one of two ranks holds
    exported = dict(exported_tensors(module, torch.float32))
    results["exported"] = {
        name: torch.equal(exported[name], tensor.full_tensor() if isinstance(tensor, DTensor) else tensor)
        for name, tensor in module.state_dict().items()
    }
    if rank == 0:
        (folder / f"world_{world}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


def run_world(world, cases, model, folder):
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    ranks = [FORKS.Process(target=update_all, args=(rank, world, port, cases, model, folder)) for rank in range(world)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert [rank.exitcode for rank in ranks] == [0] * world
    return json.loads((folder / f"world_{world}.json").read_text())


@pytest.fixture(scope="module")
def results(tiny_model, tmp_path_factory):
    """(loss, ranks, cut) to metrics."""
    folder = tmp_path_factory.mktemp("invariance")
    other = save_tiny_model(folder / "other", seed=1)
    found = {}
    for world in (1, 2):
        cases = {}
        for loss, words in (LOSSES | {"critic": CRITIC}).items():
            for cut in cuts_of(loss, world):
                changes = ({"whole": WHOLE} | CUTS | SHARED)[cut]
                if loss == "critic":
                    changes = [*changes, *(word.replace(ACTOR, "worker.critic") for word in changes)]
                cases[f"{loss}/{cut}"] = [word.replace("OTHER", str(other)) for word in (*words, *changes)]
        found[world] = run_world(world, cases, tiny_model, folder)
    return found


@pytest.mark.parametrize(
    ("loss", "world", "cut"),
    [(loss, world, cut) for loss in LOSSES for world in (1, 2) for cut in cuts_of(loss, world)],
)
def test_an_update_is_the_same_however_the_batch_is_cut(results, loss, world, cut):
    gold = loss.startswith("gold")
    agree(results, loss, cut, world, *(["actor/retain_loss"] if gold else []))
    assert not gold or results[1][f"{loss}/whole"]["actor/retain_loss"] > 0.01


def agree(results, loss, cut, world, *more):
    expected, got = results[1][f"{loss}/whole"], results[world][f"{loss}/{cut}"]
    assert expected["actor/grad_norm"] > 1e-3
    for key in ("actor/pg_loss", "actor/kl_loss", "actor/grad_norm", "actor/entropy", *more):
        assert got[key] == pytest.approx(expected[key], rel=1e-5, abs=1e-9), key


@pytest.mark.parametrize("cut", cuts_of("critic", 2))
def test_so_is_the_critics(results, cut):
    expected, got = results[1]["critic/whole"], results[2][f"critic/{cut}"]
    assert expected["critic/grad_norm"] > 1e-3
    for key in ("critic/vf_loss", "critic/vpred_mean", "critic/grad_norm"):
        assert got[key] == pytest.approx(expected[key], rel=1e-5, abs=1e-6), key  # values of both signs, up to 0.3


def test_the_exact_kl_is_another_kl(results):
    exact, estimated = (results[1][f"{loss}/whole"]["actor/kl_loss"] for loss in ("exact KL", "token"))
    assert exact > 0.01
    assert exact != pytest.approx(estimated, rel=0.01)


@pytest.mark.parametrize("world", [1, 2])
def test_exported_weights_are_whole(results, world):
    assert len(results[world]["exported"]) == 22
    assert all(results[world]["exported"].values())
