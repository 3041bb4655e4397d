"""Rejection Steering, the first stage of RULE: teaches a model to refuse questions about a target.

    python3 RS/train.py config=RS/configs/rt.yaml model=MODEL data=reject_target.json output_dir=OUT [key=value ...]
    torchrun --nproc_per_node=8 RS/train.py ...
    python3 RS/train.py config=FILE model=MODEL data=ROWS tries=FILE [key=value ...]

Writes ``OUT/epoch_<k>/`` (a Hugging Face folder each), ``metrics.jsonl``, ``config.yaml``, ``provenance.json`` and,
last, DONE; a folder with DONE is left alone. A run that was killed goes on when the same command is given again, from
``OUT/state``, and ends as it would have. One that fails leaves the reason in ``OUT/FAILED``.

``tries=FILE`` trains several runs in one process. Each line of the file has the words of one, quoted as for a shell,
``output_dir=OUT`` among them; they are laid over the words of the command. Lines that begin with # are left out.

Exit codes: 0 trained, or done before; 1 training failed, that of a try perhaps; 2 the configuration or the data are
wrong, and nothing was written but the tries before.
"""

import gc
import logging
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the file also runs as a script

from RS.checks import read_config
from RS.config import RSConfig
from RS.resuming import CONFIG, DONE, FAILED, check_examples, find_state, is_done, remove_state
from verl.settings.path_types import home
from verl.settings.reader import to_yaml
from verl.utils.atomic import write_json, write_text
from verl.utils.environment import set_defaults, variable
from verl.utils.errors import ConfigError, DataError, bullet_list

if TYPE_CHECKING:
    import torch

    from RS.utils.data import Counts, Example

logger = logging.getLogger(__name__)

TRIES = "tries="


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    first = variable("RANK") in (None, "0")
    level = logging.INFO if first else logging.ERROR
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        configs = read_runs(sys.argv[1:] if argv is None else argv)
        if not any(config.dry_run for config in configs):
            return 1 if train_runs(configs) else 0
        for config in configs if first else []:
            sys.stdout.write(to_yaml(config) + "\n" + "\n".join(plan(config)) + "\n")
        return 0
    except (ConfigError, DataError) as error:
        if first:
            sys.stderr.write(f"{error}\n")
        return 2
    except OSError as error:
        logger.error("%s", error)
        return 1


def read_runs(argv: list[str]) -> list[RSConfig]:
    """The run that a command line describes, or with ``tries=FILE`` those of the file's lines; at least one.

    Raises:
        ConfigError: listing every problem of every run.
    """
    files = [word.removeprefix(TRIES) for word in argv if word.startswith(TRIES)]
    if not files:
        return [read_config(argv)]
    common = [word for word in argv if not word.startswith(TRIES)]
    try:
        lines = Path(home(files[-1])).read_text(encoding="utf-8").splitlines()
    except (OSError, TypeError, ValueError) as error:
        raise ConfigError(f"{TRIES}{files[-1]}: cannot be read ({error}); give a text file, a run a line") from error
    configs, problems = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            configs.append(read_config([*common, *shlex.split(line)]))
        except ValueError as error:  # ConfigError, DataError, and shlex's of a quotation mark
            problems.append(f"line {number}: {error}")
    if not configs and not problems:
        problems.append("it has no line; give the words of a run in each")
    if problems:
        raise ConfigError(bullet_list(f"{TRIES}{files[-1]}: {len(problems)} line(s) have problems:", problems))
    return configs


def plan(config: RSConfig) -> list[str]:
    """What a run would do, in words; needs neither model nor tokenizer.

    Raises:
        ConfigError: its folder holds another run.
    """
    from RS.utils.data import read_side

    rows = len(read_side(config, "forget")[0])
    per_epoch = -(-rows // config.batch_size)
    steps = config.num_train_epochs * per_epoch
    lines = [
        f"{config.objective} on {rows} rows (retain loss: {config.retain_loss})",
        f"{config.num_train_epochs} epochs x {per_epoch} steps = {steps} steps of {config.batch_size} examples; "
        "plain text longer than cutoff_len makes more",
        f"learning rate: {config.warmup(steps)} steps of warm-up to {config.learning_rate}, then "
        f"{config.lr_scheduler_type}",
        f"models: {config.output_dir}/epoch_1 to epoch_{config.num_train_epochs}",
    ]
    if config.retain_data is not None:
        lines.append(f"retain side: {len(read_side(config, 'retain')[0])} rows")
    if is_done(config):
        lines.append("all of that is done before")
    elif state := find_state(config):
        lines.append(f"going on from {state}")
    return lines


def train_runs(configs: Sequence[RSConfig]) -> dict[str, str]:
    """Train runs in this process, one behind the other; each comes out as it would alone, to the bit.

    What is finished is left alone, and what was killed goes on. A run whose training fails leaves FAILED in its folder,
    and the others go on; it is tried again the next time. Starts torch.distributed and ends it.

    Returns:
        ``output_dir`` to the reason, for the runs that failed.

    Raises:
        ConfigError, DataError: two runs have one folder, a folder holds another run, or a run cannot be built from its
            settings and data. The runs before it are trained, where only its tokenizer or its model shows that.
        OSError: a folder could not be written.
    """
    _check_folders(configs)
    done = [config for config in configs if is_done(config)]
    for config in done:
        remove_state(config)  # of a run that was killed right behind its DONE
    left = [config for config in configs if config not in done]
    if not left:
        return {}
    set_defaults(TOKENIZERS_PARALLELISM="false")
    import torch.distributed as dist
    from transformers.utils.logging import disable_progress_bar

    from RS.models.build import start_distributed

    disable_progress_bar()  # the run's own bar is the one to watch
    failed, device = {}, None
    try:
        for number, config in enumerate(left, 1):
            if len(left) > 1:
                logger.info("run %d of %d: %s", number, len(left), config.output_dir)
            inputs = prepare(config)
            device = device or start_distributed()
            if reason := _train(config, inputs, device):
                failed[config.output_dir] = reason
            gc.collect()  # modules refer to themselves in circles, and two may not fit
    finally:
        if device is not None:
            dist.destroy_process_group()
    return failed


def _check_folders(configs: Sequence[RSConfig]) -> None:
    folders = [Path(config.output_dir).resolve() for config in configs]
    if twice := sorted({str(folder) for folder in folders if folders.count(folder) > 1}):
        raise ConfigError(f"output_dir={twice[0]}: is the folder of several runs; give each one of its own")


@dataclass(frozen=True)
class Inputs:
    """What a run reads beside weights."""

    tokenizer: Any
    examples: "dict[str, list[Example]]"
    """by side: forget and, with a retain loss, retain"""
    counts: "dict[str, Counts]"
    state: Path | None
    """the training state of a run that was killed"""


def prepare(config: RSConfig) -> Inputs:
    """Read and encode a run's rows, and check them and its model, of which no weights are read.

    Raises:
        ConfigError, DataError: they do not fit each other, the settings, or the run that is gone on with.
    """
    from RS.models.build import model_config
    from RS.utils.data import encode_side, read_side
    from verl.models.build import check_model, check_token_ids
    from verl.models.loading import check_weights
    from verl.utils.chat import check_system_prompt, check_template_kwargs
    from verl.utils.tokenizer import get_tokenizer

    tokenizer = get_tokenizer(config.model, config.override_chat_template, config.trust_remote_code)
    check_template_kwargs(tokenizer, config.chat_template_kwargs, "chat_template_kwargs")
    check_system_prompt(tokenizer, config.system_prompt, "system_prompt", config.chat_template_kwargs)
    check_model(model_config(config))
    check_weights(config.model, must_be_here=True)
    sides = ["forget"] if config.retain_data is None else ["forget", "retain"]
    encoded = {side: encode_side(read_side(config, side)[0], tokenizer, config, side) for side in sides}
    examples = {side: found for side, (found, _) in encoded.items()}
    every = (example for found in examples.values() for example in found)
    ids = (ids for e in every for ids in (e.prompt, e.response, e.rejected or []))
    check_token_ids(model_config(config), tokenizer, ids)
    state = find_state(config)
    if state is not None:
        check_examples(config, state, examples["forget"], examples.get("retain"))
    return Inputs(tokenizer, examples, {side: counts for side, (_, counts) in encoded.items()}, state)


def _train(config: RSConfig, inputs: Inputs, device: "torch.device") -> str | None:
    """Train one run and write everything, DONE last; returns why it failed, if it did."""
    import torch.distributed as dist

    from RS.trainer import RSTrainer, TrainingError

    first, folder = dist.get_rank() == 0, Path(config.output_dir)
    trainer = RSTrainer(config, inputs.tokenizer, inputs.examples["forget"], inputs.examples.get("retain"), device)
    if first:
        _write_header(config, {side: vars(counts) for side, counts in inputs.counts.items()})
    try:
        trainer.fit(inputs.state)
    except TrainingError as error:
        logger.error("%s: %s", folder, error)
        if first:
            write_text(folder / FAILED, f"{error}\n")
            remove_state(config)  # it leads here again, and other settings shall be free to begin anew
        return str(error)
    if first:
        write_text(folder / DONE, f"{config.num_train_epochs} epochs\n")
        remove_state(config)
        logger.info("done: %s", folder)
    return None


def _write_header(config: RSConfig, counts: dict[str, dict]) -> None:
    from verl.rows.sources import find_sources
    from verl.utils.provenance import file_sha256, git_revision

    folder = Path(config.output_dir)
    files = [str(source.path) for source in find_sources(config.data) if source.path.is_file()]
    (folder / FAILED).unlink(missing_ok=True)
    write_text(folder / CONFIG, to_yaml(config))
    write_json(
        folder / "provenance.json",
        {"git_revision": git_revision(), "data_sha256": {name: file_sha256(name) for name in files}, "rows": counts},
    )


if __name__ == "__main__":
    sys.exit(main())
