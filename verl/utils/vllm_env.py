"""vLLM's import, with the settings that it must find before: those of the CPU build, and one process per rank."""

import gc
import importlib
import inspect
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from .environment import set_defaults


def has_accelerator() -> bool:
    """True where vLLM and FSDP will run on a CUDA device."""
    return torch.cuda.is_available()


def load(*, log_stats: bool = False) -> ModuleType:
    """Import vLLM, in the environment that it must find; a variable that the user set stays as it is.

    The engine runs inside the worker process (no multiprocessing), so that it can read the trainer's weights. On CPU
    the threads are left unbound: binding would pin every rank of one machine to the same cores.

    Args:
        log_stats: let vLLM log at the level of its engine's statistics. Only the first call in a process decides.
    """
    # Its warnings tell of every weight sync that it leaves the rotary embedding as it is, and the like.
    set_defaults(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_LOGGING_LEVEL="INFO" if log_stats else "ERROR")
    if has_accelerator():
        # FlashInfer's sampler takes neither seeds nor greedy requests, and we have no others: it is not even imported.
        set_defaults(VLLM_USE_FLASHINFER_SAMPLER="0")
    else:
        set_defaults(VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind")  # the former in GiB
        # Even an eager engine compiles one small function of its sampler, which takes seconds and a C++ compiler.
        torch.compiler.set_stance("force_eager")
    if "vllm.entrypoints.llm" not in sys.modules:
        # The import makes a million objects that never die. The garbage collector would look through them again and
        # again, and so would vLLM, which collects several times while it starts.
        gc.disable()
        try:
            importlib.import_module("vllm.entrypoints.llm")  # what ``vllm.LLM`` would import later
            gc.freeze()
        finally:
            gc.enable()
    return sys.modules["vllm"]


def name_cpu_shared_memory(run: str) -> None:
    """Let the tensor-parallel ranks of this run meet in shared memory of their own.

    Under an external launcher vLLM's CPU build names it alike in every run, so that a second one on the same machine
    fails (errno 17), and so does one after a run that was killed.
    """
    from vllm.distributed.device_communicators.cpu_communicator import _CPUSHMDistributed

    plain = _CPUSHMDistributed.make_group_name
    _CPUSHMDistributed.make_group_name = staticmethod(lambda group: f"{run}-{plain(group).replace('/', '')}")


def drop_cpu_shared_memory(run: str) -> None:
    """Unlink that memory, which vLLM never does; it stays valid for those who have met there."""
    for path in Path("/dev/shm").glob(f"{run}-*-cpushm*"):
        path.unlink(missing_ok=True)


def repack_head(model: torch.nn.Module) -> None:
    """Renew the packed copy that CPU kernels make of an output head: a reload misses it where the head shares the
    embedding's weights, and the head would stay the old model's."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in model.modules():
        if isinstance(module, ParallelLMHead) and module.weight.numel():
            module.quant_method.process_weights_after_loading(module)


def count_no_ranks(worker: Any) -> None:
    """Let the CPU's sampler call the rank of a sampled token in the vocabulary 0, where nothing but its log-probability
    is asked for. Nobody reads the rank, and vLLM compares the whole vocabulary with every token to count it."""
    from vllm.v1.outputs import LogprobsTensors

    sampler = getattr(worker.model_runner, "sampler", None)
    if not hasattr(sampler, "gather_logprobs"):  # another vLLM's
        return
    plain = sampler.gather_logprobs

    def gather(logprobs: torch.Tensor, num_logprobs: int, token_ids: torch.Tensor) -> LogprobsTensors:
        if num_logprobs:
            return plain(logprobs, num_logprobs, token_ids)
        column = token_ids[:, None]
        return LogprobsTensors(column.to(torch.int32), logprobs.gather(1, column), torch.zeros_like(token_ids))

    sampler.gather_logprobs = gather


def load_through_adapters() -> None:
    """Let layers with adapters take the weights of the layers that they wrap. vLLM 0.32's do, 0.26's do not."""
    from vllm.lora.layers import BaseLayerWithLoRA
    from vllm.model_executor.models.utils import AutoWeightsLoader

    def load_weights(self: Any, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterable[str]:
        loader = self.base_layer if hasattr(self.base_layer, "load_weights") else AutoWeightsLoader(self.base_layer)
        return loader.load_weights(weights)

    if not hasattr(BaseLayerWithLoRA, "load_weights"):
        BaseLayerWithLoRA.load_weights = load_weights


def note_what_is_loaded(model: Any) -> None:
    """Let an engine's model keep what its ``load_weights`` says it loaded."""
    plain = model.load_weights

    def load_weights(weights: Iterable[tuple[str, torch.Tensor]]) -> set[str] | None:
        model.last_loaded = plain(weights)
        return model.last_loaded

    model.load_weights = load_weights


def refusal(error: ValueError) -> str:
    """Why vLLM does not start, in one line, without pydantic's list of all that it was given."""
    return " ".join(str(error).partition("[type=")[0].split())


def take_classes_apart(model: torch.nn.Module) -> None:
    """Give the engine's model classes of its own where vLLM has changed transformers'.

    Of models that vLLM has no code for, it runs transformers', and lets ``support_torch_compile`` change the class in
    place. Every other model of that class in this process, the trainer's too, would fail in its next pass.
    """
    if "vllm.model_executor.models.transformers" not in sys.modules:
        return
    from vllm.compilation.wrapper import TorchCompileWithNoGuardsWrapper as Wrapper

    changed = {type(part) for part in model.modules() if Wrapper in type(part).__bases__}
    for plain in (kind for kind in changed if not kind.__module__.startswith("vllm.")):
        names = {"__init__", "__call__", "save_aot_compiled_function"} & vars(plain).keys()
        own = {name: vars(plain)[name] for name in names}
        before = inspect.getclosurevars(own["__init__"]).nonlocals["old_init"]
        compiled = type(plain.__name__, (plain, Wrapper), own)
        plain.__bases__ = tuple(base for base in plain.__bases__ if base is not Wrapper)
        for name in names:
            delattr(plain, name)
        plain.__init__ = before
        for part in model.modules():
            if type(part) is plain:
                part.__class__ = compiled
