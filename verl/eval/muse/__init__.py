"""MUSE (arXiv 2407.06460): verbatim memorisation, knowledge memorisation and privacy leakage of a text corpus.

docs/evaluation.md defines every number. Left out: MUSE's scalability and sustainability studies, which are runs of
these parts over more corpora.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..config import EvalConfig
    from ..results import Part


def parts(config: "EvalConfig") -> "list[Part]":
    """The suite's parts in the order they are measured."""
    # The evaluator's config imports this package's config, so the parts, which import torch, are loaded when asked for.
    from ..probes import Asking
    from .memorization import knowmem_part, verbmem_part
    from .privacy import privleak_part

    asking = Asking.of(config)
    knowmem = [knowmem_part(split, config.muse, asking) for split in ("forget", "retain")]
    return [verbmem_part(config.muse, asking), *knowmem, privleak_part(config)]
