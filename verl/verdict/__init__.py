"""What a response is: one name for it, which rewards, validation, evaluation and reports share."""

from .verdict import VERDICTS, Verdict, final_answer, told, verdict_of

__all__ = ["VERDICTS", "Verdict", "final_answer", "told", "verdict_of"]
