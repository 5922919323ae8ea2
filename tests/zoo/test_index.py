"""Rows kept as columns: what comes out is what one table of all of them would be."""

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from mzsane.zoo import index as rows
from mzsane.zoo.index import Rows

VALUES = st.one_of(st.none(), st.integers(-9, 9), st.floats(allow_nan=False))
ROWS = st.fixed_dictionaries({"model": st.text(max_size=3)}, optional={"loss": VALUES, "factor": st.booleans()})


@given(st.lists(st.lists(ROWS, max_size=7), max_size=9))
def test_blocks_change_nothing(chunks):
    kept, usual = Rows(), rows._BLOCK
    rows._BLOCK = 4
    try:
        for chunk in chunks:
            kept.add(chunk)
        found = kept.frame()
    finally:
        rows._BLOCK = usual
    expected = pl.DataFrame([row for chunk in chunks for row in chunk], infer_schema_length=None)
    assert found.equals(expected)
    assert found.columns == expected.columns
    assert kept.frame().equals(expected)


def test_rows_after_a_look_are_there_too():
    kept = Rows({"model": pl.String, "epoch": pl.Int64})
    assert kept.frame().schema == {"model": pl.String, "epoch": pl.Int64}
    kept.add([{"model": "a", "epoch": 1}])
    assert len(kept.frame()) == 1
    kept.add([{"model": "b", "epoch": 2}])
    assert kept.frame().rows() == [("a", 1), ("b", 2)]
