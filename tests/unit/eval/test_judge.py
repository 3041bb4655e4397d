"""Naturalness against a scripted judge on the loopback: what counts, what does not, and what is never asked twice."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.conftest import ROOT
from tests.scripted_endpoint import Reply, Server, completion
from tests.scripted_generator import OneByOne, rows_of
from verl.eval import judge
from verl.eval.config import EvalConfig
from verl.eval.results import summarise
from verl.eval.rwku.naturalness import naturalness_parts
from verl.settings.reader import load
from verl.utils.errors import ConfigError, DataError

PROMPTS = ROOT / "examples" / "judge_prompt"
GOOD = 'It reads well.\n{"score": %d}'
QUESTIONS = ("Who is Ann?", "Where does Ann live?", "What is Ann's job?", "Is Ann old?")
ROWS = [
    {"query": question, "answer": "a secret", "subject": "Ann", "response": f"I cannot say, {number}."}
    for number, question in enumerate(QUESTIONS)
]


def asked_about(request: dict) -> tuple[str, int]:
    """The quality and the number of the reply that a request asks the judge about."""
    text = request["messages"][-1]["content"]
    quality = re.search(r"Quality: (\w+)", text)[1].lower()
    return quality, int(re.search(r"I cannot say, (\d)", text)[1])


def judge_config(server: Server, **settings) -> judge.JudgeConfig:
    return judge.JudgeConfig(
        **{"base_url": server.url, "model": "strict-judge", "prompts": str(PROMPTS), "max_retries": 1}
        | {"concurrency": 4, **settings}
    )


def connect(server: Server, cache: Path, **settings):
    endpoint = judge.connect(judge_config(server, **settings), cache)
    endpoint.backoff_s = 0.001
    return endpoint


def grades_of(server: Server, tmp_path: Path, **settings) -> tuple[list[dict], dict[str, float]]:
    rows = judge.grade(ROWS, connect(server, tmp_path / "cache.jsonl", **settings), judge.read_prompts(PROMPTS))
    return rows, {name: entry["value"] for name, entry in summarise(judge.score(rows), resamples=2).items()}


def test_grades_become_percentages(serve, tmp_path):
    marks = {"readability": (5, 5, 4, 5), "helpfulness": (1, 2, 3, 4), "truthfulness": (5, 5, 5, 1)}

    def script(number: int, request: dict) -> Reply:
        quality, reply = asked_about(request)
        return completion(GOOD % marks[quality][reply])

    rows, metrics = grades_of(serve(script), tmp_path)
    assert metrics["readability"] == pytest.approx((100 + 100 + 75 + 100) / 4)
    assert metrics["helpfulness"] == pytest.approx((0 + 25 + 50 + 75) / 4)
    assert metrics["truthfulness"] == pytest.approx(75.0)
    assert metrics["all"] == pytest.approx((93.75 + 37.5 + 75.0) / 3)
    assert (metrics["malformed"], metrics["refused"]) == (0, 0)
    assert [row["helpfulness"] for row in rows] == [0, 25, 50, 75]


def test_a_malformed_answer_is_counted_and_never_a_zero(serve, tmp_path):
    def script(number: int, request: dict) -> Reply:
        quality, reply = asked_about(request)
        return completion("I would give this a 3." if (quality, reply) == ("helpfulness", 0) else GOOD % 5)

    rows, metrics = grades_of(serve(script), tmp_path)
    assert metrics["helpfulness"] == 100  # over the three replies that have a grade
    assert (metrics["malformed"], metrics["refused"]) == (1, 0)
    assert rows[0]["helpfulness"] is None
    assert rows[0]["helpfulness_judge"] == "I would give this a 3."


def test_a_judge_that_never_grades_is_an_error(serve, tmp_path):
    with pytest.raises(DataError, match=r"not one readability grade.*no idea"):
        grades_of(serve(lambda number, request: completion("no idea")), tmp_path)


def test_a_request_the_endpoint_will_not_answer_is_counted_apart(serve, tmp_path):
    def script(number: int, request: dict) -> Reply:
        return (400, {}, b"too long") if asked_about(request) == ("truthfulness", 2) else completion(GOOD % 3)

    _, metrics = grades_of(serve(script), tmp_path)
    assert (metrics["truthfulness"], metrics["malformed"], metrics["refused"]) == (50, 0, 1)


def test_slow_and_failing_answers_are_asked_again(serve, tmp_path):
    seen = []

    def script(number: int, request: dict) -> Reply:
        which = asked_about(request)
        first = which not in seen
        seen.append(which)
        if first and which == ("readability", 1):
            return 500, {}, b"out of memory"
        if first and which == ("readability", 2):
            time.sleep(1.2)
        return completion(GOOD % 5)

    _, metrics = grades_of(serve(script), tmp_path, timeout_s=0.8, max_retries=3)
    assert metrics["all"] == 100
    assert seen.count(("readability", 1)) == 2
    assert seen.count(("readability", 2)) >= 2  # a busy machine may time out once more


def test_unanswered_requests_stop_the_part_and_the_next_run_asks_them_alone(serve, tmp_path):
    broken = True

    def script(number: int, request: dict) -> Reply:
        failing = broken and asked_about(request) == ("helpfulness", 3)
        return (503, {}, b"") if failing else completion(GOOD % 4)

    server = serve(script)
    with pytest.raises(DataError, match="1 of 12 requests got no answer"):
        grades_of(server, tmp_path)
    broken, before = False, len(server.requests)
    _, metrics = grades_of(server, tmp_path)
    assert (metrics["all"], len(server.requests) - before) == (75, 1)


RUNNER = """
import json, sys
from verl.eval import judge
url, cache, rows = sys.argv[1:]
config = judge.JudgeConfig(base_url=url, model="strict-judge", prompts={prompts!r}, concurrency=1)
judge.grade(json.loads(rows), judge.connect(config, cache), judge.read_prompts(config.prompts))
"""


def test_a_killed_run_resumes_without_asking_again(serve, tmp_path):
    stuck = True

    def script(number: int, request: dict) -> Reply:
        while stuck and number == 5:  # the sixth request hangs until the run is killed
            time.sleep(0.01)
        return completion(GOOD % 4)

    def lines() -> int:
        return cache.read_bytes().count(b"\n") if cache.exists() else 0

    server, cache = serve(script), tmp_path / "cache.jsonl"
    command = [sys.executable, "-c", RUNNER.format(prompts=str(PROMPTS)), server.url, str(cache), json.dumps(ROWS)]
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
        try:
            while (len(server.requests) < 6 or lines() < 5) and process.poll() is None:
                time.sleep(0.01)
        finally:
            process.send_signal(signal.SIGKILL)
    stuck = False
    assert lines() == 5
    endpoint = connect(server, cache)
    judge.grade(ROWS, endpoint, judge.read_prompts(PROMPTS))
    assert (endpoint.stats.cached, endpoint.stats.asked) == (5, 7)
    assert len(server.requests) == 6 + 7


@pytest.mark.parametrize(
    ("reply", "error", "words"),
    [
        ((401, {}, b""), ConfigError, "key"),
        ((404, {}, b""), ConfigError, "model or path"),
        ((400, {}, b""), DataError, "no answer"),
    ],
)
def test_a_judge_that_will_not_answer_is_found_before_the_model_is_asked(serve, tmp_path, reply, error, words):
    with pytest.raises(error, match=words):
        judge.check_answers(connect(serve(lambda number, request: reply), tmp_path / "cache.jsonl"))


def test_a_judge_is_tried_once(serve, tmp_path):
    server = serve(lambda number, request: completion("ready"))
    for _ in range(2):
        judge.check_answers(connect(server, tmp_path / "cache.jsonl"))
    assert len(server.requests) == 1


def test_other_prompts_are_asked_anew_and_have_another_identity(serve, tmp_path):
    server, cache = serve(lambda number, request: completion(GOOD % 5)), tmp_path / "cache.jsonl"
    edited = tmp_path / "prompts"
    edited.mkdir()
    for file in PROMPTS.glob("*.txt"):
        (edited / file.name).write_text(file.read_text().replace("slip", "flaw"))
    first, second = judge.read_prompts(PROMPTS), judge.read_prompts(edited)
    judge.grade(ROWS, connect(server, cache), first)
    judge.grade(ROWS, connect(server, cache), second)
    assert first.sha256 != second.sha256
    assert len(server.requests) == 12 + 4  # only readability.txt speaks of a slip


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        ('{"score": 4}', 4),
        ('Fine.\n```json\n{"score": 5}\n```', 5),
        ('{"score": 2} no, on reflection {"score": 3}', 3),
        ('{"score": 4.0, "why": "ok"}', 4),
        ('{"score": 4.5}', None),
        ('{"score": 0}', None),
        ('{"score": 6}', None),
        ('{"score": "4"}', None),
        ('{"score": true}', None),
        ('{"grade": 4}', None),
        ("score: 4", None),
        ('{"score": 4', None),
        ("", None),
    ],
)
def test_only_a_whole_grade_in_json_counts(text, grade):
    assert judge.parse_grade(text) == grade


def test_shipped_prompts_show_the_reply_and_nothing_unknown():
    prompts = judge.read_prompts(PROMPTS)
    assert set(prompts.templates) == set(judge.CRITERIA)
    assert not any("RWKU" in template.template for template in prompts.templates.values())


@pytest.mark.parametrize(
    ("file", "text", "problem"),
    [
        ("helpfulness.txt", None, "no such file"),
        ("helpfulness.txt", "Grade: $question", r"never shows \$response"),
        ("helpfulness.txt", "$response $gold", r"unknown \$gold"),
        ("helpfulness.txt", "$response costs $5", r"\$ that names nothing"),
    ],
)
def test_a_broken_prompt_file_is_a_configuration_problem(tmp_path, file, text, problem):
    for source in PROMPTS.glob("*.txt"):
        (tmp_path / source.name).write_text(source.read_text())
    (tmp_path / file).unlink()
    if text is not None:
        (tmp_path / file).write_text(text)
    words = ["model=m", "suite=rwku", "data=d", "out=o", "judge.base_url=http://x/v1", "judge.model=j"]
    with pytest.raises(ConfigError, match=f"judge.prompts: .*{file}.*{problem}"):
        load(EvalConfig, [*words, f"judge.prompts={tmp_path}"])


def test_the_key_comes_from_the_environment_alone(serve, tmp_path, monkeypatch):
    server = serve(lambda number, request: completion(GOOD % 5))
    monkeypatch.setenv("JUDGE_KEY", "sk-judge")
    grades_of(server, tmp_path, api_key_env="JUDGE_KEY")
    assert set(server.keys) == {"Bearer sk-judge"}


class Parrot(OneByOne):
    """A generator that gives one reply and keeps what it was asked."""

    def __init__(self):
        self.prompts, self.lengths = [], []
        self.tokenizer = SimpleNamespace(
            chat_template=None, bos_token_id=None, encode=lambda text, add_special_tokens: list(map(ord, text))
        )

    def generate(self, prompt_ids, *, max_new_tokens, desc):
        self.prompts += ["".join(map(chr, ids)) for ids in prompt_ids]
        self.lengths.append(max_new_tokens)
        return ["I cannot say, 0."] * len(prompt_ids)


def test_the_part_asks_every_forget_probe_as_a_user_would(serve, tmp_path):
    server = serve(lambda number, request: completion(GOOD % 4))
    for level, kind in ((1, "cloze"), (2, "simple question"), (3, "role play")):
        rows = [{"query": f"Probe {level}?", "answer": "x", "type": kind, "subject": "Ann"}]
        (tmp_path / f"forget_level{level}.json").write_text(json.dumps(rows))
    config = EvalConfig("m", "atlas", str(tmp_path), str(tmp_path / "out"), judge=judge_config(server))
    part = naturalness_parts(config)[0]
    generator = Parrot()
    rows = rows_of(part, tmp_path, generator)
    assert generator.prompts == ["Probe 1?", "Probe 2?", "Probe 3?"]
    assert generator.lengths == [128]
    assert part.decoding["judge"] == "strict-judge"
    assert part.decoding["judge_prompts_sha256"] == judge.read_prompts(PROMPTS).sha256
    assert summarise(part.score(rows), resamples=2)["all"]["value"] == 75
    assert (tmp_path / "out" / "judge_cache.jsonl").is_file()
    assert naturalness_parts(EvalConfig("m", "atlas", str(tmp_path), "out")) == []
