"""What a device can do: known GPUs by their driver's names, and the CPU measured."""

import re
import time
from dataclasses import dataclass

import torch

CPU_BANDWIDTH = 10e9


@dataclass(frozen=True)
class Device:
    """A GPU. Figures are the vendor's, dense, without sparsity."""

    flops: float
    """bf16 (V100: fp16) operations a second"""
    bandwidth: float
    """bytes a second of its memory"""
    link: float
    """bytes a second to a neighbour in the same machine, one way: NVLink, else PCIe"""


DEVICES = {
    "B200": Device(2250e12, 8.0e12, 900e9),
    "GB200": Device(2500e12, 8.0e12, 900e9),
    "GH200": Device(989.5e12, 4.0e12, 450e9),
    "H200": Device(989.5e12, 4.8e12, 450e9),
    "H100 PCIe": Device(756e12, 2.0e12, 64e9),
    "H100 NVL": Device(835e12, 3.9e12, 300e9),
    "H100": Device(989.5e12, 3.35e12, 450e9),
    "H800": Device(989.5e12, 3.35e12, 200e9),
    "H20": Device(148e12, 4.0e12, 450e9),
    "A100": Device(312e12, 2.0e12, 300e9),
    "A800": Device(312e12, 2.0e12, 200e9),
    "A40": Device(149.7e12, 0.696e12, 32e9),
    "A10": Device(125e12, 0.6e12, 32e9),
    "L40S": Device(362e12, 0.864e12, 32e9),
    "L40": Device(181e12, 0.864e12, 32e9),
    "L20": Device(119.5e12, 0.864e12, 32e9),
    "L4": Device(121e12, 0.3e12, 32e9),
    "V100": Device(125e12, 0.9e12, 150e9),
    "RTX A6000": Device(154.8e12, 0.768e12, 32e9),
    "RTX 3090": Device(71e12, 0.936e12, 32e9),
    "RTX 4090": Device(165.2e12, 1.008e12, 32e9),
    "RTX 5090": Device(209.5e12, 1.792e12, 64e9),
}


def find_device(name: str) -> Device | None:
    """The device that a driver calls ``name``, such as ``NVIDIA H20`` or ``NVIDIA A100-SXM4-80GB``; None if unknown.

    Whole words count, so that an H200 is no H20; the entry with the most words wins (``H100 PCIe`` before ``H100``).
    """
    words = set(re.split(r"[^A-Z0-9]+", name.upper()))
    fitting = [entry for entry in DEVICES if set(entry.upper().split()) <= words]
    return DEVICES[max(fitting, key=lambda entry: len(entry.split()))] if fitting else None


def device_peak_flops(name: str | None = None) -> float | None:
    """Peak bf16 operations a second of the device ``name``, or of this process's GPU; None where it is not known."""
    if name is None:
        if not torch.cuda.is_available():
            return None
        name = torch.cuda.get_device_name()
    device = find_device(name)
    return device.flops if device else None


@dataclass(frozen=True)
class Hardware:
    """What a rank runs on."""

    name: str
    memory: int | None
    """bytes of the GPU; None on a CPU"""
    flops: float
    """peak operations a second of a rank"""
    bandwidth: float
    link: float
    """bytes a second to other ranks of the machine"""

    @classmethod
    def gpu(cls, name: str, memory: int) -> "Hardware":
        """A GPU by its driver's name.

        Raises:
            ValueError: its speed is not known.
        """
        device: Device | None = find_device(name)
        if device is None:
            raise ValueError(f"the speed of {name} is not known; add it to DEVICES in verl/estimate/hardware.py")
        return cls(name, memory, device.flops, device.bandwidth, device.link)

    @classmethod
    def named(cls, words: str) -> "Hardware":
        """The GPU that ``trainer.dry_run_gpu`` names, such as ``H100:80``: its driver's name and its GB.

        Raises:
            ValueError: it is worded otherwise, or its speed is not known.
        """
        name, _, size = words.rpartition(":")
        if not name or not size.isdigit():
            raise ValueError(f"trainer.dry_run_gpu={words}: give name:GB, such as H100:80")
        return cls.gpu(name, int(size) * 10**9)

    @classmethod
    def here(cls, dtype: str) -> "Hardware":
        """This machine's GPU, or its CPU with the speed of a matrix product in ``dtype``, measured."""
        if torch.cuda.is_available():
            return cls.gpu(torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory)
        kind = torch.bfloat16 if dtype == "bf16" else torch.float32
        seconds = _product_seconds(192, kind)  # which is slow where bf16 is emulated
        size, seconds = (768, _product_seconds(768, kind)) if seconds < 0.005 else (192, seconds)
        return cls("this machine's CPU", None, 2 * size**3 / seconds, CPU_BANDWIDTH, CPU_BANDWIDTH)


def _product_seconds(size: int, kind: torch.dtype) -> float:
    """The shortest of three products of square matrices."""
    matrix, seconds = torch.ones(size, size, dtype=kind), []
    for _ in range(3):
        start = time.perf_counter()
        matrix @ matrix
        seconds.append(time.perf_counter() - start)
    return min(seconds)
