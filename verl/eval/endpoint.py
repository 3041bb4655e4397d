"""A client for chat models behind an OpenAI-compatible endpoint: cached on disk, retried, concurrent.

Every answer is appended to a JSONL cache as soon as it arrives, under a hash of everything that shapes it (model,
sampling, messages), so a run that was killed asks only what is missing. Standard library only. Left out: streaming,
tools, and any judgement of what an answer says; a caller that cannot use an answer counts it itself.
"""

import hashlib
import http.client
import json
import logging
import random
import socket
import threading
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..utils.errors import ConfigError

logger = logging.getLogger(__name__)

Messages = list[dict[str, str]]
FATAL_STATUS = {401: "the key is refused", 403: "the key has no access", 404: "there is no such model or path"}
RETRY_STATUS = {408, 409, 425, 429}
LONGEST_PAUSE_S = 60.0
LOOPBACK = {"localhost", "127.0.0.1", "::1"}


class _Transient(Exception):
    """The request may succeed when sent again; ``pause_s`` is how long the server asked to wait."""

    def __init__(self, reason: str, pause_s: float | None = None) -> None:
        super().__init__(reason)
        self.pause_s = pause_s


class _Unreachable(_Transient):
    """Nobody listens at the address, at least for now."""


class _Refused(Exception):
    """This one request will never succeed (for example a prompt that is too long); others may."""


def request_key(model: str, sampling: dict[str, Any], messages: Messages, tag: int) -> str:
    """Hash of everything that shapes an answer."""
    identity = json.dumps([model, sampling, messages, tag], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(identity.encode()).hexdigest()


class AnswerCache:
    """Answers by request key, appended to a JSONL file one by one, so that a killed run loses none of them.

    A line that is not whole (the writer was killed) is passed over and its request asked again.
    """

    def __init__(self, path: str | Path | None) -> None:
        self._path = Path(path) if path else None
        self._answers: dict[str, str] = {}
        if self._path is None or not self._path.is_file():
            return
        for line in self._path.read_text(encoding="utf-8", errors="replace").split("\n"):
            row = _parse(line)
            if isinstance(row, dict) and isinstance(row.get("answer"), str):
                self._answers[row.get("key", "")] = row["answer"]

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def get(self, key: str) -> str | None:
        return self._answers.get(key)

    def put(self, key: str, model: str, answer: str) -> None:
        self._answers[key] = answer
        if self._path is not None:
            _append_line(self._path, {"key": key, "model": model, "answer": answer})


@dataclass
class EndpointStats:
    """How the answers came about; counts of conversations, except ``retries``, a count of requests."""

    asked: int = 0
    cached: int = 0
    failed: int = 0
    """Gave up after the retries; a later run may succeed."""
    refused: int = 0
    """The endpoint will never answer these, for example because they are too long."""
    retries: int = 0


class ChatEndpoint:
    """Chat completions of one model.

    Args:
        base_url: up to and including the version, for example ``http://localhost:8000/v1``.
        api_key: sent as a bearer token where given; never stored.
        cache: JSONL file of answers (see `AnswerCache`); None keeps them in memory only.
        concurrency: requests under way at once.
        timeout_s: seconds one request may stay silent.
        max_retries: further tries after the first, each after a doubled pause that starts at ``backoff_s`` seconds.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str | None = None,
        cache: str | Path | None = None,
        concurrency: int = 8,
        timeout_s: float = 60.0,
        max_retries: int = 5,
        backoff_s: float = 1.0,
        max_tokens: int = 512,
        temperature: float = 0.0,
    ) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise ConfigError(f"base_url={base_url!r}: must start with http:// or https://")
        self.url = base_url.rstrip("/") + "/chat/completions"
        self.model = model
        self.concurrency = concurrency
        self.timeout_s = timeout_s
        self.max_retries = max_retries
        self.backoff_s = backoff_s
        self.sampling = {"max_tokens": max_tokens, "temperature": temperature}
        self.stats = EndpointStats()
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._lock = threading.Lock()
        self._cache = AnswerCache(cache)
        host = urllib.parse.urlsplit(base_url).hostname
        # A proxy for the outside world does not reach a server on this machine.
        handlers = [urllib.request.ProxyHandler({})] if host in LOOPBACK else []
        self._opener = urllib.request.build_opener(*handlers)

    def ask_all(self, conversations: list[Messages], *, desc: str, tag: int = 0) -> list[str | None]:
        """One answer per conversation, in order; None where there is none (``stats`` counts why).

        Equal conversations are asked once. ``tag`` separates samples: another tag asks the same conversation anew.

        Raises:
            ConfigError: the endpoint refuses the key, the model or the path, or cannot be reached after all retries, so
                that no request can succeed. Answers that came before are in the cache.
        """
        keys = [request_key(self.model, self.sampling, messages, tag) for messages in conversations]
        todo = {key: m for key, m in zip(keys, conversations, strict=True) if key not in self._cache}
        self.stats.cached += sum(key in self._cache for key in keys)
        pool, stopped = ThreadPoolExecutor(max_workers=self.concurrency), threading.Event()
        futures = {pool.submit(self._ask, messages, stopped): key for key, messages in todo.items()}
        try:
            for future in tqdm(as_completed(futures), total=len(futures), desc=desc, unit="request"):
                self._keep(futures[future], future.result())
        finally:  # also on Ctrl-C: what is queued is dropped, what pauses wakes up
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
        return [self._cache.get(key) for key in keys]

    def _keep(self, key: str, answer: str | None) -> None:
        if answer is None:
            return
        self.stats.asked += 1
        self._cache.put(key, self.model, answer)

    def _ask(self, messages: Messages, stopped: threading.Event) -> str | None:
        """The answer, or None after ``max_retries`` or where the endpoint refuses this conversation for good."""
        reason: _Transient | None = None
        for attempt in range(self.max_retries + 1):
            try:
                return self._request(messages)
            except _Refused as refused:
                logger.warning("%s refuses a request: %s", self.url, refused)
                self._count("refused")
                return None
            except _Transient as transient:
                reason = transient
                pause = transient.pause_s or self.backoff_s * 2**attempt * random.uniform(0.75, 1.25)
            if attempt == self.max_retries or stopped.wait(min(pause, LONGEST_PAUSE_S)):
                break
            self._count("retries")
        if isinstance(reason, _Unreachable) and attempt == self.max_retries:
            raise ConfigError(f"{self.url} cannot be reached ({reason}): start the server or correct the address")
        logger.warning("%s gave no answer in %d tries: %s", self.url, attempt + 1, reason)
        self._count("failed")
        return None

    def _count(self, what: str) -> None:
        with self._lock:
            setattr(self.stats, what, getattr(self.stats, what) + 1)

    def _request(self, messages: Messages) -> str:
        body = json.dumps({"model": self.model, "messages": messages, **self.sampling}).encode()
        request = urllib.request.Request(self.url, data=body, headers=self._headers, method="POST")
        try:
            with self._opener.open(request, timeout=self.timeout_s) as response:
                return _content(response.read())
        except urllib.error.HTTPError as error:
            raise _sorted_out(error, self.url, self.model) from error
        except (OSError, http.client.HTTPException) as error:  # refused, reset, timed out, cut short
            cause = getattr(error, "reason", error)  # what urllib wrapped
            kind = _Unreachable if isinstance(cause, ConnectionRefusedError | socket.gaierror) else _Transient
            raise kind(f"{type(error).__name__}: {error}") from error


def _sorted_out(error: urllib.error.HTTPError, url: str, model: str) -> Exception:
    """The exception that says what to do about an HTTP error: stop, give up this request, or try again."""
    detail = error.read(500).decode("utf-8", "replace").strip()
    if error.code in FATAL_STATUS:
        return ConfigError(f"{url} (model {model!r}): HTTP {error.code}, {FATAL_STATUS[error.code]}: {detail}")
    if error.code in RETRY_STATUS or error.code >= 500:
        after = error.headers.get("Retry-After", "")
        return _Transient(f"HTTP {error.code}: {detail}", float(after) if after.isdigit() else None)
    return _Refused(f"HTTP {error.code}: {detail}")


def _content(raw: bytes) -> str:
    """The assistant's words in a completion; a body that is not a completion counts as a passing fault."""
    try:
        content = json.loads(raw)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise _Transient(f"the body is not a chat completion ({raw[:200]!r})") from error
    if not isinstance(content, str):
        raise _Transient("the completion has no text")
    # Half a character could be kept nowhere; two halves that belong together become one.
    return content.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _parse(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _append_line(path: Path, row: dict[str, str]) -> None:
    """Append one JSON line, on a line of its own even where the file ends in half a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.tell() > 0:
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
