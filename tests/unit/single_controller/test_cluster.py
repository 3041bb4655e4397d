"""Where a run's ranks work is the cluster's to say, not the driver's machine's. No Ray is started."""

import re
import signal
import socket
from types import SimpleNamespace

import pytest
import ray
import torch
import torch.distributed as dist

from tests.training_kit import arguments
from verl.config.checks.inert import inert_settings
from verl.estimate.dry_run import describe
from verl.single_controller import cluster_has_gpus, placement
from verl.trainer.main import start_ray
from verl.trainer.preflight import read_config
from verl.utils import vllm_env
from verl.utils.errors import ConfigError
from verl.utils.ray_address import reachable
from verl.workers import fsdp_workers
from verl.workers.fsdp_workers import FSDPWorker


@pytest.fixture
def config_of(tiny_model, tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return lambda *changes: read_config(arguments(tiny_model, tmp_path, "run", *changes))


@pytest.fixture
def cluster(monkeypatch):
    """The GPUs of each machine of a pretended cluster; while the driver waits, those in ``coming`` join."""
    machines, coming = [0], []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": float(sum(machines))})
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True} for _ in machines])
    monkeypatch.setattr(placement.time, "sleep", lambda seconds: machines.append(coming.pop()))
    return machines, coming


def test_ranks_have_gpus_where_the_cluster_has_some(cluster, monkeypatch):
    machines, coming = cluster
    assert not cluster_has_gpus(1)  # a machine without one, alone
    coming += [8, 0]
    assert cluster_has_gpus(3)  # the head node is up; its machines join one after the other
    assert machines == [0, 0, 8]
    for word in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", word)
        assert not cluster_has_gpus(3)


def test_a_cluster_with_fewer_gpus_than_asked_for_says_so(cluster, monkeypatch):
    machines, _ = cluster
    machines += [4]
    removed, never = [], SimpleNamespace(wait=lambda seconds: False)
    monkeypatch.setattr(placement, "placement_group", lambda bundles, strategy: never)
    monkeypatch.setattr(placement, "remove_placement_group", removed.append)
    monkeypatch.setattr(placement, "PATIENCE_S", -1)
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 8.0, "GPU": 4.0})
    wanted = r"n_gpus_per_node=8: gave up waiting for 1 machine.*'GPU': 8.0} each; Ray has .*'GPU': 4.0} in all"
    with pytest.raises(ConfigError, match=wanted):
        placement.place_ranks(1, 8, with_gpus=cluster_has_gpus(1))
    assert removed == [never]


def test_the_gpus_of_this_machine_are_those_that_torch_can_use_and_two_signals_end_a_run(config_of, monkeypatch):
    options, handlers = {}, {}
    monkeypatch.setattr(ray, "init", lambda **given: options.update(given))
    monkeypatch.setattr("signal.signal", handlers.__setitem__)
    start_ray(config_of(), reachable(1))
    assert (options["address"], options["num_gpus"]) == ("local", torch.cuda.device_count())
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):  # what ends a run
        with pytest.raises(SystemExit, match=str(code)):
            handlers[number](number, None)
    options.clear()
    start_ray(config_of(), "10.0.0.1:6379")
    assert options == {"address": "10.0.0.1:6379", "logging_level": options["logging_level"]}


@pytest.mark.parametrize(
    ("address", "nodes", "rule"),
    [
        ("foo", 1, "must be HOST:PORT of a cluster's head"),
        (":6379", 1, "must be HOST:PORT"),
        ("host:99999", 1, "must be HOST:PORT"),
        ("host:0", 2, "must be HOST:PORT"),
        ("a host:6379", 1, "must be HOST:PORT"),
        ("ray://127.0.0.1:10001", 1, "is an address for clients and jobs.*give HOST:PORT"),
        ("http://127.0.0.1:8265", 1, "is an address for clients and jobs"),
        ("local", 2, "is this machine alone, and trainer.nnodes=2"),
    ],
)
def test_an_address_of_no_cluster_is_refused_before_anything_starts(address, nodes, rule, config_of, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match=f"RAY_ADDRESS={re.escape(address)}: {rule}"):
        config_of(f"trainer.nnodes={nodes}", "trainer.dry_run=true")


@pytest.mark.parametrize("address", ["", " ", "local", "auto", "10.0.0.1:6379", "head.cluster:6379", "[::1]:6379"])
def test_an_address_of_a_cluster_need_not_answer_before_the_run(address, config_of, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert config_of("trainer.dry_run=true").trainer.is_local == (address.strip() in ("", "local"))


def test_a_cluster_that_is_gone_is_named_by_the_variable_that_names_it(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(ConfigError, match="^trainer.nnodes=2: no cluster was started on this machine; run ray start"):
        reachable(2)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(ConfigError, match="^RAY_ADDRESS=auto: no cluster was started"):
        reachable(1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray" / "ray_current_cluster").write_text(address + "\n")
        assert reachable(1) == "auto"
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert reachable(1) == address
    for given in (address, "auto"):
        monkeypatch.setenv("RAY_ADDRESS", given)
        with pytest.raises(ConfigError, match=f"^RAY_ADDRESS={given}: nothing answers at {address} .*; is the cluster"):
            reachable(1)


def test_what_answers_and_is_no_cluster_is_a_message(config_of, monkeypatch):
    def init(**options):
        raise ConnectionError("Failed to connect")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:80")
    with pytest.raises(ConfigError, match=r"^RAY_ADDRESS=10.0.0.1:80: Ray cannot join .*Failed to connect.*; is the"):
        start_ray(config_of(), "10.0.0.1:80")


def test_a_rank_whose_gpu_torch_does_not_see_is_named(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: ["3"])
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "10.0.0.7")
    with pytest.raises(ConfigError, match="rank 5 on 10.0.0.7: Ray has given it GPU 3, but torch .* sees none"):
        fsdp_workers.check_gpu(5, sees_one=False)
    fsdp_workers.check_gpu(5, sees_one=True)
    monkeypatch.setattr(ray, "get_gpu_ids", list)
    fsdp_workers.check_gpu(5, sees_one=False)


@pytest.mark.parametrize("on_gpu", [True, False])
def test_a_rank_works_with_its_share_of_the_cores_beside_a_gpu_too(on_gpu, config_of, monkeypatch):
    threads = []
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # connect sets them, and no other test must find them
    monkeypatch.setattr(vllm_env, "has_accelerator", lambda: on_gpu)
    monkeypatch.setattr(fsdp_workers, "cores", lambda: 13)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(dist, "init_process_group", lambda backend: None)
    for words in ([], ["trainer.n_gpus_per_node=16", "worker.rollout.n=16"]):
        FSDPWorker(config_of(*words), 0, 1).connect(("127.0.0.1", 1))
    assert threads == [6, 1]


def test_settings_of_offloading_may_act_on_machines_that_are_not_known_yet(config_of, monkeypatch):
    words = ["worker.actor.offload.offload_params=true", "trainer.dry_run_gpu=H100:80"]
    [offload, gpu] = [line.split(":")[0] for line in inert_settings(config_of(*words)) if "has no effect" in line]
    assert offload.startswith("worker.actor.offload.offload_params") or torch.cuda.is_available()
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert [line.split("=")[0] for line in inert_settings(config_of(*words))] == ["trainer.dry_run_gpu"]


def test_the_dry_run_says_which_machine_its_estimate_is_of(config_of, monkeypatch):
    def text(*changes):
        return "\n".join(describe(config_of("trainer.dry_run=true", *changes), [{"prompt": "Who?"}]))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "beside the libraries' own (this machine's CPU)" in text()
    assert "hardware" not in text()
    assert "hardware               this machine's: the cluster's is not known" in text("trainer.nnodes=2")
    named = text("trainer.nnodes=2", "trainer.dry_run_gpu=NVIDIA H100:80")
    assert "GiB a rank of 74.5 (NVIDIA H100)" in named and "hardware" not in named
    assert "no estimate: trainer.dry_run_gpu=H100: give name:GB, such as H100:80" in text("trainer.dry_run_gpu=H100")
