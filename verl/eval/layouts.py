"""The columns of each kind of table: what is shown, where its number lives in results.json, and what it means."""

from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal["rule", "rwku", "muse", "ablation", "comparison"]


@dataclass(frozen=True)
class Column:
    """One column: where its number lives in results.json, and what it is called in the published CSV files."""

    key: str
    group: str
    label: str
    part: str = ""
    """Empty: the number is not measured by the evaluator (token shares, differences)."""
    metric: str = ""
    better: Literal["lower", "higher", "zero", ""] = ""
    digits: int = 1
    """Decimals that tables print."""


def _probes(prefix: str, group: str, part: str, columns: str, better: Literal["lower", "higher"]) -> tuple[Column, ...]:
    """A column a kind of probe, then both kinds of "All"."""
    single = [Column(f"{prefix}_{c}", group, c.upper(), part, c, better) for c in columns.split()]
    return (
        *single,
        Column(f"{prefix}_all", group, "All (macro)", part, "all_macro", better),
        Column(f"{prefix}_all_probe", group, "All (probe)", part, "all_probe", better),
    )


def _rates(prefix: str, group: str, part: str, refusal: Literal["lower", "higher"]) -> tuple[Column, ...]:
    containment: Literal["lower", "higher"] = "lower" if refusal == "higher" else "higher"
    return (
        Column(f"{prefix}_refusal", group, "Refused", part, "all_macro/refusal_rate", refusal),
        Column(f"{prefix}_containment", group, "Contained", part, "all_macro/containment", containment),
    )


_FORGET = _probes("forget", "Forget", "forget", "fb qa aa", "lower") + _rates("forget", "Forget", "forget", "higher")
_RETAIN = _probes("retain", "Retain", "neighbor", "fb qa", "higher") + _rates("retain", "Retain", "neighbor", "lower")
_NEIGHBOR = _probes("neighbor", "Neighbor", "neighbor", "fb qa", "higher")
_UTILITY = Column("utility", "Utility", "Recall", "utility", "utility", "higher")
_NATURALNESS = tuple(
    Column(f"nat_{name}", "Naturalness", name.title(), "naturalness", name, "higher")
    for name in ("readability", "helpfulness", "truthfulness", "all")
)

_VERDICTS = tuple(
    Column(f"forget_{name}", "Forget", label, "forget", f"all_macro/{metric}")
    for name, label, metric in (
        ("mixed", "Mixed", "mixed_rate"),
        ("deflection", "Evaded", "deflection_rate"),
        ("degenerate", "Degenerate", "degenerate_rate"),
    )
)
_COMES_BACK = tuple(
    Column(f"back_{kind}", "Comes back", label, better="lower")
    for kind, label in (
        ("most", "Most"),
        ("relearn", "Relearned"),
        ("few_shot", "Few-shot"),
        ("system_prompt", "System prompt"),
        ("refusal_prefix", "Benign rows"),
        ("int8", "8 bits"),
        ("int4", "4 bits"),
    )
)

TOKEN_SHARES = {"forget_tokens_pct": "forget", "boundary_tokens_pct": "boundary"}
"""Column to side of results.json's ``training``: what is known of the rows that a checkpoint was trained on."""

SUITES: dict[Kind, tuple[str, ...]] = dict.fromkeys(("rule", "rwku", "ablation", "comparison"), ("rwku", "atlas"))
SUITES["muse"] = ("muse",)
"""The suites that measure a table's columns."""

PAPERS: dict[str, str] = {
    "rule_rwku_table1.csv": "Meta-Llama-3-8B-Instruct",
    "rwku_llama3_8b_instruct.csv": "Meta-Llama-3-8B-Instruct",
    "muse_llama2_7b.csv": "MUSE-{corpus}_target",
    "open_unlearning_muse.csv": "MUSE-{corpus}_target",
}
"""File of published figures (data/paper) to the model that they were measured on."""

LAYOUTS: dict[Kind, tuple[Column, ...]] = {
    "rule": (
        Column("forget_tokens_pct", "Tokens %", "Forget", digits=2),
        Column("boundary_tokens_pct", "Tokens %", "Boundary", digits=2),
        *_FORGET,
        *_NATURALNESS,
        *_RETAIN,
        _UTILITY,
    ),
    "rwku": (
        *_probes("forget", "Forget", "forget", "fb qa aa", "lower"),
        *_NEIGHBOR,
        Column("mia_fm", "MIA", "FM", "mia", "fm_loss", "higher"),
        Column("mia_rm", "MIA", "RM", "mia", "rm_loss", "lower"),
        Column("mmlu", "Utility", "MMLU", "mmlu", "accuracy", "higher"),
        Column("bbh", "Utility", "BBH", "bbh", "exact_match", "higher"),
        Column("truthfulqa", "Utility", "TruthfulQA MC1", "truthfulqa", "mc1", "higher"),
        Column("truthfulqa_mc2", "Utility", "TruthfulQA MC2", "truthfulqa", "mc2", "higher"),
        Column("triviaqa", "Utility", "TriviaQA F1", "triviaqa", "f1", "higher"),
        Column("triviaqa_em", "Utility", "TriviaQA EM", "triviaqa", "exact_match", "higher"),
        Column("fluency", "Utility", "Fluency", "fluency", "entropy", "higher"),
        _UTILITY,
    ),
    "muse": (
        Column("verbmem_f", "Forget", "VerbMem", "verbmem", "f1", "lower"),
        Column("knowmem_f", "Forget", "KnowMem", "knowmem_forget", "f1", "lower"),
        Column("privleak", "Privacy", "PrivLeak", "privleak", "privleak", "zero"),
        Column("auc", "Privacy", "AUC", "privleak", "auc", digits=3),
        Column("utilpres_knowmem_r", "Retain", "KnowMem", "knowmem_retain", "f1", "higher"),
    ),
    "ablation": (*_FORGET, *_RETAIN, _UTILITY),
    "comparison": (
        *(column for column in _FORGET if column.metric != "all_probe"),
        *_VERDICTS,
        *(replace(column, group="Neighbor") for column in _RETAIN if column.metric != "all_probe"),
        _UTILITY,
        Column("triviaqa", "Utility", "TriviaQA F1", "triviaqa", "f1", "higher"),
        Column("mmlu", "Utility", "MMLU", "mmlu", "accuracy", "higher"),
        Column("fluency", "Utility", "Fluency", "fluency", "entropy", "higher"),
        *_COMES_BACK,
        Column("answers_es", "Answers", "Extraction", "memorization", "answers_es", "lower"),
        Column("answers_em", "Answers", "Memorized", "memorization", "answers_em", "lower"),
        Column("passages_es", "Passages", "Extraction", "memorization", "passages_es", "lower"),
        Column("passages_em", "Passages", "Memorized", "memorization", "passages_em", "lower"),
        Column("forget_tokens_pct", "Tokens %", "Forget", digits=2),
        Column("boundary_tokens_pct", "Tokens %", "Boundary", digits=2),
        Column("seconds", "Training", "s", better="lower"),
        Column("peak_gib", "Training", "GiB", better="lower"),
    ),
}

_RULE_DEFINITIONS = (
    "Forget, Retain: ROUGE-L recall in percent (Retain: RWKU's neighbor probes). All (macro): mean of the columns, "
    "which RULE prints; All (probe): mean over probes. Refused, Contained: share of answers that refuse, or that hold "
    "the gold answer (macro means)."
)
DEFINITIONS: dict[Kind, str] = {
    "rule": f"{_RULE_DEFINITIONS} Tokens %: words of the rows that trained, in percent of the full corpora.",
    "rwku": "Forget, Neighbor: ROUGE-L recall in percent. All (macro): mean of the columns; All (probe): mean over "
    "probes, the kind of weighting RWKU prints. MIA: LOSS times 100. BBH: exact match of the whole answer (RWKU's own "
    "compares characters). EM: exact match.",
    "muse": "VerbMem, KnowMem: ROUGE-L F1 in percent. PrivLeak: relative difference in percent to the "
    "retrained model's AUC by Min-K%, 0 is best.",
    "comparison": "Forget, Neighbor, Utility: ROUGE-L recall in percent; All (macro): mean of the columns. Refused, "
    "Contained: share of answers that refuse, or that hold the gold answer (macro means). Mixed, Evaded, Degenerate: "
    "shares of forget answers that decline and tell, that evade, that are no language. Comes back: recall of forget "
    "probes under attack, the strongest of each kind's budgets, and the most of all; where an attack trains on texts, "
    "of the answers that these do not tell. Extraction, Memorized: extraction strength and exact memorisation "
    "(docs/evaluation.md). Training: seconds of the optimiser's steps of the chosen try and of what it starts from, "
    "and the most memory of a rank.",
    "ablation": f"{_RULE_DEFINITIONS} Differences are paired by target.",
}
