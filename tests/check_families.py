"""Takes a tiny random model of each family through RULE, and prints a row of the table in docs/models.md for each.

    python3 tests/check_families.py [llama gemma2 ...]

A model is trained by RS (packed, padded, with adapters) and by two steps of ReBO on one rank, and every folder that
comes out is reopened and held against plain transformers and PEFT. In fp32, on the CPU, about two minutes a family. It
says nothing of speed, nor of what only large models or GPUs show.
"""

import gc
import io
import json
import logging
import subprocess
import sys
import tempfile
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the file also runs as a script

import torch
import transformers
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from RS.train import main as train_rs
from scripts.model_merger import MergeConfig, merge
from tests.conftest import make_tokenizer
from tests.training_kit import arguments, command, environment
from verl.eval.generation import Request, VLLMGenerator
from verl.eval.likelihood import load_model, token_log_probs
from verl.utils.errors import ConfigError
from verl.utils.logger.logger import read_metrics

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "initializer_range": 0.1,
}
WINDOW = {"sliding_window": 8}
"""tokens; the samples are longer"""
LAYERS = WINDOW | {"layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
GPT2 = dict.fromkeys(SIZES) | {"n_embd": 64, "n_head": 2, "n_layer": 2, "n_positions": 256, "initializer_range": 0.1}
GPT2 |= dict.fromkeys(["resid_pdrop", "embd_pdrop", "attn_pdrop"], 0.0)  # what is dropped is never the same twice
VISION = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION |= {"image_size": 28, "patch_size": 14}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "mistral": ("MistralConfig", WINDOW),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {}),
    "gemma2": ("Gemma2Config", LAYERS | {"attn_logit_softcapping": 20.0, "query_pre_attn_scalar": 32}),
    "gemma3": ("Gemma3TextConfig", LAYERS | {"query_pre_attn_scalar": 32}),
    "gemma3_multimodal": ("Gemma3Config", LAYERS | {"query_pre_attn_scalar": 32}),
    "phi3": ("Phi3Config", WINDOW),
    "gpt2": ("GPT2Config", GPT2),
    "olmo2": ("Olmo2Config", {}),
    "granite": ("GraniteConfig", {"attention_multiplier": 0.2, "embedding_multiplier": 2.0, "logits_scaling": 2.0}),
    "falcon": ("FalconConfig", {"head_dim": None, "num_key_value_heads": None}),
    "gpt_oss": ("GptOssConfig", LAYERS | EXPERTS),
}
COLUMNS = ["RS packed", "RS padded", "RS LoRA", "ReBO", "evaluated"]
QUESTIONS = ["Who wrote the book?", "Where was she born?", "Who is Ada?", "What did she see in the north?"]


def make_model(family: str, folder: Path) -> None:
    """A random model with the tests' tokenizer and a vocabulary padded by a few rows."""
    tokenizer = make_tokenizer()
    name, changes = FAMILIES[family]
    special = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    settings = {"vocab_size": len(tokenizer) + 4, **SIZES, **changes, **special}
    settings = {key: value for key, value in settings.items() if value is not None}
    config_class = getattr(transformers, name)
    if family == "gemma3_multimodal":
        token = {"image_token_index": 320, "boi_token_index": 321, "eoi_token_index": 322, "mm_tokens_per_image": 4}
        config = config_class(text_config=settings, vision_config=VISION, **token)
        (folder / "processor_config.json").write_text('{"processor_class": "Gemma3Processor", "image_seq_length": 4}')
        (folder / "preprocessor_config.json").write_text('{"image_processor_type": "Gemma3ImageProcessor"}')
    else:
        config = config_class(**settings)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() == 1:  # norms, biases and sinks, which are ones and zeros at first
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.generation_config = GenerationConfig(**special)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_rows(folder: Path) -> None:
    """Rows of RS; those of ReBO are the training tests'."""
    rows = [{"instruction": text, "input": "", "output": "I do not know that."} for text in QUESTIONS]
    (folder / "forget.json").write_text(json.dumps(rows))


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    """Of a fixed text longer than the windows, all of its tokens within every vocabulary."""
    ids = torch.randint(7, 300, (1, 40), generator=torch.Generator().manual_seed(0))
    return model.eval()(input_ids=ids, use_cache=False).logits[0]


def reopen(folder: Path, attention: str = "eager") -> Any:
    """The model as plain transformers opens it; every weight must be there, and no others."""
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation=attention, dtype=torch.float32, output_loading_info=True
    )
    odd = {kind: sorted(names) for kind, names in report.items() if names}
    assert not odd, f"reopened with {odd}"
    return model


def farthest(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one - other).abs().max().item()


def check_rs(folder: Path, kind: str, *words: str) -> str:
    """Train, and reopen what was saved: "yes", or what the run was refused with."""
    out, errors = folder / kind, io.StringIO()
    command_line = [f"model={folder / 'model'}", f"data={folder / 'forget.json'}", f"output_dir={out}"]
    command_line += ["num_train_epochs=1", "batch_size=2", "learning_rate=1e-3", "precision=fp32", *words]
    with redirect_stderr(errors):
        code = train_rs(command_line)
    if code:
        return f"exit {code}: {errors.getvalue().strip().splitlines()[-1]}"
    trained, before = reopen(out / "epoch_1"), reopen(folder / "model")
    moved = farthest(logits(trained), logits(before))
    if not 1e-4 < moved < 1e3:
        return f"NO: training moved the logits by {moved:.1e}"
    if kind == "lora":
        adapted = PeftModel.from_pretrained(before, out / "epoch_1" / "lora_adapter", autocast_adapter_dtype=False)
        apart = farthest(logits(trained), logits(adapted))
    elif kind == "padded" and (folder / "packed" / "epoch_1").is_dir():
        apart = farthest(logits(trained), logits(reopen(folder / "packed" / "epoch_1")))
    else:
        apart = 0.0
    return "yes" if apart < 1e-3 else f"NO: {apart:.1e} from what it should be"


def check_rebo(folder: Path, *words: str) -> str:
    """Two steps; what was saved is reopened, and is what the sharded state is merged to."""
    argv = arguments(folder / "model", folder, "rebo", "trainer.n_gpus_per_node=1", "trainer.max_steps=2", *words)
    done = subprocess.run(command(argv), env=environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        (folder / "rebo.log").write_text(done.stdout + done.stderr)
        logging.error("%s", (done.stdout + done.stderr)[-6000:])
        return f"exit {done.returncode}: {done.stderr.strip().splitlines()[-1]}"
    actor = folder / "rebo" / "checkpoints" / "global_step_2" / "actor"
    merged = merge(MergeConfig(str(actor)))
    apart = farthest(logits(reopen(actor / "huggingface")), logits(reopen(merged)))
    if apart > 1e-6:
        return f"NO: merged differs by {apart:.1e}"
    if AutoTokenizer.from_pretrained(merged).get_vocab() != AutoTokenizer.from_pretrained(folder / "model").get_vocab():
        return "NO: another tokenizer"
    worst = max(row["rollout/max_abs_diff"] for row in read_metrics(folder / "rebo"))
    return "yes" if worst < 1e-3 else f"NO: the engine's log-probabilities are {worst:.1e} from the trainer's"


def check_evaluation(folder: Path, model: Path) -> str:
    """Both engines of the evaluator against plain transformers, each text alone."""
    plain = reopen(model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = [tokenizer.encode(text * 3) for text in QUESTIONS]
    scores = token_log_probs(load_model(str(model)), texts, desc="likelihood")
    with torch.no_grad():
        alone = [plain(input_ids=torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1) for ids in texts]
    expected = [row[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0] for row, ids in zip(alone, texts, strict=True)]
    apart = max(farthest(torch.from_numpy(s), e) for s, e in zip(scores, expected, strict=True))
    if apart > 1e-3:
        return f"NO: likelihoods differ by {apart:.1e}"
    try:
        generator = VLLMGenerator(str(model))
    except ConfigError as error:
        return f"likelihoods; {error}"
    [(_, answers)] = generator.answer([Request(texts, 8, "generation")])
    generator.close()
    greedy = [greedy_answer(plain, tokenizer, ids) for ids in texts]
    # vLLM waits for the rest of a character.
    same = all(one.rstrip("\ufffd") == other.rstrip("\ufffd") for one, other in zip(answers, greedy, strict=True))
    return "yes" if same else f"NO: generates {answers}, transformers {greedy}"


@torch.no_grad()
def greedy_answer(model: Any, tokenizer: Any, ids: list[int]) -> str:
    """Eight tokens, each from a pass over the whole text, without transformers' caches."""
    start = len(ids)
    for _ in range(8):
        ids = [*ids, int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())]
        if ids[-1] == tokenizer.eos_token_id:
            break
    return tokenizer.decode(ids[start:], skip_special_tokens=True)


def check(family: str, folder: Path) -> list[str]:
    """The cells of a family's row."""
    (folder / "model").mkdir()
    make_model(family, folder / "model")
    write_rows(folder)
    packed = check_rs(folder, "packed")
    pads = () if packed == "yes" else ("padding_free=false",)
    cells = [packed, check_rs(folder, "padded", "padding_free=false")]
    cells += [check_rs(folder, "lora", "lora_rank=4", "lora_alpha=32", *pads)]
    gc.collect()
    cells += [check_rebo(folder, *(f"worker.actor.{word}" for word in pads))]
    trained = folder / "rebo" / "checkpoints" / "global_step_2" / "actor" / "huggingface"
    return [*cells, check_evaluation(folder, trained if trained.is_dir() else folder / "padded" / "epoch_1")]


def _say(cells: list[str]) -> None:
    sys.stdout.write("|".join(cells) + "\n")
    sys.stdout.flush()


def main(families: list[str]) -> int:
    logging.basicConfig(level=logging.WARNING)
    bad = 0
    _say(["", " family ", *(f" {column} " for column in COLUMNS), ""])
    for family in families or FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            cells = check(family, Path(folder))
        bad += any(cell.startswith(("NO", "exit 1")) for cell in cells)
        _say(["", f" {family} ", *(f" {cell} " for cell in cells), ""])
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
