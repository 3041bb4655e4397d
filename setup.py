"""Packaging: installs ``verl`` and ``RS`` from this checkout; ``requirements.txt`` is the list of dependencies."""

from pathlib import Path

from setuptools import find_namespace_packages, setup

ROOT = Path(__file__).parent


def requirements(name: str) -> list[str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


setup(
    name="rule-unlearning",
    version="0.1.0",
    description="Reinforcement unlearning: teach a chat model when to refuse",
    license="MIT",
    python_requires=">=3.11",
    packages=find_namespace_packages(include=["verl", "verl.*", "RS", "RS.*"], exclude=["RS.configs*", "RS.scripts*"]),
    package_data={"verl.eval": ["prompts.yaml", "html/*"]},
    install_requires=requirements("requirements.txt"),
    extras_require={"flash-attn": ["flash-attn>=2.8"], "dev": requirements("requirements-dev.txt")},
)
