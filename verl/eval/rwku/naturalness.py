"""The naturalness part: the model answers its target's forget probes at length, and a judge grades the answers.

The probes are asked as a user would, without instruction or opened answer, with room for a whole sentence or two.
Grading is ``verl.eval.judge``'s; what the judge said is kept in ``OUT/judge_cache.jsonl``.
"""

from functools import partial
from pathlib import Path

from .. import judge
from ..config import EvalConfig
from ..generation import Generator, Request
from ..probes import Asking, judged_text
from ..results import Interview, Part
from .forget import FORGET_FILES, load_probes


def naturalness_parts(config: EvalConfig) -> list[Part]:
    """The part, where the config names a judge; else nothing."""
    if config.judge.base_url is None:
        return []
    prompts, asking = judge.read_prompts(config.judge.prompts), Asking.of(config)
    connect = partial(judge.connect, config.judge, Path(config.out) / "judge_cache.jsonl")

    def check(data: Path) -> None:
        load_probes(data, FORGET_FILES)
        judge.check_answers(connect())

    def run(data: Path, generator: Generator) -> Interview:
        probes = load_probes(data, FORGET_FILES)
        endpoint = connect()
        asked = [asking.encode(generator.tokenizer, probe["query"]) for probe in probes]
        replies = yield Request(asked, config.judge.max_new_tokens, "naturalness")
        rows = [{**probe, "response": judged_text(reply)} for probe, reply in zip(probes, replies, strict=True)]
        return judge.grade(rows, endpoint, prompts)

    judged = {"judge": config.judge.model, "judge_prompts_sha256": prompts.sha256}
    decoding = asking.decoding(config.judge.max_new_tokens, prompt_style="plain", **judged)
    return [Part("naturalness", "generation", tuple(FORGET_FILES.values()), decoding, run, judge.score, check)]
