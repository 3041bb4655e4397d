"""``python3 -m verl.compare.measure FILE``: the evaluations that a JSON file lists, in one process and on one engine.

The evaluator's own command asks all its models alike; here each may have a system prompt and a target of its own.
"""

import json
import logging
import sys
from pathlib import Path

from verl.eval.config import EvalConfig
from verl.eval.main import evaluate_all
from verl.settings.cli import TIMED
from verl.settings.reader import load
from verl.utils.errors import ConfigError, DataError

from .plan import as_words


def main(argv: list[str]) -> int:
    """Exit code: 0, or 2 where one of them cannot be measured."""
    logging.basicConfig(level=logging.INFO, format=TIMED)
    try:
        settings = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
        evaluate_all([load(EvalConfig, as_words(one)) for one in settings])
    except (ConfigError, DataError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
