"""Rejection Steering, the first stage of RULE: teaches a model to refuse questions about a target.

    python3 RS/train.py config=RS/configs/rt.yaml model=MODEL data=reject_target.json output_dir=OUT [key=value ...]
    torchrun --nproc_per_node=8 RS/train.py ...

Writes ``OUT/epoch_<k>/`` (a Hugging Face folder each), ``metrics.jsonl``, ``config.yaml``, ``provenance.json`` and,
last, DONE; a folder with DONE is left alone. Exit codes: 0 trained, or done before; 1 training failed; 2 the
configuration or the data are wrong, and nothing was written.
"""

import logging
import sys
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the file also runs as a script

from RS.checks import read_config
from RS.config import RSConfig
from verl.settings.reader import to_dict, to_yaml
from verl.utils.atomic import write_json, write_text
from verl.utils.environment import set_defaults, variable
from verl.utils.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

DONE = "DONE"


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    first = variable("RANK") in (None, "0")
    level = logging.INFO if first else logging.ERROR
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        config = read_config(sys.argv[1:] if argv is None else argv)
        if config.dry_run:
            if first:
                sys.stdout.write(to_yaml(config) + "\n" + "\n".join(plan(config)) + "\n")
            return 0
        if is_done(config):
            return 0
        return run(config)
    except (ConfigError, DataError) as error:
        if first:
            sys.stderr.write(f"{error}\n")
        return 2


def plan(config: RSConfig) -> list[str]:
    """What a run would do, in words; needs neither model nor tokenizer."""
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
    return lines


def is_done(config: RSConfig) -> bool:
    """Whether ``output_dir`` holds a finished run; says so, and which settings differ."""
    folder = Path(config.output_dir)
    if not (folder / DONE).is_file():
        return False
    logger.info("%s is finished (it has %s); nothing to do. Remove the folder to train again.", folder, DONE)
    before, now = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")), to_dict(config)
    for key in now:
        if before.get(key) != now[key]:
            logger.warning("%s was made with %s=%s, not %s", folder, key, before.get(key), now[key])
    return True


def run(config: RSConfig) -> int:
    """Train and write everything; DONE last."""
    set_defaults(TOKENIZERS_PARALLELISM="false")
    import torch.distributed as dist
    from transformers.utils.logging import disable_progress_bar

    from RS.models.build import model_config, start_distributed
    from RS.trainer import RSTrainer, TrainingError
    from RS.utils.data import encode_side, read_side
    from verl.models.build import check_model, check_token_ids
    from verl.models.loading import check_weights
    from verl.utils.chat import check_system_prompt, check_template_kwargs
    from verl.utils.tokenizer import get_tokenizer

    disable_progress_bar()  # the run's own bar is the one to watch
    tokenizer = get_tokenizer(config.model, config.override_chat_template, config.trust_remote_code)
    check_template_kwargs(tokenizer, config.chat_template_kwargs, "chat_template_kwargs")
    check_system_prompt(tokenizer, config.system_prompt, "system_prompt", config.chat_template_kwargs)
    check_model(model_config(config))
    check_weights(config.model, must_be_here=True)
    sides = ["forget"] if config.retain_data is None else ["forget", "retain"]
    encoded = {side: encode_side(read_side(config, side)[0], tokenizer, config, side) for side in sides}
    examples = [example for found, _ in encoded.values() for example in found]
    ids = (ids for e in examples for ids in (e.prompt, e.response, e.rejected or []))
    check_token_ids(model_config(config), tokenizer, ids)
    device = start_distributed()
    try:
        retain = encoded["retain"][0] if "retain" in encoded else None
        trainer = RSTrainer(config, tokenizer, encoded["forget"][0], retain, device)
        if dist.get_rank() == 0:
            _write_header(config, {side: vars(counts) for side, (_, counts) in encoded.items()})
        trainer.fit()
        if dist.get_rank() == 0:
            write_text(Path(config.output_dir) / DONE, f"{config.num_train_epochs} epochs\n")
            logger.info("done: %s", config.output_dir)
        return 0
    except (TrainingError, OSError) as error:
        logger.error("%s", error)
        return 1
    finally:
        dist.destroy_process_group()


def _write_header(config: RSConfig, counts: dict[str, dict]) -> None:
    from verl.rows.sources import find_sources
    from verl.utils.provenance import file_sha256, git_revision

    folder = Path(config.output_dir)
    files = [str(source.path) for source in find_sources(config.data) if source.path.is_file()]
    write_text(folder / "config.yaml", to_yaml(config))
    write_json(
        folder / "provenance.json",
        {"git_revision": git_revision(), "data_sha256": {name: file_sha256(name) for name in files}, "rows": counts},
    )


if __name__ == "__main__":
    sys.exit(main())
