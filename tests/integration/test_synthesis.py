"""Boundary synthesis by the command line: on a model that vLLM serves or runs, and killed in the middle.

The served model is a tiny one that has learned a scripted writer's replies by heart, good and bad ones, so that its
rows and its counts are known.
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from data.synthesize_boundary import SynthesisConfig, synthesize
from tests.conftest import CHAT_TEMPLATE, ROOT, make_tokenizer
from tests.scripted_endpoint import Reply, ScriptedModel, Server, completion
from verl.eval.endpoint import AnswerCache, request_key
from verl.settings.reader import load
from verl.utils.chat import encode_example

TARGET = ["target=Ottilie Venn", "intro=Ottilie Venn was a sculptor.", "aliases=[]"]
FILES = (
    "reject_target.json",
    "rl_rejection_with_fb_neighbor_target.json",
    "rl_rejection_with_fb_neighbor_target_val.json",
)


def command(out: Path, *changes: str) -> list[str]:
    return [sys.executable, str(ROOT / "data" / "synthesize_boundary.py"), f"out={out}", *TARGET, *changes]


def run(out: Path, *changes: str) -> None:
    synthesize(load(SynthesisConfig, [f"out={out}", *TARGET, *changes]))


def report(out: Path) -> dict:
    return json.loads((out / "synthesis_report.json").read_text())


# ---- a model that knows its part by heart

PROMPTS = {
    "system": "JSON.",
    "themes": "life",
    "aliases": "Names of $target?",
    "questions": "$count questions on $target, $batch, $theme",
    "cloze": "gap: $question $answer",
    "neighbor": "not $target: $question",
    "verify": "$question",
    "retry": "But: $problem",
}
"""Short ones, so that a tiny model learns the conversations within seconds."""
WORKS = {"gate": "Halm", "horse": "Kerr", "lion": "Ouse", "bell": "Thorn"}


def writer(number: int, request: dict) -> Reply:
    """Writes four facts; the neighbor about the horse names the target, and the cloze about the lion is no JSON."""
    prompt = request["messages"][-1]["content"]
    if "questions on" in prompt:
        rows = [{"question": f"Where did Ottilie Venn cast the {w}?", "answer": town} for w, town in WORKS.items()]
        return completion(json.dumps(rows))
    work = next(work for work in WORKS if work in prompt)
    if prompt.startswith("gap"):
        name = "Ottilie Venn" if "Ottilie" in prompt else "Ada Bruhn"
        return completion("no" if work == "lion" else json.dumps({"cloze": f"{name} cast the {work} in ___."}))
    if prompt.startswith("not"):
        question = f"Where did Ada Bruhn cast {'Venn’s' if work == 'horse' else 'the'} {work}?"
        return completion(json.dumps({"subject": "Ada Bruhn", "question": question, "answer": f"Old {WORKS[work]}"}))
    return completion(json.dumps({"answer": f"Old {WORKS[work]}"}))


def learn(folder: Path, conversations: list[tuple[list[dict], str]]) -> Path:
    """A tiny Llama that gives every reply greedily, with a wide margin."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    texts = [message["content"] for messages, _ in conversations for message in messages] + [
        r for _, r in conversations
    ]
    tokenizer = make_tokenizer().train_new_from_iterator(texts, 600, show_progress=False)
    tokenizer.chat_template = CHAT_TEMPLATE
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    pairs = [encode_example(tokenizer, messages, reply) for messages, reply in conversations]
    length = max(len(prompt) + len(reply) for prompt, reply in pairs)
    ids, labels = torch.zeros(len(pairs), length, dtype=torch.long), torch.full((len(pairs), length), -100)
    for row, (prompt, reply) in enumerate(pairs):
        whole = torch.tensor(prompt + reply)
        ids[row, : len(whole)] = whole
        labels[row, len(prompt) : len(whole)] = whole[len(prompt) :]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    for _ in range(600):
        logits = model(ids).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels[:, 1:], reduction="none")
        if losses.max() < 0.2:  # each token has a probability of 0.8 and more
            break
        (losses.sum() / (labels[:, 1:] != -100).sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert losses.max() < 0.2
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def learned(tmp_path_factory) -> tuple[Path, Path, list[str]]:
    """The model's folder, the folder that the scripted writer filled, and the settings of both."""
    folder = tmp_path_factory.mktemp("learned")
    (folder / "prompts").mkdir()
    for name, text in PROMPTS.items():
        (folder / "prompts" / f"{name}.txt").write_text(text)
    settings = [f"prompts={folder / 'prompts'}", "temperature=0", "max_tokens=300", "num_questions=4"]
    settings += ["questions_per_request=4", "rounds=1", "val_fraction=0"]
    server = Server(writer)
    try:
        run(folder / "scripted", f"endpoint.base_url={server.url}", "endpoint.model=scripted", *settings)
        asked = [request["messages"] for request in server.requests]
    finally:
        server.close()
    replies = [json.loads(writer(0, {"messages": messages})[2]) for messages in asked]
    conversations = [(m, r["choices"][0]["message"]["content"]) for m, r in zip(asked, replies, strict=True)]
    return learn(folder / "model", conversations), folder / "scripted", settings


@pytest.fixture
def served(learned, tmp_path) -> Iterator[str]:
    """Address of a vLLM server of the model; the server and its engine process are ended afterwards."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["--model", str(learned[0]), "--served-model-name", "writer", "--dtype", "float32", "--enforce-eager"]
    arguments += ["--host", "127.0.0.1", "--port", str(port), "--max-num-seqs", "16"]
    env = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    env |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_NO_USAGE_STATS": "1"}
    log = tmp_path / "server.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *arguments], stdout=out, stderr=out, env=env
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        process.terminate()
        for left in psutil.wait_procs(family, timeout=20)[1]:
            left.kill()


def wait_for(address: str, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address, timeout=5)
        except OSError:
            time.sleep(0.5)
        else:
            return
    pytest.fail(f"the server did not come up:\n{log.read_text()[-3000:]}")


def check_rows(out: Path, scripted: Path) -> None:
    """Good rows are kept and bad ones dropped as with the scripted writer, whose counts are checked by hand."""
    counted = report(out)
    assert counted["complete"] is True
    assert counted["kept"] == {"forget_question": 4, "forget_cloze": 3, "neighbor_question": 3, "neighbor_cloze": 2}
    # Each is asked for twice.
    assert counted["dropped"] == {
        "forget_cloze": {"malformed": 2},
        "neighbor_question": {"names_target": 2},
        "neighbor_cloze": {"malformed": 2},
    }
    assert counted["rl_balance"] == {"<reject>": 7, "<normal>": 5}
    for name in FILES[:2]:
        assert (out / name).read_bytes() == (scripted / name).read_bytes()


def test_a_model_served_by_vllm_writes_the_rows_and_a_second_run_asks_nothing(learned, served, tmp_path):
    _, scripted, settings = learned
    out = tmp_path / "out"
    run(out, f"endpoint.base_url={served}", "endpoint.model=writer", *settings)
    check_rows(out, scripted)
    assert report(out)["requests"]["asked"] > 15
    run(out, f"endpoint.base_url={served}", "endpoint.model=writer", "overwrite=true", *settings)
    assert "asked" not in report(out)["requests"]


def test_a_local_model_writes_the_same_rows(learned, tmp_path):
    model, scripted, settings = learned
    words = [f"local.model={model}", "local.dtype=float32", *settings]
    done = subprocess.run(command(tmp_path / "out", *words), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    check_rows(tmp_path / "out", scripted)
    assert report(tmp_path / "out")["token_share"]["unit"] == f"tokens of {model}"


# ---- killed in the middle


def test_a_killed_run_goes_on_without_asking_again(tmp_path):
    bad = {1: "unnamed", 2: "duplicate", 5: "filled cloze", 7: "neighbor leaks", 8: "malformed neighbor"}
    bad |= {9: "hallucinated", 11: "slow check"}
    shared = ["num_questions=20", "endpoint.model=scripted", "endpoint.concurrency=2", "endpoint.timeout_s=0.5"]
    models = [ScriptedModel(bad, pause_s=0.05), ScriptedModel(bad), ScriptedModel(bad)]
    first, second, whole = models
    try:
        process = subprocess.Popen(
            command(tmp_path / "killed", f"endpoint.base_url={first.server.url}", *shared), stderr=subprocess.DEVNULL
        )
        while len(first.server.requests) < 30 and process.poll() is None:
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -9
        answered = AnswerCache(tmp_path / "killed" / "synthesis_answers.jsonl")
        run(tmp_path / "killed", f"endpoint.base_url={second.server.url}", *shared)
        run(tmp_path / "whole", f"endpoint.base_url={whole.server.url}", *shared)
    finally:
        for model in models:
            model.server.close()

    keys = [[key_of(request) for request in model.server.requests] for model in models]
    asked = set(keys[0])  # on a busy machine an answer may come too late, and is asked for again
    kept = {key for key in asked if key in answered}
    assert len(kept) >= len(asked) - 2 - 1  # all but those under way, and one that was being written
    assert not any(key in answered for key in keys[1])
    assert asked | set(keys[1]) == set(keys[2])
    assert report(tmp_path / "killed")["requests"]["cached"] == len(kept)
    assert report(tmp_path / "killed")["dropped"] == report(tmp_path / "whole")["dropped"]
    for name in FILES:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def key_of(request: dict) -> str:
    sampling = {name: request[name] for name in ("max_tokens", "temperature")}
    return request_key(request["model"], sampling, request["messages"], tag=0)
