"""The numbers of ten steps are those that were kept: a change of the arithmetic does not pass unseen."""

from tests.golden import LARGEST, STEPS, apart, expected, kept, words
from tests.training_kit import train


def test_ten_steps_give_the_numbers_that_were_kept(ray_session, tmp_path):
    train(*words(tmp_path, "run"))
    measured = kept(tmp_path / "run")
    assert len(measured) == STEPS
    far = {key: share for key, share in apart(measured, expected()).items() if share > LARGEST}
    assert not far, f"{far} off; a change that means this runs python3 -m tests.golden --write"
