"""The GPU check's own workings: parts that play cannot stop each other, and the report is there throughout."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.gpu import check, models
from tests.gpu.check import Part, main, read_findings, run_parts
from tests.gpu.reference import share_off

NOTE = "import json, os, sys, time, subprocess, signal; note = lambda what, passed, **n: open("
NOTE += "os.environ['CHECK_FINDINGS'], 'a').write(json.dumps({'what': what, 'passed': passed, 'numbers': n}) + '\\n')\n"
HANGING = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
children = [subprocess.Popen(['sleep', '60'], start_new_session=apart) for apart in (False, True)]
print(*[child.pid for child in children])
note('began', True, share=0.123456)
time.sleep(60)
"""


def part(name: str, code: str, limit: float = 120) -> Part:
    return Part(name, ["-S", "-c", NOTE + code], limit)


def gone(pid: int) -> bool:
    """Whether a process has ended; its parent may not have asked after it yet."""
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """The folder and the outcomes of a check whose parts end in every way."""
    folder = tmp_path_factory.mktemp("check")
    report = folder / "report.json"
    parts = [
        part("good", "note('sum', True, value=2.0); note('other card', None, why='no room')"),
        part("reader", f"seen = json.load(open({str(report)!r}))['parts']; note(seen[0]['verdict'], True)"),
        part("hangs", HANGING, limit=3.2),
        part("raises", "note('before', True); print('last words'); raise SystemExit(3)"),
        part("dies", "os.kill(os.getpid(), signal.SIGKILL)"),
        part("wrong", "note('sum', False, value=3)"),
        part("silent", "pass"),
        part("elsewhere", "note('card', None)"),
    ]
    return folder, {outcome.part: outcome for outcome in run_parts(parts, 420, folder)}


def test_every_part_runs_and_its_end_is_told_apart(checked):
    verdicts = {name: outcome.verdict for name, outcome in checked[1].items()}
    assert verdicts == {
        "good": "passed",
        "reader": "passed",
        "hangs": "stopped after 3 s",
        "raises": "FAILED",
        "dies": "killed by SIGKILL",
        "wrong": "FAILED",
        "silent": "FAILED: it found nothing",
        "elsewhere": "left out",
    }
    assert checked[1]["raises"].end == "last words"


def test_the_report_is_there_while_parts_run(checked):
    assert checked[1]["reader"].findings[0]["what"] == "passed"


def test_a_part_over_its_limit_ends_with_all_that_it_started(checked):
    outcome = checked[1]["hangs"]
    assert outcome.findings == [{"what": "began", "passed": True, "numbers": {"share": 0.123456}}]
    assert 3.2 <= outcome.seconds < 10
    pids = [int(word) for word in (checked[0] / "hangs.log").read_text().split()]
    assert len(pids) == 2
    assert all(gone(pid) for pid in pids)


def test_the_report_holds_every_part_and_number(checked):
    text = (checked[0] / "report.md").read_text()
    assert "| part | verdict | seconds |" in text
    assert "| what | verdict | share |\n| --- | --- | --- |\n| began | passed | 0.1235 |" in text
    assert "| what | verdict | value | why |\n| --- | --- | --- | --- |\n| sum | passed | 2 |  |" in text
    assert "## raises: FAILED" in text
    assert "```\nlast words\n```" in text
    document = json.loads((checked[0] / "report.json").read_text())
    assert [row["part"] for row in document["parts"]] == list(checked[1])
    assert document["machine"]["cores"] == str(os.cpu_count())


def test_the_time_of_all_parts_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "LEAST_SECONDS", 1.0)
    started = time.monotonic()
    parts = [part("long", "note('x', True); time.sleep(60)"), part("next", "note('x', True)")]
    long, following = run_parts(parts, 3.1, tmp_path)
    assert long.verdict == "stopped after 3 s"
    assert long.findings
    assert following.verdict == "not reached"
    assert time.monotonic() - started < 8
    assert "| next | not reached | 0 |" in (tmp_path / "report.md").read_text()


def test_a_finding_that_is_still_being_written_is_left_for_later(tmp_path):
    path = tmp_path / "part.jsonl"
    assert read_findings(path) == []
    path.write_text('{"what": "a"}\n{"wha')
    assert read_findings(path) == [{"what": "a"}]


def test_an_interrupted_check_ends_its_part(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(check, "FOLDER", tmp_path)
    # The check is interrupted once the part has its children, not while it starts them.
    interrupt = HANGING.replace("time.sleep", f"os.kill({os.getpid()}, signal.SIGTERM)\ntime.sleep")
    monkeypatch.setattr(check, "PARTS", [part("hangs", interrupt)])
    monkeypatch.setenv("DEVICE", "cpu")
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit, match="143"):
        main(["60"])
    signal.signal(signal.SIGTERM, before)
    pids = [int(word) for word in (tmp_path / "hangs.log").read_text().split()]
    end = time.monotonic() + 10  # a signal takes effect when the machine gets to it
    while not all(map(gone, pids)) and time.monotonic() < end:
        time.sleep(0.02)
    assert all(map(gone, pids))


@pytest.mark.parametrize(
    ("findings", "code"), [("note('x', True)", 0), ("note('x', None)", 0), ("note('x', False)", 1)]
)
def test_the_exit_code_says_whether_all_is_well(tmp_path, monkeypatch, capfd, findings, code):
    monkeypatch.setattr(check, "FOLDER", tmp_path)
    monkeypatch.setattr(check, "PARTS", [part("only", findings), part("unwanted", "raise SystemExit(1)")])
    monkeypatch.setenv("DEVICE", "cpu")
    assert main(["30", "only"]) == code


def test_without_a_gpu_it_says_what_to_do(monkeypatch, capsys):
    monkeypatch.delenv("DEVICE", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit, match="2"):
        main(["30", "kernels"])
    assert "DEVICE=cpu" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["30", "kernel"])
    assert "there is no part kernel; there are kernels, " in capsys.readouterr().err


def test_random_weights_fill_a_file_that_safetensors_opens(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "BLOCK", 1000)  # a matrix needs several, and not a whole number of them
    models.write_weights(tmp_path / "model.safetensors", {"norm": (8,), "up": (50, 45), "down": (3, 7)})
    weights = load_file(tmp_path / "model.safetensors")
    assert {name: tuple(weight.shape) for name, weight in weights.items()} == {
        "norm": (8,),
        "up": (50, 45),
        "down": (3, 7),
    }
    assert all(weight.dtype == torch.bfloat16 for weight in weights.values())
    assert weights["norm"].tolist() == [1.0] * 8
    values = weights["up"].flatten().float()
    assert torch.equal(values[:1000], values[1000:2000])
    assert torch.equal(values[:250], values[2000:])
    assert values.std().item() == pytest.approx(models.LARGE_STD, rel=0.1)
    assert torch.equal(weights["down"].flatten().float(), values[:21])


def test_differences_are_shares_of_what_is_expected():
    assert share_off([2.2, -1.0], [2.0, -1.0]) == pytest.approx(0.1)
    assert share_off([2.0, 0.1], [2.0, 0.0]) == pytest.approx(0.5)  # of a tenth of the largest
    with pytest.raises(ValueError, match="argument 2"):
        share_off([1.0], [1.0, 2.0])
