"""Families of models through RS, as plain transformers has them: one here, all by tests/check_families.py."""

import os

import pytest

from tests.check_families import check_rs, make_model, write_rows

FAMILIES = os.environ.get("RULE_FAMILIES", "gemma3_multimodal").split(",")
"""the one whose language model is a nested part, among towers that no text reaches"""


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_trained_saved_and_reopened(family, tmp_path):
    (tmp_path / "model").mkdir()
    make_model(family, tmp_path / "model")
    write_rows(tmp_path)
    assert check_rs(tmp_path, "packed") == "yes"
    assert check_rs(tmp_path, "padded", "padding_free=false") == "yes"
    assert check_rs(tmp_path, "lora", "lora_rank=4", "lora_alpha=32") == "yes"
    for name in ("processor_config.json", "preprocessor_config.json") if family == "gemma3_multimodal" else ():
        assert (tmp_path / "packed" / "epoch_1" / name).read_text() == (tmp_path / "model" / name).read_text()
