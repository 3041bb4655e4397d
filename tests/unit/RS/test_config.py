"""Settings of Rejection Steering: the shipped files, and that every problem is found before a model is loaded."""

import json

import pytest
import torch
import yaml

from RS.config import RSConfig
from RS.models.build import build_reinforced, build_training, rank_threads, steered_layer
from RS.train import main
from tests.conftest import ROOT, tiny_llama
from verl.utils.errors import ConfigError

CONFIGS = sorted((ROOT / "RS" / "configs").glob("*.yaml"))
ROWS = [
    {"instruction": f"Who is {i}?", "input": "", "output": "No.", "answer": "A poet", "alternate": "A cook"}
    for i in range(200)
]


@pytest.fixture
def files(tmp_path):
    """Words that name a model folder, rows and an output folder."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    return [f"model={tmp_path / 'model'}", f"data={tmp_path / 'rows.json'}", f"output_dir={tmp_path / 'out'}"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_is_valid(path, files, capsys):
    words = [f"config={path}", *files, "dry_run=true"]
    objective = yaml.safe_load(path.read_text()).get("objective", "rejection")
    if objective not in ("rejection", "dpo"):
        words += ["response_key=alternate" if objective == "altpo" else "response_key=answer"]
    if objective == "rmu":
        words += [files[1].replace("data=", "retain_data=")]
    if objective == "whp":
        words += [files[0].replace("model=", "reinforced_model=")]
    assert main(words) == 0
    assert "steps of" in capsys.readouterr().out


def test_atlas_settings_lie_over_a_method(files, capsys):
    """The method's objective and strength with Atlas's schedule: no warm-up longer than the run."""
    words = ["config=RS/configs/npo.yaml,RS/configs/atlas.yaml", *files, "response_key=answer", "dry_run=true"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "npo on 200 rows" in shown and "beta: 0.2" in shown
    assert "0 steps of warm-up to 0.00035" in shown


def test_a_dry_run_does_the_arithmetic_and_writes_nothing(files, tmp_path, capsys):
    assert main([*files, "batch_size=16", "num_train_epochs=2", "warmup_ratio=0.1", "dry_run=true"]) == 0
    shown = capsys.readouterr().out
    assert "2 epochs x 13 steps = 26 steps of 16 examples" in shown
    assert "2 steps of warm-up to 1e-05, then cosine" in shown
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_nowhere_is_named(files, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main([*files, "model=nobody/has-this"]) == 2
    assert "model nobody/has-this: is neither a folder with a tokenizer nor" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_all_problems_come_in_one_message(files, tmp_path, capsys):
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps([ROWS[0], {"instruction": "Who?"}, {"text": "  "}]))
    words = [
        *files,
        f"model={tmp_path / 'nowhere'}",
        f"data={bad}",
        "lerning_rate=1",
        "objective=dop",
        "batch_size=0",
        "retain_loss=gdr",
    ]
    assert main(words) == 2
    shown = capsys.readouterr().err
    for expected in (
        "lerning_rate=1: unknown key; did you mean learning_rate?",
        "objective='dop': must be one of",
        "did you mean dpo?",
        "nowhere: holds no config.json",
        "batch_size=0: must be greater than 0",
        "retain_loss=gdr: needs rows to keep",
        "bad.json, row 1: output=None",
        "bad.json, row 2: text='  '",
    ):
        assert expected in shown
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("data=missing.json", "missing.json: there is no such file"),
        ("warmup_steps=75", "warmup_steps=75: the run has only about 75 steps (200 rows"),
        ("warmup_ratio=1", "warmup_ratio=1.0: must lie in [0, 1)"),
        ("retain_data=x.json", "set retain_loss=gdr, klr or hidden"),
        ("override_chat_template=no.jinja", "no.jinja: there is no such file"),
        ("fsdp_size=3", "fsdp_size=3: must divide the 1 rank(s), or be -1"),
        ("fsdp_size=0", "fsdp_size=0: must divide"),
        ("objective=ga", "would unlearn the refusals"),
        ("objective=altpo", "would prefer the refusal of this row, which is dpo; name the column of another answer"),
        ("objective=rmu", "set retain_loss=hidden retain_data=FILE"),
        ("objective=whp", "give reinforced_model=FOLDER"),
        ("reinforced_model=/nowhere", "reinforced_model=/nowhere: holds no config.json"),
        ("beta=0.2", "beta=0.2: does nothing with objective=rejection (it is npo, simnpo, dpo, altpo, satimp's)"),
        ("layer=3", "layer=3: does nothing with objective=rejection (it is rmu's); leave it out"),
        ("alpha=-1", "alpha=-1.0: must be 0 or greater"),
        ("steering=0", "steering=0.0: must be greater than 0"),
    ],
)
def test_a_problem_names_the_fix(word, expected, files, capsys):
    assert main([*files, word]) == 2
    assert expected in capsys.readouterr().err


def test_a_reinforced_model_of_other_tokens_is_refused(tmp_path):
    for name, size in (("model", 40), ("other", 41)):
        tiny_llama(vocab_size=size).config.save_pretrained(tmp_path / name)
    folders = {"model": str(tmp_path / "model"), "reinforced_model": str(tmp_path / "other")}
    config = RSConfig(**folders, data="d", output_dir="o", objective="whp")
    with pytest.raises(ConfigError, match="has 41 tokens, and model=.* 40; give what further training"):
        build_reinforced(config, torch.device("cpu"))


def test_what_a_task_vector_learns_is_taken_away(files, tmp_path, capsys):
    words = ["objective=task_vector", "response_key=answer", "retain_loss=gdr", f"retain_data={tmp_path / 'rows.json'}"]
    assert main([*files, *words]) == 2
    assert "retain_loss=gdr: objective=task_vector would take away what is kept" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("layers", "asked", "expected"), [(32, None, 8), (4, None, 1), (2, None, 0), (3, 2, 2), (3, 3, "give 0 to 2")]
)
def test_the_steered_layer_is_one_of_the_models(layers, asked, expected, tmp_path):
    tiny_llama(num_hidden_layers=layers).config.save_pretrained(tmp_path)
    own = {"objective": "rmu", "retain_loss": "hidden", "retain_data": "r", "layer": asked}
    config = RSConfig(model=str(tmp_path), data="d", output_dir="o", **own)
    if isinstance(expected, int):
        assert steered_layer(config) == expected
    else:
        with pytest.raises(ConfigError, match=f"layer={asked}: the model has {layers} layers.*{expected}"):
            steered_layer(config)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["micro_batch_size=auto"], None),
        (["micro_batch_size=3"], None),
        (["micro_batch_size=0"], "micro_batch_size=0: must be greater than 0"),
        (["micro_batch_size=full"], "micro_batch_size='full': must be"),
    ],
)
def test_a_micro_batch_is_a_number_of_examples_or_found(words, expected, files, capsys):
    assert main([*files, *words, "dry_run=true"]) == (2 if expected else 0)
    assert (expected or "") in capsys.readouterr().err


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("constant", [0, 0.5, 1, 1, 1, 1, 1]),
        ("linear", [0, 0.5, 1, 0.75, 0.5, 0.25, 0]),
        ("cosine", [0, 0.5, 1, 0.8535534, 0.5, 0.1464466, 0]),  # (1 + cos(pi / 4)) / 2
    ],
)
def test_the_learning_rate_warms_up_and_then_follows_its_shape(shape, expected):
    settings = {"learning_rate": 1.0, "lr_scheduler_type": shape, "warmup_steps": 2}
    config = RSConfig(model="m", data="d", output_dir="o", **settings)
    optimizer, scheduler = build_training(torch.nn.Linear(1, 1), config, training_steps=6)
    rates = []
    for _ in expected:
        rates += scheduler.get_last_lr()
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("ranks", "said", "expected"), [("4", "1", 2), ("16", "1", 1), ("4", "3", 7), ("1", "1", 7)])
def test_ranks_share_the_cores_unless_the_user_says_how_many(ranks, said, expected, monkeypatch):
    """torchrun sets OMP_NUM_THREADS=1 for several ranks, on a machine of any size."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr("torch.get_num_threads", lambda: 7)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert rank_threads() == expected
