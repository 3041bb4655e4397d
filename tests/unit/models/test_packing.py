"""Packed and padded rows give what each sample gives alone, in plain transformers, or the model is refused.

One tiny random model of each family, in fp32. Samples are longer than the attention windows, chunks and convolutions.
"""

import inspect
import json
from contextlib import contextmanager
from functools import partial

import pytest
import torch
import transformers
from tensordict import TensorDict
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.gpu.attention_cases import CASES, TOLERANCE, Case, errors, plain_attention, shared_packing
from tests.training_kit import arguments
from verl.eval.likelihood import load_model
from verl.models import attention
from verl.models.attention import PACKED, Packing, packed_attention, plain_implementation
from verl.models.forward import forward_responses
from verl.models.packable import pack, packing_problem, prove_packed
from verl.models.short_rows import MOST_KEYS, rows_are_short
from verl.trainer.preflight import read_config
from verl.utils.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")

COMMON = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOW = {"sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LINEAR = {"layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2, "linear_num_value_heads": 2}
LINEAR |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
GPT2 = {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 64, "head_dim": None, "num_key_value_heads": None}
PACKABLE = {
    "Llama": {},
    "Mistral": {"sliding_window": 3},
    "Qwen2": {},
    "Qwen3": {},
    "Qwen2Moe": EXPERTS,
    "Gemma2": WINDOW | {"attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 16},
    "Gemma3": WINDOW | {"query_pre_attn_scalar": 16},
    "Phi3": {"sliding_window": 3},
    "GPT2": GPT2,
    "Olmo2": {},
    "Granite": {"attention_multiplier": 0.2},
}
REFUSED = {
    "GptOss": (WINDOW | EXPERTS, "depends on s_aux"),
    "Llama4": (
        EXPERTS | {"layer_types": ["chunked_attention", "full_attention"], "attention_chunk_size": 3},
        "chunked",
    ),
    "Lfm2": ({"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}, "type conv"),
    "Qwen3_5": (LINEAR, "type linear_attention"),
    "Qwen3Next": (LINEAR | EXPERTS, "type linear_attention"),
    "GraniteMoeHybrid": (
        {"layer_types": ["linear_attention", "full_attention"], "mamba_n_heads": 4, "mamba_d_head": 16}
        | {"mamba_d_state": 8, "shared_intermediate_size": 16, "num_local_experts": 0, "mamba_n_groups": 1},
        "type linear_attention",
    ),
    "Mamba": ({"state_size": 4, "head_dim": None}, "MambaForCausalLM carries a state"),
    "RecurrentGemma": ({"num_hidden_layers": 3, "attention_window_size": 4, "lru_width": 32}, "carries a state"),
    "Falcon": ({"head_dim": None, "num_key_value_heads": None}, "attention of its own"),
    "Bloom": ({"n_head": 4, "head_dim": None}, "attention of its own"),
    "Phimoe": (EXPERTS | {"sliding_window": 3, "head_dim": None}, "puts a window of 3 into its masks alone"),
}

LENGTHS = (9, 13, 5, 11, 6, 8)
PROMPTS = (4, 9, 2, 9, 4, 4)
SAME_PROMPT = {3: 1, 4: 0, 5: 0}


def config_of(family, changes):
    known = {name: getattr(transformers, family + name, None) for name in ("TextConfig", "Config")}
    config_class = known["TextConfig"] or known["Config"]
    settings = {key: value for key, value in {**COMMON, **changes}.items() if value is not None}
    fields = inspect.signature(config_class).parameters
    return config_class(**{key: value for key, value in settings.items() if key in fields})


def model_of(family, changes=None, implementation="eager"):
    """A random model; the attention code of its own file, where everything the model knows is done."""
    config = config_of(family, changes or {})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=implementation).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:  # norms, biases and sinks, which are ones and zeros at first
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def samples():
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randint(3, 50, (length,), generator=generator) for length in LENGTHS]
    for row, first in SAME_PROMPT.items():
        drawn[row][: PROMPTS[row]] = drawn[first][: PROMPTS[row]]
    return drawn


def batch_of(sequences):
    """Prompts padded left, responses padded right, as the trainer has them."""
    left, width = max(PROMPTS), max(length - prompt for length, prompt in zip(LENGTHS, PROMPTS, strict=True))
    ids = torch.zeros(len(sequences), left + width, dtype=torch.int64)
    seen = torch.zeros_like(ids)
    for row, (sequence, prompt) in enumerate(zip(sequences, PROMPTS, strict=True)):
        place = slice(left - prompt, left - prompt + len(sequence))
        ids[row, place], seen[row, place] = sequence, 1
    fields = {"input_ids": ids, "attention_mask": seen, "response_mask": seen[:, left:]}
    return TensorDict(fields, batch_size=[len(sequences)])


@torch.no_grad()
def alone(model):
    """Logits before every response token, each sample run by itself."""
    parts = zip(samples(), PROMPTS, strict=True)
    return torch.cat([model(ids[None], use_cache=False).logits[0, prompt - 1 : -1] for ids, prompt in parts])


@torch.no_grad()
def together(model, padding_free, share_prompts=True):
    sharing = {"padding_free": padding_free, "share_prompts": share_prompts}
    return forward_responses(model, batch_of(samples()), **sharing).logits_nV


@contextmanager
def seen_tokens(model):
    tokens = []
    hook = model.get_input_embeddings().register_forward_hook(lambda _, ids, __: tokens.append(ids[0].numel()))
    yield tokens
    hook.remove()


def agree(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)  # recurrent layers add up in chunks


@pytest.mark.parametrize("family", [*PACKABLE, *REFUSED])
def test_samples_together_are_each_sample_alone_or_refused(family):
    changes, reason = REFUSED.get(family, (PACKABLE.get(family), None))
    model = model_of(family, changes)
    expected = alone(model)
    padded = model_of(family, changes, plain_implementation(model.config))
    agree(together(padded, padding_free=False), expected)
    if reason:
        with pytest.raises(ConfigError, match=f"{reason}.*worker.actor.padding_free=false"):
            take_packed(model)
    else:
        take_packed(model)
        agree(together(model, padding_free=True, share_prompts=False), expected)
        with seen_tokens(model) as tokens:
            agree(together(model, padding_free=True), expected)
        assert tokens == [sum(LENGTHS) - 4 - 9 - 4 - 6], "three prompts are computed once, last tokens never"


def take_packed(model):
    pack(model)
    prove_packed(model, torch.device("cpu"))


@pytest.mark.parametrize("family", ["Lfm2", "Bloom", "Mamba"])
def test_what_class_and_configuration_do_not_tell_the_loaded_model_does(family):
    model = model_of(family, REFUSED[family][0])
    model.config._attn_implementation = PACKED
    with pytest.raises(ConfigError, match="mixes packed samples outside its attention"):
        prove_packed(model, torch.device("cpu"))


def test_the_proof_takes_adapters_and_value_heads_and_blames_no_weights():
    import peft

    model = model_of("Llama")
    pack(model)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules="all-linear")).train()
    prove_packed(adapted, torch.device("cpu"))
    assert all(part.training for part in adapted.modules())
    critic = transformers.AutoModelForTokenClassification.from_config(config_of("Llama", {"num_labels": 1}))
    pack(critic)
    torch.nn.init.zeros_(critic.score.weight)
    prove_packed(critic, torch.device("cpu"))
    torch.nn.init.constant_(critic.model.norm.weight, torch.nan)
    prove_packed(critic, torch.device("cpu"))


def test_a_run_is_refused_before_it_starts(tmp_path, tiny_model):
    settings, argv = {"model_type": "mamba"}, arguments(tiny_model, tmp_path, "run")
    (tmp_path / "config.json").write_text(json.dumps(settings))
    argv += [f"worker.actor.model.model_path={tmp_path}"]
    with pytest.raises(ConfigError, match="MambaForCausalLM carries a state.*worker.actor.padding_free=false"):
        read_config(argv)
    read_config([*argv, "worker.actor.padding_free=false"])


def test_the_evaluator_keeps_a_cap_on_attention_scores(tmp_path):
    model = model_of("Gemma2", PACKABLE["Gemma2"])
    model.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), dtype="float32")
    agree(alone(loaded), alone(model))


def test_the_kinds_of_layers_are_read_wherever_a_configuration_has_them():
    assert "conv" in packing_problem({"text_config": {"layer_types": ["conv", "full_attention"]}})
    assert "mamba" in packing_problem({"layers_block_type": ["mamba", "attention"]})
    assert packing_problem({"model_type": "llama", "layer_types": ["sliding_attention", "full_attention"]}) is None
    assert packing_problem({"model_type": "mamba", "auto_map": {}}) is None  # the folder's own code


@pytest.mark.parametrize("case", [case for case in CASES if case.width <= 128], ids=lambda case: case.name)
@pytest.mark.parametrize("shared", [False, True], ids=["apart", "shared"])
def test_padded_rows_are_plain_attention_forward_and_backward(case, shared):
    assert max(errors(case, "cpu", shared=shared).values()) <= TOLERANCE[case.dtype]


REFUSED_ARGUMENTS = {
    "s_aux": {"s_aux": torch.zeros(2)},
    "position_bias": {"position_bias": torch.zeros(1)},
    "attention_mask": {"attention_mask": torch.zeros(1)},
    "is_causal=False": {"is_causal": False},
    "alibi": {"alibi": torch.zeros(1)},
}


@pytest.mark.parametrize("name", REFUSED_ARGUMENTS)
def test_what_attention_does_not_know_is_refused(name):
    states = [torch.zeros(1, 2, 4, 8)] * 3
    packing = Packing.of(torch.tensor([4]))
    packed_attention(None, *states, packing=packing, use_cache=False, s_aux=None, position_ids=torch.zeros(1, 4))
    with pytest.raises(ConfigError, match=f"depends on {name}; set worker.actor.padding_free=false"):
        packed_attention(None, *states, packing=packing, **REFUSED_ARGUMENTS[name])


def test_dropout_is_the_models():
    states = [torch.ones(1, 2, 4, 8)] * 3
    dropped, _ = packed_attention(None, *states, packing=Packing.of(torch.tensor([4])), dropout=0.5)
    assert dropped.unique().numel() > 1


def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False,
    window_size=(-1, -1), softcap=0.0, deterministic=False,
):  # fmt: skip
    assert causal
    return by_definition(q, k, v, cu_seqlens_q, cu_seqlens_k, softmax_scale, window_size, softcap)


def varlen_attn_2_11(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)):
    assert q.shape[1] == k.shape[1], "it shares no key-value heads"
    return by_definition(q, k, v, cu_seq_q, cu_seq_k, scale, window_size)


def varlen_attn_2_13(
    q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1), enable_gqa=False,
    seqused_k=None, block_table=None, num_splits=None,
):  # fmt: skip
    assert enable_gqa and k.shape[1] == 2
    return by_definition(q, k, v, cu_seq_q, cu_seq_k, scale, window_size)


def by_definition(q, k, v, of_queries, of_keys, scale, window_size, softcap=0.0):
    """Kernels count a window as the tokens before the present one."""
    assert window_size[1] == 0
    window = None if window_size[0] < 0 else window_size[0] + 1
    case = Case("", q.shape[1], k.shape[1], q.shape[2], scale, window, softcap or None)
    starts = ((q, of_queries), (k, of_keys), (v, of_keys))
    parts = [states.transpose(0, 1).split(start.diff().tolist(), dim=1) for states, start in starts]
    return torch.cat([plain_attention(*sample, case) for sample in zip(*parts, strict=True)])


KERNELS = [flash_attn_varlen_func, varlen_attn_2_11, varlen_attn_2_13]
SETTINGS = [{}, {"scaling": 0.3}, {"sliding_window": 3}, {"sliding_window": 3, "scaling": 0.3}, {"softcap": 1.0}]


@pytest.mark.parametrize("packing", [Packing.of(torch.tensor(LENGTHS)), shared_packing("cpu")], ids=["apart", "shared"])
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.__name__)
def test_every_kernel_is_told_what_padded_rows_do(kernel, packing, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(1, heads, packing.tokens, 8, generator=generator) for heads in (4, 2, 2)]
    run = partial(packed_attention, None, *states, packing=packing)
    takes = frozenset(inspect.signature(kernel).parameters)
    settings = [some for some in SETTINGS if set(some) <= takes | {"scaling", "sliding_window"}]
    rows = [run(**some)[0] for some in settings]
    monkeypatch.setattr(attention, "varlen_kernel", lambda: (kernel, takes))
    monkeypatch.setattr(attention, "_kernel_fits", lambda *_: True)
    for some, expected in zip(settings, rows, strict=True):
        agree(run(**some)[0], expected)


@pytest.mark.parametrize(
    ("width", "value_width", "dtype", "scoring", "kernel"),
    [
        (64, 64, torch.bfloat16, {"scale": 0.3, "window": 5}, True),
        (64, 64, torch.float32, {}, False),
        (20, 20, torch.bfloat16, {}, False),
        (192, 128, torch.bfloat16, {}, False),
        (512, 512, torch.bfloat16, {}, False),
        (64, 64, torch.bfloat16, {"dropout": 0.1}, False),
        (64, 64, torch.bfloat16, {"softcap": 50.0}, False),
    ],
)
def test_half_precision_on_a_gpu_goes_to_the_kernel_where_there_is_one(width, value_width, dtype, scoring, kernel):
    with FakeTensorMode():
        query, value = (torch.empty(1, 4, 8, w, device="cuda", dtype=dtype) for w in (width, value_width))
        assert attention._kernel_fits(query, value, attention.Scoring(**scoring)) == kernel


def test_gradients_of_copied_prompts_are_added_up():
    packing = shared_packing("cpu")
    tokens = torch.randn(packing.tokens, 2, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(len(packing.keys), 2, 3, dtype=torch.float64)
    (expected,) = torch.autograd.grad((tokens[packing.keys] * weights).sum(), tokens)
    copied = attention._Copied.apply(tokens, packing)
    torch.testing.assert_close(copied, tokens[packing.keys])
    (found,) = torch.autograd.grad((copied * weights).sum(), tokens)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("heads", [(6, 2), (4, 4)])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("shape", ["causal", "alike", "of each row"])
def test_attention_of_short_rows_by_products_is_sdpas(monkeypatch, heads, window, shape):
    generator = torch.Generator().manual_seed(0)
    counts = (heads[0], heads[1], heads[1])
    drawn = [torch.randn(3, 5, count, 8, generator=generator, dtype=torch.float64) for count in counts]
    place = torch.arange(5)
    distance = None if shape == "causal" and window is None else place[:, None] - place
    if shape == "of each row":
        distance = distance.expand(3, -1, -1).clone()
        distance[1, 3:, 1] = -1
    found = {}
    for short in (True, False):
        monkeypatch.setattr(attention, "rows_are_short", lambda _, short=short: short)
        states = [tensor.clone().requires_grad_() for tensor in drawn]
        output = attention._attend(*states, distance, attention.Scoring(window=window))
        found[short] = [output, *torch.autograd.grad(output.square().sum(), states)]
    for ours, sdpas in zip(found[True], found[False], strict=True):
        torch.testing.assert_close(ours, sdpas, rtol=1e-5, atol=1e-5)


def test_attention_of_short_rows_is_taken_in_half_precision_on_a_cpu_alone():
    keys = torch.zeros(1, 2, MOST_KEYS, 8)
    assert rows_are_short(keys.bfloat16()) and not rows_are_short(keys)
    assert not rows_are_short(torch.zeros(1, 2, MOST_KEYS + 1, 8).bfloat16())
    assert not rows_are_short(keys.bfloat16().to("meta"))
