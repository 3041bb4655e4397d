"""Extraction strength and exact memorisation of what is to be forgotten, as open-unlearning defines them (2506.12618).

Of a gold answer behind its question, and of a passage behind BOS: which of its tokens are the likeliest ones after the
true tokens before them? One forward pass tells; nothing is generated. The token that ends an answer does not count.
Left out: MUSE, whose VerbMem continues passages.
"""

from functools import partial
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from verl.verdict.answers import answer_list

from ..likelihood import LikelihoodModel, encode_texts, greedy_hits
from ..probes import Asking, encode_probe, probe_decoding
from ..reading import read_rows
from ..results import Part, Row, Scores
from .forget import SHOT_FILES, load_probes
from .mia import FILES

PASSAGES = FILES["fm"]
SIDES = ("answers", "passages")


def memorization_part(asking: Asking, *, on_request: bool) -> Part:
    """ES and EM of the gold answers to FB and QA forget probes, and of the forget passages; lower is better."""
    files = (*SHOT_FILES.values(), PASSAGES)
    decoding = {**asking.facts(), "prompt_style": asking.style, "passages": "raw, behind BOS"}
    if asking.style == "rwku":
        decoding["prompts"] = probe_decoding(asking)["prompts"]
    return Part(
        "memorization",
        "likelihood",
        files,
        decoding,
        partial(run, asking=asking),
        score,
        load,
        read_passages,
        on_request,
    )


def read_passages(data: Path) -> list[Row]:
    return read_rows(data / PASSAGES, ["text"])


def load(data: Path) -> tuple[list[Row], list[Row]]:
    """Probes and passages."""
    return load_probes(data, SHOT_FILES), read_passages(data)


def run(data: Path, scorer: LikelihoodModel, asking: Asking) -> list[Row]:
    """A row a probe (the best of its accepted answers by extraction strength) and a row a passage."""
    probes, passages = load(data)
    pairs = [_answered(scorer.tokenizer, row, gold, asking) for row in probes for gold in answer_list(row["answer"])]
    texts = [scorer.fit(ids, keep="first") for ids in encode_texts(scorer.tokenizer, passages)]
    sequences = [scorer.fit(prompt + answer) for prompt, answer in pairs] + texts
    counts = [len(answer) for _, answer in pairs] + [len(ids) - 1 for ids in texts]
    hits = greedy_hits(scorer.model, sequences, counts, token_budget=scorer.token_budget, desc="memorization")
    found = map(_scores, hits)
    answered = [
        {**row, "side": "answers", **max(islice(found, len(answer_list(row["answer"]))), key=itemgetter("es", "em"))}
        for row in probes
    ]
    return answered + [{**row, "side": "passages", **scores} for row, scores in zip(passages, found, strict=True)]


def _answered(tokenizer: Any, probe: Row, answer: str, asking: Asking) -> tuple[list[int], list[int]]:
    """Token ids of the prompt and of the answer. Behind an opened "Answer:", or without turns, a blank comes first."""
    blank = " " if asking.style == "rwku" or not tokenizer.chat_template else ""
    return encode_probe(tokenizer, probe, asking), tokenizer.encode(blank + answer, add_special_tokens=False)


def _scores(hits: np.ndarray) -> dict[str, float]:
    return {"tokens": len(hits), "es": extraction_strength(hits), "em": float(hits.mean())}


def extraction_strength(hits: np.ndarray) -> float:
    """1 - k/L for the smallest k such that, given the first k of L tokens, all later ones are predicted (greedily).

    0 where not even the last token is; there open-unlearning's code, which tries no k = L, says 1/L.
    """
    misses = np.flatnonzero(~hits)
    return 1 - (misses[-1] + 1) / len(hits) if len(misses) else 1.0


def score(rows: list[Row]) -> Scores:
    """``answers_es``, ``answers_em``, ``passages_es``, ``passages_em``: means in percent."""
    sides = {side: [row for row in rows if row["side"] == side] for side in SIDES}
    return Scores({f"{side}_{key}": [100 * row[key] for row in sides[side]] for side in SIDES for key in ("es", "em")})
