"""The stages of synthesis, each a batch of requests whose answers are checked row by row.

questions -> cloze of each -> neighbor question of each -> the neighbor's answer confirmed -> cloze of each neighbor.
A stage keeps what passes `data.common.checks` and counts the rest by reason. Nothing here remembers answers: the chat
does, so running the stages again asks only what has no answer yet.
"""

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from data.common.checks import REASONS, RowChecker, answer_problem, answers_agree, tidy
from verl.utils.errors import DataError

from .chat import Chat
from .prompts import Prompts
from .replies import read_objects

logger = logging.getLogger(__name__)

ATTEMPTS = 2
"""How often a cloze or a neighbor is asked for before the question goes without."""
MAX_UNANSWERED = 0.1
"""Share of a stage's requests that may stay without an answer before the run stops, to be resumed."""
KNOWN_QUESTIONS = 40
"""Questions shown to the model as already asked."""


@dataclass
class Item:
    """A question with its answer and, later, its cloze. ``subject`` is whom it is about."""

    subject: str
    question: str
    answer: str
    cloze: str | None = None


@dataclass
class Fact:
    """A forget question and the neighbor question written from it."""

    forget: Item
    neighbor: Item | None = None


@dataclass
class Tally:
    """Rows kept, and rows dropped by reason, per stage; with the first text dropped for each reason."""

    kept: Counter[str] = field(default_factory=Counter)
    dropped: dict[str, Counter[str]] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    def take(self, stage: str, problem: str | None, text: str) -> bool:
        """Count one row; True where it is kept."""
        if problem is None:
            self.kept[stage] += 1
            return True
        self.dropped.setdefault(stage, Counter())[problem] += 1
        self.examples.setdefault(f"{stage}/{problem}", text[:300])
        return False

    def summary(self) -> str:
        lines = []
        for stage in sorted(self.kept.keys() | self.dropped.keys()):
            reasons = ", ".join(f"{reason} {n}" for reason, n in self.dropped.get(stage, Counter()).most_common())
            lines.append(f"{stage}: {self.kept[stage]} kept" + (f"; dropped: {reasons}" if reasons else ""))
        return "\n".join(lines)


@dataclass
class Synthesis:
    """One target's run through the stages.

    Args:
        writer: model that writes, sampled at some temperature.
        examiner: model that answers neighbor questions without context, greedily; usually the same one.
    """

    introduction: str
    writer: Chat
    examiner: Chat
    prompts: Prompts
    checker: RowChecker
    tally: Tally = field(default_factory=Tally)

    @property
    def target(self) -> str:
        return self.checker.target.name

    def facts(self, num_questions: int, per_request: int, rounds: int) -> list[Fact]:
        """Run every stage.

        Raises:
            DataError: no usable forget question came of it, or too many requests got no answer.
        """
        facts = [Fact(item) for item in self._questions(num_questions, per_request, rounds)]
        if not facts:
            raise DataError(
                f"{self.writer.model} wrote no usable question about {self.target}.\n{self.tally.summary()}"
            )
        self._clozes("forget_cloze", [fact.forget for fact in facts])
        problems: dict[str, str] = {}
        for _ in range(ATTEMPTS):
            self._neighbors([fact for fact in facts if fact.neighbor is None], problems)
        self._clozes("neighbor_cloze", [fact.neighbor for fact in facts if fact.neighbor is not None])
        return facts

    def _questions(self, wanted: int, per_request: int, rounds: int) -> list[Item]:
        items: list[Item] = []
        batch = 0
        for _ in range(rounds):
            count = math.ceil((wanted - len(items)) / per_request)
            known = "\n".join(f"- {item.question}" for item in items[-KNOWN_QUESTIONS:]) or "(none yet)"
            fields = [
                {
                    "target": self.target,
                    "intro": self.introduction,
                    "count": str(per_request),
                    "batch": str(number),
                    "theme": self.prompts.themes[number % len(self.prompts.themes)],
                    "known": known,
                }
                for number in range(batch, batch + count)
            ]
            batch += count
            before = len(items)
            for reply in self._ask(self.writer, "questions", fields, "forget_question"):
                items += self._accept_questions(reply)
            if len(items) >= wanted or len(items) == before:
                break
        return items[:wanted]

    def _accept_questions(self, reply: str) -> list[Item]:
        rows = read_objects(reply, ("question", "answer"))
        if not rows:
            self.tally.take("forget_question", _unreadable(reply), reply)
        accepted = []
        for row in rows:
            problem = self.checker.forget_question(row["question"], row["answer"])
            if self.tally.take("forget_question", problem, f"{row['question']} -> {row['answer']}"):
                accepted.append(Item(self.target, row["question"], row["answer"]))
        return accepted

    def _clozes(self, stage: str, items: Sequence[Item]) -> None:
        check = self.checker.forget_cloze if stage == "forget_cloze" else self.checker.neighbor_cloze
        problems: dict[str, str] = {}
        for _ in range(ATTEMPTS):
            open_items = [item for item in items if item.cloze is None]
            fields = [{"question": item.question, "answer": item.answer} for item in open_items]
            replies = self._ask(self.writer, "cloze", fields, stage, problems)
            for item, reply in zip(open_items, replies, strict=True):
                rows = read_objects(reply, ("cloze",))
                cloze = tidy(rows[0]["cloze"]) if rows else ""
                problem = check(cloze, item.answer) if rows else _unreadable(reply)
                if self.tally.take(stage, problem, cloze or reply):
                    item.cloze = cloze
                else:
                    problems[item.question] = problem

    def _neighbors(self, facts: list[Fact], problems: dict[str, str]) -> None:
        """Give each fact a neighbor, or say in ``problems`` (by the fact's question) why it has none."""
        shared = {"target": self.target, "intro": self.introduction}
        fields = [{**shared, "question": fact.forget.question} for fact in facts]
        candidates: list[tuple[Fact, Item]] = []
        replies = self._ask(self.writer, "neighbor", fields, "neighbor_question", problems)
        for fact, reply in zip(facts, replies, strict=True):
            rows = read_objects(reply, ("subject", "question", "answer"))
            item = Item(**rows[0]) if rows else None
            problem = self.checker.neighbor_question(**rows[0]) if rows else _unreadable(reply)
            if item is not None and problem is None:
                candidates.append((fact, item))
            else:
                self.tally.take("neighbor_question", problem, f"{item.question} -> {item.answer}" if item else reply)
                problems[fact.forget.question] = problem
        self._confirm(candidates, problems)

    def _confirm(self, candidates: list[tuple[Fact, Item]], problems: dict[str, str]) -> None:
        """Keep the neighbors whose answer the examiner gives as well when it sees the question alone."""
        fields = [{"question": item.question} for _, item in candidates]
        replies = self._ask(self.examiner, "verify", fields, "neighbor_answer")
        for (fact, item), reply in zip(candidates, replies, strict=True):
            rows = read_objects(reply, ("answer",))
            given = rows[0]["answer"] if rows else ""
            agree = answer_problem(given) is None and answers_agree(item.answer, given)
            shown = f"{item.question} -> {item.answer}; asked again: {given or reply}"
            if self.tally.take("neighbor_question", None if agree else "answer_not_confirmed", shown):
                fact.neighbor = item
            else:
                problems[fact.forget.question] = "answer_not_confirmed"

    def _ask(
        self,
        chat: Chat,
        prompt: str,
        fields: Sequence[dict[str, str]],
        stage: str,
        problems: dict[str, str] | None = None,
    ) -> list[str]:
        """Replies to one prompt filled in several ways, "" where there was none.

        Args:
            problems: reason by question, for those whose earlier reply was dropped; the model is told, so that it does
                not write the same again.
        """
        if not fields:
            return []
        told = {question: REASONS[reason] for question, reason in (problems or {}).items() if reason != "no_answer"}
        conversations = [self.prompts.messages(prompt, told.get(each.get("question", "")), **each) for each in fields]
        replies = chat.ask_all(conversations, desc=stage)
        unanswered = sum(reply is None for reply in replies)
        if unanswered > MAX_UNANSWERED * len(replies):
            raise DataError(
                f"{chat.model}: {unanswered} of {len(replies)} requests of the stage {stage} got no answer; the others "
                "are kept, so run again to ask only those"
            )
        return [reply or "" for reply in replies]


def _unreadable(reply: str) -> str:
    return "malformed" if reply.strip() else "no_answer"


def ask_aliases(chat: Chat, prompts: Prompts, target: str, introduction: str) -> list[str]:
    """Other names of the target, as the model knows them.

    A name has at most five words, at least three letters and a capital or digit in front. What the introduction has
    as an ordinary word ("author") is no name.
    """
    reply = chat.ask_all([prompts.messages("aliases", target=target, intro=introduction)], desc="aliases")[0] or ""
    ordinary = {word for word in introduction.split() if word.islower()}
    names = [row["alias"] for row in read_objects(reply, ("alias",))]
    return [
        name
        for name in dict.fromkeys(names)
        if len(name) >= 3
        and len(name.split()) <= 5
        and (name[0].isupper() or name[0].isdigit())
        and name.casefold() not in ordinary
    ]
