import numpy as np
import pytest
from modelfix_core import ModelfixError, Split
from modelfix_core.joining import join


def split(n, start=0, **changes):
    x = np.random.default_rng(start).integers(0, 256, (n, 1, 4, 4), dtype=np.uint8)
    fields = {"x": x, "y": np.arange(start, start + n), "ids": np.arange(start, start + n)}
    return Split(**fields | changes)


def test_joined_splits_read_as_one_array(tmp_path):
    split(5).save(tmp_path)
    first, second = Split.load(tmp_path), split(3, start=5)
    both = join(first, second)
    whole = np.concatenate([first.x, second.x])
    assert (len(both), both.x.shape, both.x.nbytes) == (8, whole.shape, whole.nbytes)
    np.testing.assert_array_equal(both.y, np.arange(8))
    np.testing.assert_array_equal(both.ids, np.arange(8))
    for index in ([7, 0, 5, 5], slice(3, 7), np.arange(8) % 2 == 0, slice(None), -1):
        np.testing.assert_array_equal(both.x[index], whole[index])
    np.testing.assert_array_equal(np.array(both.x), whole)
    np.testing.assert_array_equal(both.select([6, 1]).images(), whole[[6, 1]] / np.float32(255))


def test_rows_of_the_second_split_may_repeat():
    first, second, rows = split(5), split(3, start=5), np.array([2, 0, 2])
    both = join(first, second, rows)
    assert len(both) == 8
    np.testing.assert_array_equal(both.ids[5:], [7, 5, 7])
    np.testing.assert_array_equal(both.x[[4, 5, 7]], [first.x[4], second.x[2], second.x[2]])


def test_groups_are_joined_where_both_have_them():
    ones, zeros = np.ones(2, np.int64), np.zeros(3, np.int64)
    with_groups = join(split(2, group=ones), split(3, group=zeros))
    np.testing.assert_array_equal(with_groups.group, [1, 1, 0, 0, 0])
    assert join(split(2, group=ones), split(3)).group is None


def test_images_take_the_type_of_the_first_split():
    stored = split(4)
    real = Split(stored.images(), stored.y)
    for first, second in ((stored, real), (real, stored)):
        both = join(first, second)
        assert both.x.dtype == first.x.dtype
        np.testing.assert_allclose(both.images(slice(4, 8)), stored.images(), atol=1e-6)


def test_other_shapes_are_refused():
    other = Split(np.zeros((2, 1, 5, 4), np.uint8), np.zeros(2, np.int64))
    with pytest.raises(ModelfixError, match="cannot be joined"):
        join(split(2), other)
