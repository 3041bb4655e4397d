"""Fixtures of the evaluator's tests."""

from pathlib import Path

import pytest

from tests.character_model import tiny_model, tokenizer


@pytest.fixture
def folder(tmp_path) -> Path:
    """A Hugging Face folder of the character model."""
    path = tmp_path / "model"
    tiny_model().save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path
