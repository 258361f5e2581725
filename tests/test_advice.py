"""What a run says when it has little to learn from."""

import pytest
from samples import GOOD, sample

from rl.records import Group
from rl.run.advice import UpdateWatch, format_advice, malformed_because


def group(texts: list[str], *, dropped: str = "", trained: bool = False, finish: str = "stop") -> Group:
    made = Group("a", "q", "r", refine_samples=[sample(text, accuracy=1.0) for text in texts], dropped=dropped)
    for one in made.refine_samples:
        one.trained, one.reward = trained, -1.0
        object.__setattr__(one.completion, "finish_reason", finish)
    return made


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (GOOD, ""),
        ("It is 8.", "<think>"),
        ("<think>8</think> It is 8.", "<answer>"),
        ("<think>8</think><think>9</think><answer>8</answer>", "<think>"),
        ("<think>8</think><answer> </answer>", "empty"),
        ("<think>8<refine>9</think><answer>9</answer>", "<refine>"),
        ("Well: <think>8</think><answer>8</answer>", "outside"),
        ("<answer>8</answer><think>8</think>", "outside"),
    ],
)
def test_each_malformed_response_has_its_reason(text, reason):
    """Bug guarded: a reason that belongs to another fault, or a well-formed response that gets one."""
    found = malformed_because(sample(text))
    assert reason in found
    assert bool(found) == bool(reason)


def test_first_batch_without_the_format_names_reasons_and_remedies():
    """Bug guarded: a run of hours over responses of which none can be paid, without a word."""
    advice = format_advice([group(["It is 8."] * 3 + ["<think>8</think> 8"] * 2, dropped="equal rewards")])
    assert advice.startswith("warning: 0% of the first 5")
    assert "3 x not exactly one <think> pair; 2 x not exactly one <answer> pair" in advice
    assert advice.index("one-shot") < advice.index("rl.sft") < advice.index("--max-new-tokens")
    assert "5 x cut off" in format_advice([group(["<think>8"] * 5, finish="length")])


def test_first_batch_that_can_be_learnt_from_says_nothing():
    """Bug guarded: a warning that everybody learns to ignore."""
    assert format_advice([group([GOOD, "8"], trained=True)]) == ""
    assert "no question has two different rewards" in format_advice([group([GOOD] * 2, dropped="equal rewards")])


def test_steps_without_an_update_are_folded():
    """Bug guarded: the same line for each of hundreds of steps, or silence about a run that trains nothing."""
    watch, idle = UpdateWatch(), [group(["It is 8."] * 2, dropped="equal rewards")]
    said = [watch.lines(step, idle) for step in range(2, 12)]
    assert [len(lines) for lines in said] == [1, 1, 2, 0, 0, 0, 0, 0, 0, 0]
    assert "1 x equal rewards" in said[0][0]
    assert "It is 8." in said[2][1]
    assert watch.lines(12, [group([GOOD], trained=True)]) == ["step 12: trains again, after 10 steps without an update"]
    assert watch.lines(13, [group([GOOD], trained=True)]) == []
