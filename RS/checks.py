"""What of an RS run can be wrong beside its settings: the paths that they name and the rows in them.

What needs a tokenizer (how long the rows are) is ``RS.utils.data``'s.
"""

from pathlib import Path

from RS.config import RSConfig
from RS.utils.data import read_side
from verl.settings.path_types import folder_problem
from verl.settings.reader import load
from verl.utils.errors import DataError


def read_config(argv: list[str]) -> RSConfig:
    """The run that a command line describes, checked as a whole and against the files that it names.

    Raises:
        ConfigError: listing every problem, a line each.
    """
    return load(RSConfig, argv, checks=(_path_problems, _row_problems))


def _path_problems(config: RSConfig) -> list[str]:
    found = []
    for key in ("model", "reinforced_model"):
        if (name := getattr(config, key)) is None:
            continue
        hub_like = name.count("/") == 1 and not name.startswith((".", "/", "~"))
        if not (Path(name) / "config.json").is_file() and (Path(name).exists() or not hub_like):
            found.append(f"{key}={name}: holds no config.json; give a Hugging Face folder or a hub id")
    if config.override_chat_template and config.override_chat_template.endswith(".jinja"):
        template = Path(config.override_chat_template)
        if not template.is_file():
            found.append(f"override_chat_template={template}: there is no such file; give a .jinja file")
    if reason := folder_problem(Path(config.output_dir)):
        found.append(f"output_dir={config.output_dir}: {reason}")
    return found


def _row_problems(config: RSConfig) -> list[str]:
    found = []
    for key, side in (("data", "forget"), ("retain_data", "retain")):
        if getattr(config, key) is None:
            continue
        try:
            texts, problems = read_side(config, side)
        except DataError as error:
            found.append(f"{key}={error}")
            continue
        found += [f"{key}: {problem}" for problem in problems]
        steps = config.num_train_epochs * -(-len(texts) // max(config.batch_size, 1))
        if side == "forget" and texts and config.warmup_steps is not None and config.warmup_steps >= steps:
            found.append(
                f"warmup_steps={config.warmup_steps}: the run has only about {steps} steps ({len(texts)} rows, "
                f"batch_size={config.batch_size}, num_train_epochs={config.num_train_epochs}), so learning_rate "
                "would never be reached; set fewer, or warmup_steps=null warmup_ratio=0.1"
            )
    return found
