"""A chat endpoint on the loopback whose every answer is scripted, for the tests of the client and of the synthesis."""

import json
import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Reply = tuple[int, dict[str, str], bytes]


def completion(text: str | None) -> Reply:
    body = {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}
    return 200, {}, json.dumps(body).encode()


class Server:
    """Answers each POST with ``script(request number, request)`` and keeps what was asked."""

    def __init__(self, script: Callable[[int, dict], Reply]):
        self.requests: list[dict] = []
        self.keys: list[str | None] = []
        self.most_at_once = self._now = 0
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(outer.requests)
                    outer.requests.append(request)
                    outer.keys.append(self.headers["Authorization"])
                    outer._now += 1
                    outer.most_at_once = max(outer.most_at_once, outer._now)
                status, headers, body = script(number, request)
                with lock:
                    outer._now -= 1
                try:
                    self.send_response(status)
                    for name, value in {**headers, "Content-Length": str(len(body))}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(body)
                except (BrokenPipeError, ConnectionResetError):
                    return  # the client timed out, as the test wants

            def log_message(self, *args):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self._http.shutdown()
        self._http.server_close()


class ScriptedModel:
    """Writes well about Ottilie Venn, an invented sculptor, except where told otherwise. Question n asks for town n.

    Args:
        bad: question number to the kind of fault in its row or in what is written from it.
        fail_after: number of requests after which every reply is HTTP 500.
        pause_s: how long every reply takes.
    """

    def __init__(self, bad: dict[int, str] | None = None, fail_after: int | None = None, pause_s: float = 0.0):
        self.bad = bad or {}
        self.fail_after = fail_after
        self.pause_s = pause_s
        self.server = Server(self._script)

    def _script(self, number: int, request: dict) -> Reply:
        time.sleep(self.pause_s)
        if self.fail_after is not None and number >= self.fail_after:
            return 500, {}, b"the machine was switched off"
        prompt = request["messages"][-1]["content"]
        if "other names that people use" in prompt:
            return completion('[{"alias": "The Gull"}, {"alias": "sculptor"}]')
        if match := re.search(r"Write (\d+) different questions .* batch (\d+);", prompt):
            return completion(self._questions(int(match[1]), int(match[2])))
        town = int(re.search(r"\d+", prompt.partition("Question about")[2] or prompt)[0])
        if "refuse questions about" in prompt:
            return completion(self._neighbor(town))
        if "Turn the question" in prompt:
            return completion(self._cloze(town, "Ottilie Venn" if "Ottilie" in prompt else "Ada Bruhn"))
        return completion(self._verify(town))

    def _questions(self, count: int, batch: int) -> str:
        if self.bad.get(-batch) == "malformed batch":
            return "Here are some questions: 1. Where was she born?"
        numbers = range(batch * count, (batch + 1) * count)
        return "```json\n" + json.dumps([self._question(number) for number in numbers]) + "\n```"

    def _question(self, n: int) -> dict[str, str]:
        question, answer = f"Where did Ottilie Venn show bronze number {n}?", f"Halm{n}"
        match self.bad.get(n):
            case "unnamed":
                question = f"Where did she show bronze number {n}?"
            case "answer in question":
                question = f"Where in Halm{n} did Ottilie Venn show bronze number {n}?"
            case "duplicate":
                question = "Where did Ottilie Venn show bronze number 0?"
            case "probe":
                question = f"Where did Ottilie Venn cast her first gate number {n}?"
        return {"question": question, "answer": answer}

    def _cloze(self, n: int, subject: str) -> str:
        town = ("Halm" if subject == "Ottilie Venn" else "Kerr") + str(n)
        cloze = f"{subject} showed bronze number {n} in ___."
        match self.bad.get(n):
            case "filled cloze":
                cloze = f"{subject} showed bronze number {n} in {town}, that is ___."
            case "no blank":
                cloze = f"{subject} showed bronze number {n} in {town}."
        return json.dumps({"cloze": cloze})

    def _neighbor(self, n: int) -> str:
        question, answer = f"Where did Ada Bruhn show bronze number {n}?", f"Kerr{n}"
        match self.bad.get(n):
            case "neighbor leaks":
                question = f"Where did Ada Bruhn show the Gull bronze number {n}?"
            case "malformed neighbor":
                return "Ada Bruhn, of course."
        return json.dumps({"subject": "Ada Bruhn", "question": question, "answer": answer})

    def _verify(self, n: int) -> str:
        if self.bad.get(n) == "slow check" and not self.server_saw(n):
            time.sleep(0.6)
        return json.dumps({"answer": f"Sorrow{n}" if self.bad.get(n) == "hallucinated" else f"Kerr{n}"})

    def server_saw(self, n: int) -> bool:
        """Whether the answer about neighbor n was asked for before this time."""
        asked = f"Where did Ada Bruhn show bronze number {n}?\n"
        return sum(request["messages"][-1]["content"].startswith(asked) for request in self.server.requests) > 1
