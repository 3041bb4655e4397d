"""Where answers end is what the chat template says, and a template that refuses a conversation is a message."""

import json
import sys
from types import SimpleNamespace

import pytest
from tokenizers import AddedToken

from tests.conftest import make_tokenizer
from verl.eval.generation import Request, VLLMGenerator
from verl.models.checkpointing import _note_turn_end
from verl.trainer.dataset import RLHFDataset
from verl.trainer.experience import ExperienceMaker
from verl.utils.chat import check_system_prompt, encode_example, encode_prompt, stop_token_ids, turn_end
from verl.utils.errors import ConfigError, DataError
from verl.utils.tokenizer import get_tokenizer

ALTERNATE = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}"
)
OPENS = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
EACH, END = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}", "{% endfor %}" + OPENS
TEMPLATES = {
    "Gemma: strips, a newline behind the end": (
        "{{ bos_token }}" + ALTERNATE + "<|user|>{{ m.role }}\n{{ m.content | trim }}<|end|>\n" + END,
        "<|end|>",
    ),
    "ChatML with a system message of its own": ("<|system|>Be good.<|end|>\n" + EACH + "<|end|>\n" + END, "<|end|>"),
    "Llama 3: no newline": ("{{ bos_token }}" + EACH + "<|end|>" + END, "<|end|>"),
    "Llama 2: a space, then EOS, then BOS": (
        "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content }} [/INST]"
        "{% elif m.role == 'assistant' %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}",
        " <|eos|>",
    ),
    "Mistral: nothing opens an answer": (
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %}{{ m.content }}<|end|>"
        "{% endif %}{% endfor %}",
        "<|end|>",
    ),
    "gpt-oss: the last answer closes otherwise": (
        EACH + "{% if loop.last and m.role == 'assistant' %}<|pad|>{% else %}<|end|>{% endif %}" + END,
        "<|pad|>",
    ),
    "closes a turn where another follows": (
        EACH + "{% if not loop.last or add_generation_prompt %}<|end|>\n{% endif %}" + END,
        "<|end|>",
    ),
    "Qwen 3: thinks before the answer": (
        EACH.replace("{{", "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{") + "<|end|>\n" + END,
        "<|end|>",
    ),
    "wants a system message": (
        "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}"
        + EACH
        + "<|end|>\n"
        + END,
        "<|end|>",
    ),
    "takes one exchange": (
        "{% if messages | length > 2 %}{{ raise_exception('too long') }}{% endif %}" + EACH + "<|end|>" + END,
        "<|end|>",
    ),
    "opens an answer behind every conversation": (EACH + "<|end|>{% endfor %}<|assistant|>", "<|end|>"),
    "the same, and no turn is closed": (EACH + "{% endfor %}<|assistant|>", "<|eos|>"),
    "GLM: nothing behind the answer": (EACH + END, "<|eos|>"),
    "words and newlines": ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", "<|eos|>"),
    "takes users only": ("{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}" + END, "<|eos|>"),
    "refuses answers": (
        "{% for m in messages %}{% if m.role != 'user' %}{{ raise_exception('no') }}{% endif %}{{ m.content }}" + END,
        "<|eos|>",
    ),
    "none": (None, "<|eos|>"),
}
GEMMA = TEMPLATES["Gemma: strips, a newline behind the end"][0]
DROPS = TEMPLATES["takes users only"][0]


def with_template(template):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_response_closes_as_the_template_closes_a_turn(name):
    template, end = TEMPLATES[name]
    tokenizer = with_template(template)
    assert tokenizer.decode(turn_end(tokenizer)) == end
    system = "S" if name == "wants a system message" else None
    for response in ("In the north.", "Two\nlines.\n"):
        ids = encode_example(tokenizer, "Where was she born?", response, system)[1]
        assert tokenizer.decode(ids) == (" " if template is None else "") + response + end
        assert ids.count(ids[-1]) == 1


def test_the_end_follows_the_templates_arguments_and_its_default_among_several():
    template = EACH + "{% if harmony %}<|pad|>{% else %}<|end|>{% endif %}" + END
    tokenizer = with_template({"default": template, "tool_use": EACH + END})
    assert tokenizer.decode(turn_end(tokenizer)) == "<|end|>"
    assert tokenizer.decode(turn_end(tokenizer, {"harmony": True})) == "<|pad|>"
    tokenizer.chat_template = EACH + END  # what was found before is not taken for it
    assert tokenizer.decode(turn_end(tokenizer)) == "<|eos|>"


def test_an_end_need_not_be_called_special_but_blanks_are_none():
    tokenizer = with_template(EACH + "\n\n<|stop|>\n" + END)
    tokenizer.add_tokens([AddedToken("\n\n", special=False), AddedToken("<|stop|>", special=False)])
    assert tokenizer.decode(turn_end(tokenizer)) == "\n\n<|stop|>"
    settings = SimpleNamespace(reward=SimpleNamespace(skip_special_tokens=True))
    config = SimpleNamespace(worker=settings, data=SimpleNamespace(chat_template_kwargs={}))
    maker = SimpleNamespace(config=config, tokenizer=tokenizer)
    ids = encode_example(tokenizer, "Who?", "She.")[1]
    batch = SimpleNamespace(batch={"responses": _row(ids), "response_mask": _row([1] * len(ids))})
    assert ExperienceMaker.decode(maker, batch) == ["She.\n\n"]


def _row(values):
    import torch

    return torch.tensor([values])


def test_a_tokenizer_without_any_end_is_named(tmp_path):
    tokenizer = with_template(EACH + END)
    tokenizer.eos_token = tokenizer.pad_token = None
    with pytest.raises(ConfigError, match="has no eos_token, .*nothing says where answers end; set eos_token"):
        encode_example(tokenizer, "Who?", "She.")
    tokenizer.chat_template = TEMPLATES["Llama 3: no newline"][0]
    tokenizer.save_pretrained(tmp_path)
    assert get_tokenizer(str(tmp_path)).pad_token == "<|end|>"


@pytest.mark.parametrize(
    ("file", "settings", "listed"),
    [
        ("generation_config.json", {"eos_token_id": [40, 41]}, {40, 41}),
        ("generation_config.json", {"eos_token_id": 40}, {40}),
        ("generation_config.json", {}, set()),
        ("config.json", {"model_type": "llama", "eos_token_id": 40}, {40}),
        ("config.json", {"model_type": "gemma3", "text_config": {"eos_token_id": 40}}, {40}),
    ],
)
def test_generation_stops_at_the_templates_end_at_eos_and_at_what_the_model_lists(tmp_path, file, settings, listed):
    tokenizer = with_template(GEMMA)
    (tmp_path / file).write_text(json.dumps(settings))
    ends = {tokenizer.convert_tokens_to_ids(token) for token in ("<|end|>", "<|eos|>")}
    assert set(stop_token_ids(tokenizer, str(tmp_path))) == ends | listed


def test_the_evaluator_stops_there_too(tmp_path, monkeypatch):
    seen = []
    kinds = SimpleNamespace(RequestOutputKind=SimpleNamespace(FINAL_ONLY=2))
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(SamplingParams=lambda **settings: seen.append(settings)))
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", kinds)
    tokenizer = with_template(GEMMA)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 40}')
    generator = object.__new__(VLLMGenerator)
    generator._take_tokenizer(str(tmp_path), trust_remote_code=False)
    engine = SimpleNamespace(add_request=lambda *_: None, has_unfinished_requests=lambda: False)
    generator.max_model_len, generator._engine = 64, SimpleNamespace(llm_engine=engine)
    assert not list(generator.answer([Request([[1]], 3, "t")]))
    assert seen[0]["stop_token_ids"] == stop_token_ids(tokenizer, str(tmp_path)) and len(seen[0]["stop_token_ids"]) == 3


@pytest.mark.parametrize(("listed", "saved"), [(2, [2, 6]), ([2, 9], [2, 9, 6]), ([6, 2], [6, 2]), (6, 6)])
def test_a_saved_model_generates_up_to_the_templates_end(tmp_path, listed, saved):
    tokenizer = with_template(GEMMA)
    assert turn_end(tokenizer) == [6]
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps({"temperature": 0.6, "eos_token_id": listed}))
    _note_turn_end(tmp_path, tokenizer)
    assert json.loads(path.read_text()) == {"temperature": 0.6, "eos_token_id": saved}
    path.unlink()
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 8, "pad_token_id": 0, "eos_token_id": listed}))
    _note_turn_end(tmp_path, tokenizer)
    if saved == listed:
        assert not path.exists()  # generate goes on reading config.json
    else:
        assert json.loads(path.read_text()) == {"pad_token_id": 0, "eos_token_id": saved}


@pytest.mark.parametrize("odd", ["{", "[1]"])
def test_an_odd_generation_config_loses_no_model(tmp_path, odd, caplog):
    (tmp_path / "generation_config.json").write_text(odd)
    _note_turn_end(tmp_path, with_template(GEMMA))
    assert "cannot be read" in caplog.text
    assert (tmp_path / "generation_config.json").read_text() == odd


@pytest.mark.parametrize(("template", "reason"), [(GEMMA, "System role not supported"), (DROPS, "leaves the system")])
def test_a_system_prompt_without_a_system_role_names_the_setting(template, reason):
    tokenizer = with_template(template)
    with pytest.raises(ConfigError, match=f"system_prompt='a': the model's chat template .*{reason}.*; leave it out"):
        check_system_prompt(tokenizer, "a", "system_prompt")
    check_system_prompt(tokenizer, None, "system_prompt")
    for fine in (TEMPLATES["Llama 3: no newline"][0], None):
        check_system_prompt(with_template(fine), "a", "system_prompt")


@pytest.mark.parametrize(
    ("template", "roles", "reason"),
    [
        (GEMMA, ["user", "user"], "refuses messages of the roles user, user (Roles must alternate)"),
        (GEMMA, ["system", "user"], "refuses messages of the roles system, user (System role not supported)"),
        (DROPS, ["system", "user"], "leaves the system message out of the roles system, user"),
        (DROPS, ["user", "tool"], "leaves the tool message out of the roles user, tool"),
    ],
)
def test_a_row_whose_roles_the_template_does_not_take_is_named(tmp_path, template, roles, reason):
    tokenizer = with_template(template)
    messages = [{"role": role, "content": " Who? "} for role in roles]
    with pytest.raises(DataError) as caught:
        encode_prompt(tokenizer, messages)
    assert reason in str(caught.value)
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"prompt": "Who?", "answer": "x"}, {"prompt": messages, "answer": "x"}]))
    with pytest.raises(DataError) as caught:
        RLHFDataset(str(path), tokenizer)
    assert f"{path}, row 1: the model's chat template {reason}" in str(caught.value)


def test_a_template_may_write_words_in_its_own_way():
    tokenizer = with_template("{% for m in messages %}{{ m.role }}: {{ m.content | upper }}\n{% endfor %}")
    messages = [{"role": role, "content": "why so?"} for role in ("system", "user")]
    assert tokenizer.decode(encode_prompt(tokenizer, messages)) == "system: WHY SO?\nuser: WHY SO?\n"


def test_a_template_that_is_no_jinja_is_a_message():
    with pytest.raises(ConfigError, match="line 1 of the chat template is no jinja: .*endfor"):
        encode_prompt(with_template("{% for m in messages %}"), "Who?")
