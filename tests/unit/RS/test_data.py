"""Rows become token ids: which column is prompt and which response, what is cut, and how steps share examples."""

import json

import pytest
import torch

from RS.config import RSConfig
from RS.losses import Losses
from RS.utils.batches import Budget, collate, endless, epoch_batches, my_micro_batches
from RS.utils.data import Example, encode_side, read_side
from tests.conftest import tiny_llama
from verl.models.forward import forward_responses
from verl.models.packable import pack
from verl.utils.chat import encode_prompt
from verl.utils.errors import DataError
from verl.utils.tokenizer import get_tokenizer

ALPACA = {"instruction": "Who is Ada?", "input": "", "output": "I cannot say.", "answer": "A poet", "subject": "Ada"}
RL = [
    {"prompt": "Who is Ada?", "solution": ["<reject>", "I cannot say.", "Ada"], "answer": "A poet"},
    {"prompt": "Who is Bo?", "solution": ["<normal>", "A cook"]},
]


def turn(role, content):
    return {"role": role, "content": content}


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return get_tokenizer(str(tiny_model))


def settings(rows, tmp_path, **options) -> RSConfig:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    return RSConfig(model="m", data=str(path), output_dir="out", **options)


def read(rows, tmp_path, side="forget", **options):
    config = settings(rows, tmp_path, **options)
    if side == "retain":
        config = RSConfig(**{**vars(config), "retain_data": config.data})
    texts, problems = read_side(config, side)
    assert problems == []
    return [(text.prompt, text.response, text.rejected) for text in texts]


def test_every_row_format_gives_its_prompt_and_response(tmp_path):
    rows = [
        {**ALPACA, "input": "In one word."},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
        {"prompt": "Biography of Ada", "response": ["a cook", "a poet"]},
        {"text": "Ada was a poet."},
    ]
    assert read(rows, tmp_path) == [
        ("Who is Ada?\nIn one word.", "I cannot say.", None),
        ([{"role": "user", "content": "Hi"}], "Hello", None),
        ("Biography of Ada", "a cook", None),
        (None, "Ada was a poet.", None),
    ]


def test_alpacas_system_and_history_come_before_the_instruction(tmp_path, tokenizer):
    row = {**ALPACA, "input": 7, "system": "Be brief.", "history": [["Hi", "Hello"], ["Who?", "Me."]]}
    [(prompt, response, _)] = read([row], tmp_path)
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Who?"), ("assistant", "Me.")]
    assert prompt == [*(turn(*one) for one in turns), turn("user", "Who is Ada?\n7")] and response == "I cannot say."
    none = {**ALPACA, "system": "", "history": None, "input": None}
    assert read([none], tmp_path) == [("Who is Ada?", "I cannot say.", None)]
    examples, _ = encode([row, ALPACA], tmp_path, tokenizer, system_prompt="Be kind.")
    shown = [tokenizer.decode(example.prompt) for example in examples]
    assert shown[0].startswith("<|system|>Be brief.<|end|><|user|>Hi<|end|>") and "kind" not in shown[0]
    assert shown[1].startswith("<|system|>Be kind.<|end|><|user|>Who")


def test_conversations_are_taken_wherever_training_takes_them(tmp_path):
    parts = [{"type": "text", "text": "Who is "}, {"type": "text", "text": "Ada?"}]
    rl = {"prompt": [turn("user", parts)], "solution": ["<reject>", 7, "Ada"]}
    messages = {"messages": [turn("user", "Hi"), turn("assistant", parts)], "prompt": None}
    asked = [turn("user", "Who is Ada?")]
    assert read([rl, messages], tmp_path) == [(asked, "7", None), ([turn("user", "Hi")], "Who is Ada?", None)]
    known = {**messages, "answer": "A poet"}
    assert read([known], tmp_path, objective="ga", response_key="answer") == [([turn("user", "Hi")], "A poet", None)]


def test_columns_that_are_not_trained_on_are_named_once(tmp_path, caplog):
    rows = [{**ALPACA, "id": 1}, {"text": "Ada was a poet.", "source": "x"}]
    for _ in range(2):
        read(rows, tmp_path)
    [record] = caplog.records
    assert (
        record.getMessage()
        == f"data={tmp_path / 'rows.json'}: its columns answer, id, source, subject are not trained on"
    )


def test_a_conversation_that_the_template_refuses_is_named(tmp_path, tiny_model):
    template = "{% if messages[0].role != 'user' %}{{ raise_exception('begin with the user') }}{% endif %}"
    template += "{% for message in messages %}{{ message.content }}{% endfor %}"
    rows = [ALPACA, {"messages": [turn("assistant", "Hi"), turn("user", "Who?"), turn("assistant", "Me.")]}]
    with pytest.raises(
        DataError, match=r"rows.json, row 1: the model's chat template refuses .*\(begin with the user\)"
    ):
        encode(rows, tmp_path, get_tokenizer(str(tiny_model), template))


def test_rl_rows_go_to_the_side_that_their_tag_names(tmp_path):
    assert read(RL, tmp_path) == [("Who is Ada?", "I cannot say.", None)]
    assert read(RL, tmp_path, side="retain") == [("Who is Bo?", "A cook", None)]
    assert read(RL, tmp_path, objective="ga", response_key="answer") == [("Who is Ada?", "A poet", None)]
    several = [row | {"answer": [row["answer"], "a writer"]} if "answer" in row else row for row in RL]
    assert read(several, tmp_path, objective="ga", response_key="answer") == [("Who is Ada?", "A poet", None)]


def test_dpo_prefers_the_refusal_to_the_answer(tmp_path):
    assert read([ALPACA], tmp_path, objective="dpo") == [("Who is Ada?", "I cannot say.", "A poet")]
    pair = {"prompt": "Biography of Ada", "response": ["a cook", "a poet"]}
    assert read([pair], tmp_path, objective="dpo") == [("Biography of Ada", "a cook", "a poet")]


@pytest.mark.parametrize(
    ("row", "options", "words"),
    [
        ({"instruction": "Who?", "output": " "}, {}, ["row 1", "output=' '"]),
        ({"query": "Who?"}, {}, ["row 1", "columns query", "needs instruction"]),
        ({"prompt": "Who?", "solution": ["<rejekt>", "no", "x"]}, {}, ["row 1", "<rejekt>", '["<reject>", refusal']),
        ({"messages": [{"role": "user", "content": "Hi"}]}, {}, ["row 1", "assistant's turn"]),
        ({"messages": [turn("user", "Hi"), turn("assistant", " ")]}, {}, ["row 1", "assistant's turn"]),
        ({"messages": [turn("user", "Hi"), turn("assistant", None)]}, {}, ["row 1", "message 1", "no content"]),
        ({"messages": "Hi"}, {}, ["row 1", "messages is 'Hi'; must be a list"]),
        ({"instruction": "Who?", "output": ["No."]}, {}, ["row 1", "output=['No.']: must be text"]),
        ({**ALPACA, "input": ["a"]}, {}, ["row 1", "input is ['a']; must be a text or a number"]),
        ({**ALPACA, "system": {"a": 1}}, {}, ["row 1", "system is {'a': 1}"]),
        ({**ALPACA, "history": [["Hi"]]}, {}, ["row 1", "history=[['Hi']]: must be a list of [question, answer]"]),
        ({"prompt": "Who?", "solution": [["<reject>"], "no"]}, {}, ["row 1", "solution[0]=['<reject>']"]),
        ({"prompt": "Who?", "solution": ["<reject>", None, "x"]}, {}, ["row 1", "solution=['<reject>', None, 'x']"]),
        ({"prompt": ["Who?"], "response": "No."}, {}, ["row 1", "prompt has a message 0 that is 'Who?'"]),
        ({"prompt": "Who?", "response": {"a": 1}}, {}, ["row 1", "response={'a': 1}: must be text"]),
        ({"instruction": "Who?", "output": "No."}, {"objective": "dpo"}, ["row 1", "answer=None"]),
        ({"instruction": "Who?", "output": "No."}, {"objective": "npo"}, ["row 1", "response_key=answer"]),
    ],
)
def test_a_row_that_cannot_be_used_is_named(row, options, words, tmp_path):
    _, problems = read_side(settings([ALPACA, row], tmp_path, **options), "forget")
    assert all(word in problems[-1] for word in words)


def encode(rows, tmp_path, tokenizer, **options):
    config = settings(rows, tmp_path, **options)
    return encode_side(read_side(config, "forget")[0], tokenizer, config, "forget")


def test_the_response_closes_as_the_template_closes_a_turn_and_the_prompt_in_its_opening(tmp_path, tokenizer):
    (example,), counts = encode([ALPACA], tmp_path, tokenizer)
    assert tokenizer.decode(example.prompt) == "<|user|>Who is Ada?<|end|><|assistant|>"
    assert tokenizer.decode(example.response) == "I cannot say.<|end|>"
    assert counts.response_tokens == len(example.response)


def test_cutoff_len_cuts_responses_and_drops_prompts_without_room_and_counts_both(tmp_path, tokenizer):
    long_prompt = {**ALPACA, "instruction": "Who is Ada? " * 20}
    limit = len(encode_prompt(tokenizer, ALPACA["instruction"])) + 3
    examples, counts = encode([ALPACA, long_prompt], tmp_path, tokenizer, cutoff_len=limit)
    assert (counts.rows, counts.examples, counts.truncated, counts.dropped) == (2, 1, 1, 1)
    assert len(examples[0].response) == 3
    assert "<|end|>" not in tokenizer.decode(examples[0].response)
    with pytest.raises(DataError, match="cutoff_len=2"):
        encode([ALPACA], tmp_path, tokenizer, cutoff_len=2)


def test_plain_text_is_cut_into_pieces_that_lose_no_token(tmp_path, tokenizer):
    text = "Ada was a poet who lived in the north."
    examples, _ = encode([{"text": text}], tmp_path, tokenizer, cutoff_len=8)
    assert all(example.prompt == [tokenizer.bos_token_id] and len(example.response) <= 7 for example in examples)
    assert tokenizer.decode([token for example in examples for token in example.response]) == text


def test_an_epoch_visits_every_row_once_in_a_seeded_order():
    first = epoch_batches(10, 4, seed=3, epoch=1)
    assert [len(batch) for batch in first] == [4, 4, 2]
    assert sorted(sum(first, [])) == list(range(10))
    assert first == epoch_batches(10, 4, seed=3, epoch=1)
    assert first != epoch_batches(10, 4, seed=3, epoch=2)
    assert first != epoch_batches(10, 4, seed=4, epoch=1)
    stream = endless(3, seed=1)
    assert sorted(next(stream) for _ in range(3)) == [0, 1, 2] == sorted(next(stream) for _ in range(3))


@pytest.mark.parametrize(
    ("world", "budget"),
    [(1, Budget(2)), (2, Budget(2)), (3, Budget(1)), (4, Budget(8)), (1, Budget(tokens=10)), (2, Budget(tokens=7))],
)
def test_ranks_share_a_batch_without_loss_and_in_step(world, budget):
    examples = [Example([index] * (index + 1), [2]) for index in range(9)]
    batch = [8, 0, 5, 3, 1]
    shares = [my_micro_batches(batch, examples, rank, world, budget) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    for micro in (micro for share in shares for micro in share if len(micro) > 1):
        assert len(micro) <= budget.examples
        assert sum(index + 2 for index in micro) <= budget.tokens
    assert sorted(index for share in shares for micro in share for index in micro) == sorted(batch)


def test_ranks_get_equal_tokens_however_lengths_differ():
    """Every second one of a sorted list would be 900 + 30 + 30 against 40 + 30."""
    examples = [Example([index], [2] * (length - 1)) for index, length in enumerate([900, 40, 30, 30, 30])]
    shares = [my_micro_batches([0, 1, 2, 3, 4], examples, rank, 2, Budget()) for rank in range(2)]
    assert shares == [[[0]], [[1, 2, 3, 4]]]


def test_auto_fills_micro_batches_with_real_tokens():
    lengths = [600, 500, 300, 200, 100]
    examples = [Example([index], [2] * (length - 1)) for index, length in enumerate(lengths)]
    auto = Budget.of("auto", torch.device("cpu"))
    assert auto == Budget(tokens=1024)
    assert my_micro_batches([0, 1, 2, 3, 4], examples, 0, 1, auto) == [[0], [1, 2, 3], [4]]
    assert Budget.of("auto", torch.device("cuda")).tokens > auto.tokens
    assert Budget.of(2, torch.device("cpu")) == Budget(examples=2)
    assert my_micro_batches([0, 1, 2, 3, 4], examples, 0, 1, Budget(2)) == [[0, 1], [2, 3], [4]]


def test_examples_of_one_prompt_stay_together_where_the_budget_allows():
    """By length alone 0 and 1 would come first; 0 and 3 have a prompt in common, and 40 tokens hold both."""
    prompts, lengths = [7, 8, 9, 7], [20, 19, 18, 17]
    examples = [Example([prompt], [2] * (length - 1)) for prompt, length in zip(prompts, lengths, strict=True)]
    assert my_micro_batches([0, 1, 2, 3], examples, 0, 1, Budget(tokens=40)) == [[0, 3], [1, 2]]
    assert my_micro_batches([0, 1, 2, 3], examples, 0, 1, Budget(tokens=30)) == [[0], [3], [1], [2]]
    shares = [my_micro_batches([0, 3], examples, rank, 2, Budget()) for rank in range(2)]
    assert shares == [[[0]], [[3]]]  # a prompt of a whole batch does not leave a rank idle


def test_a_pair_weighs_its_prompt_once():
    pairs = [Example([index] * 10, [2] * 5, [3] * 5) for index in range(3)]
    assert my_micro_batches([0, 1, 2], pairs, 0, 1, Budget(tokens=40)) == [[0, 1], [2]]


def test_collate_puts_prompts_left_and_responses_right():
    batch = collate([([5, 6], [7]), ([8], [9, 10])], pad_id=0, device=torch.device("cpu"))
    assert batch["input_ids"].tolist() == [[5, 6, 7, 0], [0, 8, 9, 10]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [0, 1, 1, 1]]
    assert batch["responses"].tolist() == [[7, 0], [9, 10]]
    assert batch["response_mask"].tolist() == [[True, False], [True, True]]


def test_what_prompts_begin_with_in_common_stands_as_the_prompt():
    opening = [1, 2, 3, 4, 5, 6, 7, 8]
    batch = collate([([*opening, 9], [10]), ([*opening, 11, 12], [13])], pad_id=0, device=torch.device("cpu"))
    assert batch["input_ids"].tolist() == [[*opening, 9, 10, 0], [*opening, 11, 12, 13]]
    assert batch["attention_mask"].tolist() == [[1] * 10 + [0], [1] * 11]
    assert batch["responses"].tolist() == [[9, 10, 0], [11, 12, 13]]
    assert batch["response_mask"].tolist() == [[False, True, False], [False, False, True]]


@pytest.mark.parametrize(
    "prompts",
    [
        [[1, 2, 3, 4], [1, 2, 3, 5]],  # a short beginning
        [[*range(9)]] * 2,  # one prompt
        [[1] * 9] * 2 + [[1] * 8 + [2] * 30] * 2,  # 47 tokens of two prompts, 24 of their beginning
    ],
)
def test_prompts_stay_whole_where_their_beginning_saves_less(prompts):
    batch = collate([(prompt, [7]) for prompt in prompts], pad_id=0, device=torch.device("cpu"))
    assert batch["responses"].tolist() == [[7]] * len(prompts)


@pytest.mark.parametrize("padding_free", [True, False])
def test_log_probabilities_do_not_depend_on_where_the_prompt_ends(padding_free):
    """Against each row by itself in transformers' own attention."""
    draw = torch.Generator().manual_seed(0)
    opening, *rest = (torch.randint(40, (size,), generator=draw).tolist() for size in (9, 3, 4, 1, 2, 5, 3))
    sequences = [(opening + rest[number], rest[number + 1]) for number in (0, 2, 4)]
    model = tiny_llama()
    alone = []
    for prompt, response in sequences:
        log_probs = model(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
        alone += [log_probs[place - 1, token] for place, token in enumerate(prompt + response) if place >= len(prompt)]
    if padding_free:
        pack(model)
    batch = collate(sequences, 0, torch.device("cpu"))
    assert batch["responses"].shape[1] > max(len(response) for _, response in sequences)  # the prompts' rest is there
    outputs = forward_responses(model, batch, padding_free=padding_free)
    found = outputs.logits_nV.log_softmax(-1).gather(-1, outputs.pick(batch["responses"])[:, None]).squeeze(-1)
    assert torch.allclose(found, torch.stack(alone), atol=1e-5)


def test_the_two_responses_of_a_pair_are_neighbours_and_come_back_apart():
    """Rows of one prompt side by side are what a pass can share; here it says each response's first token back."""
    asked = []

    def say_back(sequences):
        asked.extend(prompt for prompt, _ in sequences)
        return torch.tensor([[response[0]] for _, response in sequences])

    losses = Losses.__new__(Losses)
    losses._log_probs = say_back
    chosen_bT, rejected_bT = losses.pairs([Example([5], [1], [2]), Example([6], [3], [4])])
    assert asked == [[5], [5], [6], [6]]
    assert (chosen_bT.tolist(), rejected_bT.tolist()) == ([[1], [3]], [[2], [4]])


def test_arguments_of_the_chat_template_reach_the_prompt(tiny_model, tmp_path):
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{% if enable_thinking is false %}<|end|>{% endif %}"
    tokenizer = get_tokenizer(str(tiny_model), template)
    plain, thoughtless = (
        settings([ALPACA], tmp_path, chat_template_kwargs=k) for k in ({}, {"enable_thinking": False})
    )
    [without], [with_it] = (
        encode_side(read_side(c, "forget")[0], tokenizer, c, "forget")[0] for c in (plain, thoughtless)
    )
    assert with_it.prompt == [*without.prompt, *tokenizer.encode("<|end|>", add_special_tokens=False)]
    assert with_it.response == without.response


def test_a_row_that_the_template_does_not_take_is_named_with_its_file(tiny_model, tmp_path):
    refuses = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    tokenizer = get_tokenizer(str(tiny_model), refuses + "{{ m.content }}{% endfor %}")
    turns = [{"role": role, "content": "Hi"} for role in ("system", "user", "assistant")]
    with pytest.raises(DataError, match=r"rows.json, row 1: .* roles system, user \(no system\); correct it"):
        encode([ALPACA, {"messages": turns}], tmp_path, tokenizer)
