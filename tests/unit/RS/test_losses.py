"""Every objective on a tiny model: loss and gradient equal autograd on the paper's formula, written out here per token.

What is compared goes through ``Losses`` (batches, padding, references); the formulas below see one sequence at a time,
through transformers alone.
"""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F

from RS.config import OWN, RSConfig
from RS.losses import Losses
from RS.models.build import train_layers
from RS.models.task_vector import TaskVector
from RS.utils.data import Example
from tests.conftest import tiny_llama

ROWS = [
    Example([3, 4, 5], [6, 7, 8], [9, 10]),
    Example([4, 4], [11], [12, 13, 14]),
    Example([3, 4, 5], [15, 16], [17]),
]
COMMON = {"model": "m", "data": "d", "output_dir": "o", "padding_free": False}
SETTINGS = {
    "npo": {"beta": 0.7},
    "simnpo": {"beta": 1.5, "gamma": 0.3},
    "dpo": {"beta": 0.6},
    "altpo": {"beta": 0.6},
    "wga": {"alpha": 1.7},
    "satimp": {"beta": 1.2, "beta2": 0.4},
    "undial": {"gamma": 3.0},
    "rmu": {"steering": 4.0, "retain_loss": "hidden", "retain_data": "r"},
    "whp": {"alpha": 2.0, "reinforced_model": "r"},
}


def other(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """The model with every weight changed a little."""
    torch.manual_seed(seed)
    model = deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def models():
    """Trained, original and reinforced model; their attention is transformers' own."""
    model = tiny_llama(initializer_range=0.3)
    return other(model, 1), model, other(model, 2)


def run_of(models, **settings) -> Losses:
    losses = Losses(RSConfig(**COMMON, **settings), models[0], 0, torch.device("cpu"), layer=0)
    losses.original, losses.reinforced = models[1:]
    return losses


def logits(model, row, response):
    return model(torch.tensor([row.prompt + response])).logits[0, len(row.prompt) - 1 : -1]


def log_p(model, row, response=None):
    """log p of each token of a response."""
    response = response or row.response
    return logits(model, row, response).log_softmax(-1)[torch.arange(len(response)), response]


def states(model, row):
    """What the first of the two layers puts out where response tokens are predicted."""
    ids = torch.tensor([row.prompt + row.response])
    return model(ids, output_hidden_states=True).hidden_states[1][0, len(row.prompt) - 1 : -1]


def preference(models, row, beta):
    new, old, _ = models
    gain = (log_p(new, row) - log_p(old, row)).sum()
    loss = (log_p(new, row, row.rejected) - log_p(old, row, row.rejected)).sum()
    return torch.log1p(torch.exp(-beta * (gain - loss)))


def soft(models, row, goal):
    return -(goal.softmax(-1).detach() * logits(models[0], row, row.response).log_softmax(-1)).sum()


def undial(models, row):
    goal = logits(models[1], row, row.response).clone()
    for place, token in enumerate(row.response):
        goal[place, token] -= 3.0
    return soft(models, row, goal)


def ceu(models, row):
    goal = logits(models[0], row, row.response).detach().clone()
    for place, token in enumerate(row.response):
        goal[place, token] = -1e9
    return soft(models, row, goal)


def whp(models, row):
    original, reinforced = (logits(model, row, row.response) for model in models[1:])
    return soft(models, row, original - 2.0 * (reinforced - original).clamp(min=0))


def rmu(models, row):
    u = torch.rand(16, generator=torch.Generator().manual_seed(1))
    return ((states(models[0], row) - 4.0 * u / u.square().sum().sqrt()) ** 2).sum() / 16


def weighted(models, row, weigh):
    log_probs = log_p(models[0], row)
    return (weigh(log_probs.detach().exp()) * log_probs).sum()


FORMULAS = {
    "rejection": lambda m, row: -log_p(m[0], row).sum(),
    "task_vector": lambda m, row: -log_p(m[0], row).sum(),
    "ga": lambda m, row: log_p(m[0], row).sum(),
    "wga": lambda m, row: weighted(m, row, lambda p: p**1.7),
    "satimp": lambda m, row: weighted(m, row, lambda p: p**1.2 * (1 - p) ** 0.4),
    "npo": lambda m, row: 2 / 0.7 * torch.log1p(((log_p(m[0], row) - log_p(m[1], row)).sum() * 0.7).exp()),
    "simnpo": lambda m, row: 2 / 1.5 * torch.log1p((1.5 * log_p(m[0], row).mean() + 0.3).exp()),
    "dpo": lambda m, row: preference(m, row, 0.6),
    "altpo": lambda m, row: 2 / 0.6 * preference(m, row, 0.6),
    "undial": undial,
    "ceu": ceu,
    "whp": whp,
    "rmu": rmu,
}
KEPT = {
    "gdr": FORMULAS["rejection"],
    "klr": lambda m, row: F.kl_div(
        logits(m[0], row, row.response).log_softmax(-1),
        logits(m[1], row, row.response).log_softmax(-1),
        log_target=True,
        reduction="sum",
    ),
    "hidden": lambda m, row: (states(m[0], row) - states(m[1], row)).square().sum() / 16,
}


def gradients(model, loss):
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def assert_same(model, ours, formula):
    assert ours.item() == pytest.approx(formula.item(), rel=1e-6)
    got, expected = gradients(model, ours), gradients(model, formula)
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    assert largest > 0
    for name in got.keys() | expected.keys():
        apart = got.get(name, 0) - expected.get(name, 0)
        assert torch.as_tensor(apart).abs().max().item() <= 1e-6 * max(1.0, largest), name


def test_every_objective_has_a_formula_here():
    assert FORMULAS.keys() == set(RSConfig.__annotations__["objective"].__args__)
    assert OWN.keys() <= FORMULAS.keys()


@pytest.mark.parametrize("objective", FORMULAS)
def test_loss_and_gradient_are_those_of_the_formula(objective, models):
    run = run_of(models, objective=objective, **SETTINGS.get(objective, {}))
    scores = []
    if run.config.needs_reference:
        with torch.no_grad():
            scores = run_of((models[1],) * 3, objective=objective).sequence_scores(ROWS)
    formula = sum(FORMULAS[objective](models, row) for row in ROWS)
    assert_same(models[0], run.forget(ROWS, scores), formula)


@pytest.mark.parametrize("kept", KEPT)
def test_retain_loss_and_gradient_are_those_of_the_formula(kept, models):
    run = run_of(models, retain_loss=kept, retain_data="r")
    assert_same(models[0], run.retain(ROWS), sum(KEPT[kept](models, row) for row in ROWS))


def test_hidden_states_are_the_same_where_activations_are_computed_again(models):
    model = deepcopy(models[0])
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    run = run_of((model, *models[1:]), objective="rmu", **SETTINGS["rmu"])
    loss, formula = run.forget(ROWS, []), sum(rmu(models, row) for row in ROWS)
    assert loss.item() == pytest.approx(formula.item(), rel=1e-6)
    got, expected = gradients(model, loss), gradients(models[0], formula)
    assert got.keys() == expected.keys() and len(got) > 5
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    apart = max((got[name] - expected[name]).abs().max().item() for name in got)
    assert apart <= 1e-6 * max(1, largest)


def test_a_task_vector_is_subtracted_for_the_time_of_saving(models):
    model = deepcopy(models[1])
    vector, before = TaskVector(model, alpha=0.5), deepcopy(model.state_dict())
    model.load_state_dict(models[0].state_dict())
    with vector.subtracted():
        for name, weight in model.state_dict().items():
            expected = 1.5 * before[name] - 0.5 * models[0].state_dict()[name]
            assert torch.allclose(weight, expected, atol=1e-6), name
    assert all(torch.equal(weight, models[0].state_dict()[name]) for name, weight in model.state_dict().items())


def test_steering_trains_three_layers_alone():
    model = tiny_llama(num_hidden_layers=5)
    train_layers(model, 1, 3)
    trained = {name.split(".")[2] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"1", "2", "3"}
    assert not model.lm_head.weight.requires_grad
