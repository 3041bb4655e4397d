"""Which processes belong to a driver, by hand-made tables; that they end is tried in the integration tests."""

import os

import pytest
import torch.distributed as dist

from RS.models import build
from verl.utils.orphans import grown, processes

DRIVER = 10


def test_descendants_belong_to_a_driver_while_it_lives_and_after_it_has_gone():
    now = {1: (0, "a"), 10: (1, "b"), 11: (10, "c"), 12: (11, "d"), 13: (12, "e"), 20: (1, "f"), 21: (20, "g")}
    family = grown(set(), now, DRIVER)
    assert family == {(11, "c"), (12, "d"), (13, "e")}
    # The driver and the process between have gone; 12 was handed to init and has started another.
    later = {1: (0, "a"), 12: (1, "d"), 13: (12, "e"), 14: (12, "h"), 20: (1, "f"), 21: (20, "g")}
    assert grown(family, later) == {(12, "d"), (13, "e"), (14, "h")}
    assert grown(family, {1: (0, "a"), 20: (1, "f")}) == set()


def test_a_process_that_got_a_dead_ones_id_is_a_stranger_and_so_are_its_children():
    family = {(11, "c"), (12, "d")}
    assert grown(family, {10: (1, "x"), 15: (10, "x"), 11: (1, "x"), 16: (11, "x"), 12: (1, "d")}) == {(12, "d")}


def test_this_process_is_no_member_of_its_parents_family():
    me, parent = os.getpid(), os.getppid()
    now = processes()
    assert now[me][0] == parent and now[me][1].isdigit()
    assert me not in {pid for pid, _ in grown(set(), now, parent)}


@pytest.mark.parametrize("launcher", ["torchrun", None])
def test_a_rank_of_torchrun_ends_with_it(launcher, monkeypatch):
    bound = []
    monkeypatch.setattr(build, "end_with_parent", lambda: bound.append(True))
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    if launcher:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    build.start_distributed()
    dist.destroy_process_group()
    assert bool(bound) == bool(launcher)
