"""Checks the commands that a launcher would run, without starting any: ``run_rwku.sh`` with DRY_RUN=1 pipes them here.

    DRY_RUN=print bash run_rwku.sh | python3 scripts/check_commands.py

One command a line, quoted for a shell. Each is printed with what is wrong with its configuration and files, as its own
command line would report it. A model that an earlier command makes is judged by the model that one starts from.
Exit code 1 if anything is wrong. With ``--words`` the commands need not be whole: only keys and types are checked, and
what is wrong with them is written to stderr, with exit code 2. Left out: what only running shows, such as memory and
the length of prompts.
"""

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the file also runs as a script

from RS.checks import read_config as read_rs_config
from RS.config import RSConfig
from scripts.make_table import TableConfig
from verl.config.run import PPOConfig, migrate
from verl.eval.config import EvalCommand
from verl.eval.main import select_parts, targets
from verl.settings.cli import show_help
from verl.settings.reader import load, word_problems
from verl.trainer.preflight import read_config
from verl.utils.errors import ConfigError, DataError, bullet_list

MODEL_KEYS = ("model", "worker.actor.model.model_path", "worker.ref.model.model_path", "worker.critic.model.model_path")


@dataclass
class Checker:
    """Checks commands in the order in which they would run."""

    made: dict[str, str] = field(default_factory=dict)
    """Folder that an earlier command writes models into, to the model it starts from."""

    def check(self, command: str) -> list[str]:
        """What is wrong with a command, a line each."""
        words = shlex.split(command)
        check = next((check for program, check in self.programs().items() if program in words), None)
        if check is None:
            return [f"{words[0]}: is none of the commands that can be checked: {', '.join(self.programs())}"]
        arguments = [self._with_model_that_exists(word) for word in words if "=" in word and not word.startswith("-")]
        try:
            return check(arguments)
        except (ConfigError, DataError) as error:
            heading, *problems = [line.strip(" -") for line in str(error).splitlines()]
            return problems or [heading]

    def programs(self) -> dict[str, Callable[[list[str]], list[str]]]:
        return {
            "RS/train.py": self._rs,
            "verl.trainer.main": self._rebo,
            "verl.eval.main": self._evaluation,
            "scripts/make_table.py": self._table,
        }

    def _with_model_that_exists(self, word: str) -> str:
        key, _, value = word.partition("=")
        if key not in MODEL_KEYS or Path(value).exists():
            return word
        return next((f"{key}={model}" for folder, model in self.made.items() if value.startswith(f"{folder}/")), word)

    def _rs(self, arguments: list[str]) -> list[str]:
        values = _as_dict(arguments)
        self.made[values["output_dir"]] = values["model"]
        read_rs_config(arguments)
        return []

    def _rebo(self, arguments: list[str]) -> list[str]:
        values = _as_dict(arguments)
        self.made[values["trainer.run_dir"]] = values["worker.actor.model.model_path"]
        read_config([*arguments, "trainer.dry_run=true"])
        return []

    def _evaluation(self, arguments: list[str]) -> list[str]:
        return [
            f"{Path(config.data) / name}: there is no such file, which part {part.name} needs"
            for one in load(EvalCommand, arguments).each()[:1]  # all models are asked the same
            for config in targets(one)
            for part in select_parts(config)
            for name in part.files
            if not (Path(config.data) / name).is_file()
        ]

    def _table(self, arguments: list[str]) -> list[str]:
        load(TableConfig, arguments)
        return []


def check_words(command: str) -> list[str]:
    """What is wrong with a command's keys and the types of their values; what it leaves out is not looked at."""
    program, *words = shlex.split(command)
    cls, moves = {"RS/train.py": (RSConfig, None), "verl.trainer.main": (PPOConfig, migrate)}.get(
        program, (EvalCommand, None)
    )
    return [f"{program}: {problem}" for problem in word_problems(cls, words, moves)]


def _as_dict(arguments: list[str]) -> dict[str, str]:
    return dict(argument.split("=", 1) for argument in arguments)


def main(argv: Sequence[str] = ()) -> int:
    show_help(argv, __doc__)
    if "--words" in argv:
        problems = [problem for command in sys.stdin.read().splitlines() for problem in check_words(command)]
        if problems:
            sys.stderr.write(bullet_list("these settings cannot be:", problems) + "\n")
        return 2 if problems else 0
    checker, wrong = Checker(), 0
    for command in sys.stdin.read().splitlines():
        problems = checker.check(command)
        wrong += bool(problems)
        print(command)
        print("\n".join(f"    PROBLEM: {problem}" for problem in problems) if problems else "    ok")
    print(f"{wrong} command(s) have problems." if wrong else "All commands can run.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
