"""The compact letter display: worked examples, validity, an independent implementation."""

import numpy as np
import pandas as pd
import pytest
import scikit_posthocs
from hypothesis import given, settings
from hypothesis import strategies as st
from modelfix_stats import compact_letters, group_letters
from modelfix_stats.letters import letter


def matrix(names: str, pairs: str, *, different: bool = True) -> np.ndarray:
    """Return the matrix in which the named pairs, or all others, differ."""
    named = np.zeros((len(names), len(names)), bool)
    for a, b in pairs.split():
        i, j = names.index(a), names.index(b)
        named[i, j] = named[j, i] = True
    return named if different else ~named & ~np.eye(len(names), dtype=bool)


def texts(letters) -> dict[str, str]:
    return {name: letters.text(name) for name in letters.names}


@st.composite
def graphs(draw, most: int = 9) -> np.ndarray:
    n = draw(st.integers(1, most))
    upper = draw(st.lists(st.booleans(), min_size=n * n, max_size=n * n))
    half = np.triu(np.array(upper).reshape(n, n), 1)
    return half | half.T


def test_worked_example_of_insert_and_absorb():
    names = "PQRST"
    letters = compact_letters(names, matrix(names, "PR PS PT QS QT RT"))
    assert texts(letters) == {"P": "a", "Q": "ab", "R": "bc", "S": "cd", "T": "d"}


@pytest.mark.parametrize(
    ("sweep", "expected"),
    [(False, "abc abd acd b d c"), (True, "ab ac bc a c b")],
)
def test_worked_example_of_the_sweep(sweep, expected):
    names = "UVWXYZ"
    different = matrix(names, "UV UW VW UX VX VY WY UZ WZ", different=False)
    letters = compact_letters(names, different, sweep=sweep)
    assert [letters.text(name) for name in names] == expected.split()


def test_extremes():
    assert texts(compact_letters("ABC", np.zeros((3, 3), bool))) == {"A": "a", "B": "a", "C": "a"}
    assert texts(compact_letters("ABC", ~np.eye(3, dtype=bool))) == {"A": "a", "B": "b", "C": "c"}
    assert texts(compact_letters("A", np.zeros((1, 1), bool))) == {"A": "a"}
    assert compact_letters([], np.zeros((0, 0), bool)).columns == ()


@settings(deadline=None, max_examples=200)
@given(graphs(), st.booleans())
def test_entrants_share_a_letter_iff_they_do_not_differ(different, sweep):
    names = [f"e{i}" for i in range(len(different))]
    letters = compact_letters(names, different, sweep=sweep)
    for i, a in enumerate(names):
        for j, b in enumerate(names):
            shares = bool(set(letters[a]) & set(letters[b]))
            assert shares == (i == j or not different[i, j])


@settings(deadline=None, max_examples=100)
@given(graphs())
def test_letters_come_in_the_order_of_their_best_entrants(different):
    letters = compact_letters([str(i) for i in range(len(different))], different)
    assert list(letters.columns) == sorted(letters.columns)
    assert "a" in letters["0"]


@settings(deadline=None, max_examples=100)
@given(graphs())
def test_without_sweep_the_letters_are_those_of_scikit_posthocs(different):
    names = [f"e{i}" for i in range(len(different))]
    ours = compact_letters(names, different, sweep=False)
    p = pd.DataFrame(np.where(different, 0.001, 0.9), index=names, columns=names)
    theirs = scikit_posthocs.compact_letter_display(p, alpha=0.05)
    members = {}
    for position, name in enumerate(names):
        for word in theirs[name].replace(" ", ""):
            members.setdefault(word, []).append(position)
    assert sorted(map(tuple, members.values())) == sorted(ours.columns)


@settings(deadline=None, max_examples=100)
@given(graphs())
def test_the_sweep_only_drops_letters(different):
    names = [str(i) for i in range(len(different))]
    swept = compact_letters(names, different).columns
    assert set(swept) <= set(compact_letters(names, different, sweep=False).columns)


def test_too_many_letters_give_none():
    # A graph of n / 3 independent triangles of differences has 3 ** (n / 3) maximal sets.
    block = ~np.eye(3, dtype=bool)
    different = np.kron(np.eye(6, dtype=bool), block)
    assert compact_letters([str(i) for i in range(18)], different) is None


def test_names_of_letters():
    assert [letter(i) for i in (0, 25, 26, 27, 51, 52)] == ["a", "z", "aa", "ab", "az", "ba"]


def test_words_are_separated_once_a_letter_has_two_characters():
    n = 28
    letters = compact_letters([str(i) for i in range(n)], ~np.eye(n, dtype=bool))
    assert letters.text("27") == "ab"
    assert letters["27"] == ("ab",)
    grouped = group_letters([str(i) for i in range(n)], ~np.eye(n, dtype=bool))
    assert grouped["26"] == ("aa",)


def test_readable_up_to_six_letters():
    assert compact_letters("ABCDEF", ~np.eye(6, dtype=bool)).readable
    assert not compact_letters("ABCDEFG", ~np.eye(7, dtype=bool)).readable


def test_group_letters_may_part_entrants_that_do_not_differ():
    names = "PQRS"
    different = matrix(names, "PR")
    letters = group_letters(names, different)
    # S joins the letter of P; R opens one and S joins that too, but Q is above R.
    assert texts(letters) == {"P": "a", "Q": "a", "R": "b", "S": "ab"}
    assert not different[names.index("Q"), names.index("R")]


def test_group_letters_of_entrants_alone():
    letters = group_letters("PQR", np.zeros((3, 3), bool), alone=[False, True, False])
    assert texts(letters) == {"P": "a", "Q": "b", "R": "a"}
