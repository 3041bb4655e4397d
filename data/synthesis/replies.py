"""Reads the JSON out of a model's reply, whatever stands around it."""

import json
import re
from typing import Any

_THINKING = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_DECODER = json.JSONDecoder()


def read_objects(reply: str, keys: tuple[str, ...]) -> list[dict[str, str]]:
    """The JSON objects of a reply that have a non-empty text under each of ``keys``; only those keys are kept.

    Reasoning in ``<think>`` tags, code fences and prose are passed over; a list that was cut off yields the objects
    that came before the cut. An empty list means that the reply is malformed.
    """
    text = _THINKING.sub("", reply)
    found: list[dict[str, str]] = []
    position = text.find("{")
    while position != -1:
        try:
            value, end = _DECODER.raw_decode(text, position)
        except ValueError:
            value, end = None, position + 1
        if isinstance(value, dict) and all(_is_text(value.get(key)) for key in keys):
            found.append({key: value[key].strip() for key in keys})
        elif value is not None:
            end = position + 1  # the objects may be inside this one
        position = text.find("{", end)
    return found


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
