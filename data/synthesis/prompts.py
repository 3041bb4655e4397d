"""The prompts that the writing model gets, read from editable text files (``data/prompts/``)."""

from dataclasses import dataclass
from pathlib import Path
from string import Template

from verl.eval.endpoint import Messages
from verl.rows.files import read_text
from verl.utils.errors import ConfigError, bullet_list

PROMPTS = Path(__file__).resolve().parents[1] / "prompts"
PLACEHOLDERS: dict[str, tuple[str, ...]] = {
    "aliases": ("target", "intro"),
    "questions": ("target", "intro", "count", "batch", "theme", "known"),
    "cloze": ("question", "answer"),
    "neighbor": ("target", "intro", "question"),
    "verify": ("question",),
    "retry": ("problem",),
}
"""What each prompt file may say with a dollar sign, and must say at least once but for ``intro`` and ``known``."""
_MAY_BE_LEFT_OUT = {"intro", "known"}


@dataclass(frozen=True)
class Prompts:
    system: str
    templates: dict[str, Template]
    themes: list[str]

    @classmethod
    def load(cls, folder: str | Path = PROMPTS) -> "Prompts":
        """Read every prompt file.

        Raises:
            ConfigError: a file is missing, or has a placeholder too many or too few; all such files are named.
        """
        folder = Path(folder)
        names = [*PLACEHOLDERS, "system", "themes"]
        missing = [f"{folder / name}.txt: is missing" for name in names if not (folder / f"{name}.txt").is_file()]
        if missing:
            raise ConfigError(bullet_list(f"prompts={folder}: copy data/prompts and edit the copy", missing))
        texts = {name: read_text(folder / f"{name}.txt").strip() for name in names}
        templates = {name: Template(texts[name]) for name in PLACEHOLDERS}
        problems = [line for name, template in templates.items() for line in _problems(name, template, folder)]
        themes = [line.strip() for line in texts["themes"].split("\n") if line.strip()]
        if not themes:
            problems.append(f"{folder / 'themes.txt'}: needs a theme a line, at least one")
        if problems:
            raise ConfigError(bullet_list(f"prompts={folder}:", problems))
        return cls(texts["system"], templates, themes)

    def messages(self, name: str, problem: str | None = None, **fields: str) -> Messages:
        """The conversation that asks the model for ``name``; ``problem`` says what was wrong with an earlier reply."""
        user = self.templates[name].substitute(fields)
        if problem is not None:
            user += "\n\n" + self.templates["retry"].substitute(problem=problem)
        return [{"role": "system", "content": self.system}, {"role": "user", "content": user}]


def _problems(name: str, template: Template, folder: Path) -> list[str]:
    path = folder / f"{name}.txt"
    if not template.is_valid():
        return [f"{path}: has a dollar sign that starts no placeholder; write $$ for a dollar"]
    given, known = set(template.get_identifiers()), set(PLACEHOLDERS[name])
    lines = [
        f"{path}: does not know ${word}; it may say ${', $'.join(sorted(known))}" for word in sorted(given - known)
    ]
    return lines + [f"{path}: never says ${word}" for word in sorted(known - given - _MAY_BE_LEFT_OUT)]
