"""Properties of records on disk: any text in them, a kill at any byte, a line that is none.

The examples are the same in every run (`derandomize`), and none has a deadline.
"""

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.evaluation.records import AnswerRecord, RecordFile

thorough = settings(derandomize=True, deadline=None, database=None, max_examples=60)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)  # Cs: halves of surrogate pairs, refused on reading


@st.composite
def answer_records(draw):
    turn = {"prompt": TEXT, "response": TEXT, "tokens": st.integers(0, 9), "finish_reason": st.just("stop")}
    turns = draw(st.lists(st.fixed_dictionaries(turn), max_size=2))
    scores = draw(st.fixed_dictionaries({"rule": st.none() | st.floats(0, 1)}))
    given = (draw(TEXT), draw(st.integers(0, 2)), draw(TEXT), draw(TEXT), turns, draw(st.none() | TEXT))
    return AnswerRecord("own", "vanilla", *given, 0, draw(st.integers(0, 99)), scores)


@pytest.fixture(scope="module")
def folder():
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "records").mkdir()
        yield Path(name)


@thorough
@given(
    records=st.lists(answer_records(), max_size=5), cut=st.floats(0, 1), rest=st.sampled_from([b"", b"{", b'{"id": "\xf0\x9f'])
)
def test_records_survive_any_text_and_a_kill_in_the_middle_of_a_line(folder, records, cut, rest):
    """Bug guarded: U+2028 or a carriage return that splits a record; a line cut within a character that loses all others."""
    file = folder / "records" / "own.vanilla.jsonl"
    file.write_bytes(b"")
    writer = RecordFile(folder, "own", "vanilla")
    for record in records:
        writer.append(record)
    assert RecordFile(folder, "own", "vanilla").records == writer.records
    whole = file.read_bytes()
    kept = whole[: round(cut * len(whole))] + rest
    file.write_bytes(kept)
    wanted = {(record.id, record.sample): record for record in records[: kept.count(b"\n")]}
    assert RecordFile(folder, "own", "vanilla", mend=False).records == wanted
    assert file.read_bytes() == kept, "only who holds the folder mends it"
    mended = RecordFile(folder, "own", "vanilla")
    assert mended.records == wanted
    last = records[-1] if records else AnswerRecord("own", "vanilla", "1", 0, "q", "r", [], None, 0, 1)
    mended.append(last)
    assert RecordFile(folder, "own", "vanilla").records == wanted | {(last.id, last.sample): last}


@thorough
@given(
    line=st.binary(max_size=40) | st.recursive(st.none() | st.integers() | TEXT, st.lists).map(lambda v: json.dumps(v).encode())
)
def test_a_line_that_is_no_record_is_named(folder, line):
    """Bug guarded: a message about a codec or a key that does not say which file is damaged."""
    file = folder / "records" / "own.vanilla.jsonl"
    file.write_bytes(line + b"\n")
    with pytest.raises(ValueError, match=r"own\.vanilla\.jsonl, line 1 is no record"):
        RecordFile(folder, "own", "vanilla", mend=False)
