"""Settings of the MUSE suite. Light: the evaluator's config imports it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from verl.settings.path_types import PathText

PromptStyle = Literal["raw", "chat"]


@dataclass(frozen=True)
class MuseConfig:
    """Section ``muse`` of the evaluator's config."""

    prompt_style: PromptStyle | None = None
    """How VerbMem and KnowMem prompts reach the model. ``raw``: BOS and the text, as MUSE does for its base models;
    ``chat``: the user's turn, few-shot examples as earlier exchanges. null means: VerbMem raw, since it asks for a
    continuation; KnowMem as chat where the tokenizer has a chat template. PrivLeak always scores raw text."""
    min_k: float = 0.4
    """Share of least likely tokens behind PrivLeak's Min-K%; MUSE's table has 40 %."""
    auc_retrain: float | None = None
    """Forget-against-holdout AUC of the model retrained without the forget set, 0 to 1 (data/paper/muse_auc_retrain.csv
    has the published ones). Without it or retrain_model, PrivLeak's AUC is reported and PrivLeak is not."""
    retrain_model: PathText | None = None
    """Hugging Face folder of the retrained model, to measure that AUC in the same way instead."""

    def problems(self) -> list[str]:
        found = []
        if not 0 < self.min_k <= 1:
            found.append(f"min_k={self.min_k}: must be in (0, 1]; MUSE uses 0.4")
        if self.auc_retrain is not None and not 0 < self.auc_retrain <= 1:
            found.append(f"auc_retrain={self.auc_retrain}: must be in (0, 1]; give the AUC as a fraction")
        if self.auc_retrain is not None and self.retrain_model is not None:
            found.append("auc_retrain and retrain_model: exclude each other; keep the one that you trust")
        if self.retrain_model is not None and not Path(self.retrain_model).is_dir():
            found.append(f"retrain_model={self.retrain_model}: there is no such folder; give a Hugging Face folder")
        return found
