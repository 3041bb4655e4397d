"""DataProto: what EasyR1 users rely on, and where it promises more (no pickle on disk, no silent conflict)."""

import copy
import pickle

import numpy as np
import pytest
import torch

from verl.protocol import DataProto, DataProtoItem, object_array, pad_dataproto_to_divisor, unpad_dataproto


def make(rows: int = 4) -> DataProto:
    return DataProto.from_dict(
        tensors={
            "responses": torch.arange(rows * 3).view(rows, 3),
            "old_log_probs": -torch.arange(rows * 3).view(rows, 3) / 10,
        },
        non_tensors={
            "uid": np.array([f"u{i}" for i in range(rows)], dtype=object),
            "raw_prompt_ids": object_array([list(range(i + 1)) for i in range(rows)]),
        },
        meta_info={"temperature": 1.0},
    )


def uids(data: DataProto) -> list[str]:
    return data.non_tensor_batch["uid"].tolist()


def test_equally_long_lists_stay_one_object_per_row():
    rows = np.array([[1, 2], [3, 4]], dtype=object)  # what np.array makes of two lists of one length
    data = DataProto.from_dict({"x": torch.zeros(2)}, {"raw_prompt_ids": rows, "score": np.array([0.5, 1.0])})
    assert data.non_tensor_batch["raw_prompt_ids"].shape == (2,)
    assert data.non_tensor_batch["raw_prompt_ids"][1] == [3, 4]
    longer = DataProto.from_dict({"x": torch.zeros(1)}, {"raw_prompt_ids": object_array([[5]]), "score": [2.0]})
    assert DataProto.concat([data, longer]).non_tensor_batch["raw_prompt_ids"].tolist() == [[1, 2], [3, 4], [5]]


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="disagree.*'b': 3"):
        DataProto.from_dict({"a": torch.zeros(2), "b": torch.zeros(3)})
    with pytest.raises(ValueError, match="'uid' has 3 rows, the batch has 2"):
        DataProto.from_dict({"a": torch.zeros(2)}, {"uid": ["x", "y", "z"]})
    with pytest.raises(ValueError, match="'k' is a list"):
        DataProto.from_single_dict({"k": [1]})


def test_from_single_dict_sorts_by_type():
    data = DataProto.from_single_dict({"a": torch.zeros(2, 1), "uid": np.array(["x", "y"], dtype=object)})
    assert set(data.batch.keys()) == {"a"}
    assert set(data.non_tensor_batch) == {"uid"}
    assert len(data) == 2


def test_indexing():
    data = make()
    item = data[-1]
    assert isinstance(item, DataProtoItem)
    assert item.batch["responses"].tolist() == [9, 10, 11]
    assert item.non_tensor_batch["raw_prompt_ids"] == [0, 1, 2, 3]
    mask = np.array([True, False, False, True])
    for rows, expected in (
        (slice(1, 3), ["u1", "u2"]),
        ([3, 0, 0], ["u3", "u0", "u0"]),
        (torch.tensor([2]), ["u2"]),
        (mask, ["u0", "u3"]),
        (torch.from_numpy(mask), ["u0", "u3"]),
        (mask.tolist(), ["u0", "u3"]),
        ([], []),
    ):
        part = data[rows]
        assert isinstance(part, DataProto)
        assert uids(part) == expected
        assert part.batch["responses"][:, 0].tolist() == [3 * int(uid[1]) for uid in expected]
        assert part.meta_info == {"temperature": 1.0}


def test_works_without_tensors():
    data = DataProto.from_dict(non_tensors={"uid": ["a", "b"]})
    assert len(data) == 2
    assert uids(data[[1]]) == ["b"]
    assert [uids(part) for part in data.chunk(2)] == [["a"], ["b"]]
    assert uids(DataProto.concat([data, data])) == ["a", "b", "a", "b"]
    assert len(DataProto()) == 0


def test_select_keeps_and_pop_takes():
    data = make()
    part = data.select(["responses"], ["uid"], [])
    assert set(part.batch.keys()) == {"responses"}
    assert set(part.non_tensor_batch) == {"uid"}
    assert part.meta_info == {}
    part.batch["new"] = torch.zeros(4)
    part.non_tensor_batch["new"] = part.non_tensor_batch["uid"]
    whole = data.select()
    whole.batch["new"] = torch.zeros(4)
    assert "new" not in set(data.batch.keys()) | set(data.non_tensor_batch)

    taken = data.pop(["old_log_probs"], ["raw_prompt_ids"], ["temperature"])
    assert set(taken.batch.keys()) == {"old_log_probs"}
    assert taken.meta_info == {"temperature": 1.0}
    assert set(data.batch.keys()) == {"responses"}
    assert data.meta_info == {}
    with pytest.raises(KeyError, match="nope"):
        data.pop(["responses"], ["nope"])
    assert "responses" in set(data.batch.keys()), "a failed pop removes nothing"
    with pytest.raises(KeyError):
        data.select(["nope"])


def test_union_adds_and_refuses_conflicts():
    data, more = make(), make()
    more.batch["values"] = torch.ones(4, 3)
    more.meta_info["step"] = 7
    assert data.union(more) is data
    assert data.batch["values"].sum() == 12
    assert data.meta_info == {"temperature": 1.0, "step": 7}

    for change in (
        lambda other: other.batch["responses"].add_(1),
        lambda other: other.non_tensor_batch.update(uid=object_array(["u0", "u1", "u2", "other"])),
        lambda other: other.meta_info.update(temperature=0.5),
    ):
        other = DataProto.from_dict(
            {"responses": torch.arange(12).view(4, 3), "advantages": torch.zeros(4, 3)},
            {"uid": ["u0", "u1", "u2", "u3"]},
            {"temperature": 1.0},
        )
        change(other)
        target = make()
        with pytest.raises(ValueError, match="different values for"):
            target.union(other)
        assert "advantages" not in set(target.batch.keys()), "a failed union changes nothing"
    with pytest.raises(ValueError, match="4 rows with one of 3"):
        make(4).union(make(3))


def test_repeat_reorder_chunk_split_concat():
    data = make(4)
    assert uids(data.repeat(2)) == ["u0", "u0", "u1", "u1", "u2", "u2", "u3", "u3"]
    assert uids(data.repeat(2, interleave=False)) == ["u0", "u1", "u2", "u3"] * 2
    assert data.repeat(2).batch["responses"][:, 0].tolist() == [0, 0, 3, 3, 6, 6, 9, 9]

    assert [uids(part) for part in data.chunk(2)] == [["u0", "u1"], ["u2", "u3"]]
    with pytest.raises(ValueError, match="4 rows do not divide into 3"):
        data.chunk(3)
    assert [len(part) for part in data.split(3)] == [3, 1]
    back = DataProto.concat(data.split(3))
    assert uids(back) == uids(data)
    assert torch.equal(back.batch["old_log_probs"], data.batch["old_log_probs"])

    data.reorder(torch.tensor([2, 0, 3, 1]))
    assert uids(data) == ["u2", "u0", "u3", "u1"]
    assert data.batch["responses"][:, 0].tolist() == [6, 0, 9, 3]
    with pytest.raises(ValueError, match="permutation"):
        data.reorder([0, 0, 1, 2])


def test_concat_names_what_does_not_fit():
    wider = DataProto.from_dict({"responses": torch.zeros(1, 5, dtype=torch.long)})
    with pytest.raises(ValueError, match="'responses': rows have shapes"):
        DataProto.concat([make().select(["responses"], []), wider])
    with pytest.raises(ValueError, match="old_log_probs"):
        DataProto.concat([make(), make().select(["responses"])])
    with pytest.raises(ValueError, match="nothing"):
        DataProto.concat([])


def test_parts_do_not_share_meta_info():
    data = make()
    first, second = data.chunk(2)
    first.meta_info["rank"] = 0
    assert "rank" not in second.meta_info
    assert "rank" not in data.meta_info


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 8])
def test_padding_to_a_divisor_is_undone(rows):
    data = make(rows)
    padded, added = pad_dataproto_to_divisor(data, 4)
    assert len(padded) == -(-rows // 4) * 4
    assert added == len(padded) - rows
    assert uids(padded)[rows:] == (uids(data) * 4)[:added]
    back = unpad_dataproto(padded, added)
    assert uids(back) == uids(data)
    assert torch.equal(back.batch["responses"], data.batch["responses"])


def test_an_empty_batch_cannot_be_padded():
    with pytest.raises(ValueError, match="empty"):
        pad_dataproto_to_divisor(make(2)[[]], 4)


def test_rename():
    data = make().rename("old_log_probs", "ref_log_probs")
    assert set(data.batch.keys()) == {"responses", "ref_log_probs"}
    with pytest.raises(ValueError, match="1 old names but 2"):
        data.rename("ref_log_probs", ["a", "b"])


def everything() -> DataProto:
    shared = torch.randn(3, 2)
    return DataProto.from_dict(
        {
            "bf16": torch.randn(3, 2).bfloat16(),
            "bool": torch.tensor([True, False, True]),
            "advantages": shared,
            "returns": shared,  # GRPO: one tensor under two names
            "view": torch.arange(12).view(3, 4)[:, 1:3],
            "empty": torch.zeros(3, 0),
        },
        {"ground_truth": [["<reject>", "I won't.", "Ada"], None, {"a": [1.5, True]}], "split": ["forget"] * 3},
        {"step": 3, "nested": {"x": [1, 2]}},
    )


def assert_same(one: DataProto, other: DataProto) -> None:
    assert set(one.batch.keys()) == set(other.batch.keys())
    for key, tensor in one.batch.items():
        assert tensor.dtype == other.batch[key].dtype
        assert torch.equal(tensor, other.batch[key])
    assert {k: v.tolist() for k, v in one.non_tensor_batch.items()} == {
        k: v.tolist() for k, v in other.non_tensor_batch.items()
    }
    assert one.meta_info == other.meta_info


def test_disk_round_trip_runs_nothing(tmp_path):
    data = everything()
    data.save_to_disk(tmp_path / "batch.safetensors")
    assert_same(DataProto.load_from_disk(str(tmp_path / "batch.safetensors")), data)
    assert [path.name for path in tmp_path.iterdir()] == ["batch.safetensors"], "nothing partial is left behind"
    assert b"torch" not in (tmp_path / "batch.safetensors").read_bytes(), "no pickle stream names a module"

    no_tensors = DataProto.from_dict(non_tensors={"uid": ["a"]})
    no_tensors.save_to_disk(tmp_path / "rest")
    assert uids(DataProto.load_from_disk(tmp_path / "rest")) == ["a"]


def test_disk_refuses_what_would_come_back_changed(tmp_path):
    for value in (object(), {1: "int key"}, {"set"}):
        data = DataProto.from_dict({"x": torch.zeros(1)}, {"odd": object_array([value])})
        with pytest.raises(TypeError, match="'odd'"):
            data.save_to_disk(tmp_path / "x")
    numbers = DataProto.from_dict({"x": torch.zeros(1)}, {"n": object_array([np.float32(0.5)])}, {"k": np.int64(3)})
    numbers.save_to_disk(tmp_path / "x")
    assert DataProto.load_from_disk(tmp_path / "x").meta_info == {"k": 3}


def test_tensors_leave_the_process_out_of_band():
    data = DataProto.from_dict({"big": torch.randn(1000, 100), "bf16": torch.randn(1000, 3).bfloat16()})
    buffers: list[pickle.PickleBuffer] = []
    stream = pickle.dumps(data, protocol=5, buffer_callback=buffers.append)
    assert len(stream) < 4000, "the tensors are in the buffers, not in the stream"
    assert sum(buffer.raw().nbytes for buffer in buffers) == 1000 * 100 * 4 + 1000 * 3 * 2


def test_arriving_tensors_can_be_written_to():
    data = everything()
    state = data.__getstate__()
    for array, _, _ in state["tensors"].values():
        array.flags.writeable = False  # Ray hands out views of its shared memory
    arrived = DataProto.__new__(DataProto)
    arrived.__setstate__(state)
    assert_same(arrived, data)
    before = data.batch["bf16"].clone()
    arrived.batch["bf16"].add_(1)
    assert torch.equal(data.batch["bf16"], before)
    assert_same(copy.deepcopy(data), data)
    assert copy.deepcopy(DataProto.from_dict(non_tensors={"uid": ["a"]})).batch is None
