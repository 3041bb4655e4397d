"""The two errors a user can cause. Command lines catch them at the top, print the message and exit with code 2."""


class ConfigError(ValueError):
    """A setting is wrong. The message names every offending key, its value, the rule and the fix."""


class DataError(ValueError):
    """A file or a row is wrong. The message names the file, the row, the rule and the fix."""


def bullet_list(title: str, problems: list[str]) -> str:
    """Join problems into one message: the title, then a line a problem."""
    return "\n".join([title, *(f"  - {problem}" for problem in problems)])
