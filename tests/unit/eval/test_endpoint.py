"""The chat client against a scripted server on the loopback: what it asks, how often, what it keeps, when it stops."""

import json
import time

import pytest

from tests.scripted_endpoint import Reply, Server, completion
from verl.eval.endpoint import ChatEndpoint
from verl.utils.errors import ConfigError


def echo(number: int, request: dict) -> Reply:
    return completion("re: " + request["messages"][-1]["content"])


def ask(*texts: str) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": text}] for text in texts]


def client(server: Server, **settings) -> ChatEndpoint:
    return ChatEndpoint(server.url, "tiny", **{"backoff_s": 0.001, "timeout_s": 5.0, **settings})


def test_answers_come_in_order_and_equal_conversations_are_asked_once(serve):
    server = serve(echo)
    endpoint = client(server, max_tokens=7, temperature=0.5)
    assert endpoint.ask_all(ask("a", "b", "a"), desc="t") == ["re: a", "re: b", "re: a"]
    assert sorted(request["messages"][0]["content"] for request in server.requests) == ["a", "b"]
    assert {(r["model"], r["max_tokens"], r["temperature"]) for r in server.requests} == {("tiny", 7, 0.5)}


def test_the_key_is_sent_and_never_written(serve, tmp_path):
    server = serve(echo)
    client(server, api_key="sk-secret", cache=tmp_path / "c.jsonl").ask_all(ask("a"), desc="t")
    assert server.keys == ["Bearer sk-secret"]
    assert "sk-secret" not in (tmp_path / "c.jsonl").read_text()
    client(server).ask_all(ask("a"), desc="t")
    assert server.keys[1] is None


def test_half_a_character_in_an_answer_does_not_stop_it_from_being_kept(serve, tmp_path):
    server = serve(lambda number, request: completion("a \ud800 b \ud83d\ude00"))
    assert client(server, cache=tmp_path / "c.jsonl").ask_all(ask("a"), desc="t") == ["a \ufffd b \U0001f600"]
    assert client(server, cache=tmp_path / "c.jsonl").ask_all(ask("a"), desc="t") == ["a \ufffd b \U0001f600"]


def test_a_second_run_asks_only_what_the_killed_one_did_not_get(serve, tmp_path):
    cache = tmp_path / "c.jsonl"
    server = serve(echo)
    client(server, cache=cache).ask_all(ask("a", "b"), desc="t")
    # The kill came in the middle of the second line.
    lines = cache.read_bytes().splitlines(keepends=True)
    cache.write_bytes(lines[0] + lines[1][: len(lines[1]) // 2])
    kept = json.loads(lines[0])["answer"]

    again = client(server, cache=cache)
    assert again.ask_all(ask("a", "b", "c"), desc="t") == ["re: a", "re: b", "re: c"]
    asked = sorted(request["messages"][0]["content"] for request in server.requests[2:])
    assert asked == sorted({"a", "b", "c"} - {kept.removeprefix("re: ")})
    assert (again.stats.cached, again.stats.asked) == (1, 2)

    whole = client(server, cache=cache)  # the half line did not spoil those after it
    whole.ask_all(ask("a", "b", "c"), desc="t")
    assert (whole.stats.cached, whole.stats.asked, len(server.requests)) == (3, 0, 4)


@pytest.mark.parametrize("change", [{"temperature": 0.7}, {"max_tokens": 9}])
def test_other_sampling_is_another_request(serve, tmp_path, change):
    server = serve(echo)
    client(server, cache=tmp_path / "c.jsonl").ask_all(ask("a"), desc="t")
    client(server, cache=tmp_path / "c.jsonl", **change).ask_all(ask("a"), desc="t")
    assert len(server.requests) == 2


def test_another_tag_draws_another_sample(serve):
    server = serve(lambda number, request: completion(str(number)))
    endpoint = client(server)
    assert endpoint.ask_all(ask("a"), desc="t") == ["0"]
    assert endpoint.ask_all(ask("a"), desc="t", tag=1) == ["1"]
    assert endpoint.ask_all(ask("a"), desc="t") == ["0"]


@pytest.mark.parametrize(
    "fault",
    [
        (503, {}, b"overloaded"),
        (429, {"Retry-After": "0"}, b"slow down"),
        (200, {}, b"<html>proxy page</html>"),
        (200, {}, b'{"choices": []}'),
        completion(None),
    ],
    ids=["503", "429", "html", "no-choices", "no-text"],
)
def test_passing_faults_are_tried_again(serve, fault):
    server = serve(lambda number, request: fault if number < 2 else completion("fine"))
    endpoint = client(server, max_retries=2)
    assert endpoint.ask_all(ask("a"), desc="t") == ["fine"]
    assert (len(server.requests), endpoint.stats.retries) == (3, 2)


def test_retry_after_is_waited_for(serve):
    server = serve(lambda number, request: (429, {"Retry-After": "1"}, b"") if number == 0 else completion("fine"))
    began = time.monotonic()
    assert client(server).ask_all(ask("a"), desc="t") == ["fine"]
    assert time.monotonic() - began >= 1.0


def test_one_conversation_without_an_answer_does_not_spoil_the_others(serve, tmp_path):
    def script(number, request):
        return (500, {}, b"") if request["messages"][0]["content"] == "bad" else echo(number, request)

    server = serve(script)
    endpoint = client(server, max_retries=1, cache=tmp_path / "c.jsonl")
    assert endpoint.ask_all(ask("a", "bad", "b"), desc="t") == ["re: a", None, "re: b"]
    assert (endpoint.stats.failed, len(server.requests)) == (1, 4)
    assert len((tmp_path / "c.jsonl").read_text().splitlines()) == 2  # a failure is not kept: it is asked again


def test_a_slow_answer_times_out_and_is_asked_again(serve):
    def script(number, request):
        if number == 0:
            time.sleep(0.5)
        return completion("late" if number == 0 else "in time")

    endpoint = client(serve(script), timeout_s=0.1)
    assert endpoint.ask_all(ask("a"), desc="t") == ["in time"]
    assert endpoint.stats.retries == 1


def test_a_request_that_can_never_succeed_is_not_retried(serve):
    server = serve(lambda number, request: (400, {}, b"prompt too long"))
    assert client(server).ask_all(ask("a"), desc="t") == [None]
    assert len(server.requests) == 1


@pytest.mark.parametrize(("status", "hint"), [(401, "key"), (403, "key"), (404, "model")])
def test_a_refused_key_or_model_stops_the_run(serve, status, hint):
    server = serve(lambda number, request: (status, {}, b"no"))
    with pytest.raises(ConfigError, match=f"(?s)tiny.*{status}.*{hint}"):
        client(server, concurrency=1).ask_all(ask(*"abcdefgh"), desc="t")
    assert len(server.requests) < 8


def test_an_address_where_nobody_listens_stops_the_run(serve):
    server = serve(echo)
    server.close()
    with pytest.raises(ConfigError, match="cannot be reached"):
        client(server, max_retries=1).ask_all(ask("a"), desc="t")


def test_no_more_requests_at_once_than_allowed(serve):
    def script(number, request):
        time.sleep(0.02)
        return completion("x")

    server = serve(script)
    client(server, concurrency=3).ask_all(ask(*"abcdefghij"), desc="t")
    assert server.most_at_once == 3


def test_a_proxy_is_not_used_for_this_machine(serve, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # the discard port: nobody answers
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert client(serve(echo), max_retries=0).ask_all(ask("a"), desc="t") == ["re: a"]


def test_an_address_without_a_scheme_is_refused():
    with pytest.raises(ConfigError, match="http"):
        ChatEndpoint("localhost:8000/v1", "tiny")
