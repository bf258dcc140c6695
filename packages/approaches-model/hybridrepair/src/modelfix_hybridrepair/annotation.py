"""Labels that must be asked for."""

import numpy as np
from modelfix_core.errors import Failure


class Annotator:
    """The person who labels images: the only way to a label of the repair split.

    Parameters
    ----------
    labels : ndarray of int, [N]
    budget : int
        How many images may be asked for.
    """

    def __init__(self, labels: np.ndarray, budget: int) -> None:
        self.__labels = labels
        self.budget = budget
        self._asked: set[int] = set()

    @property
    def spent(self) -> int:
        """How many images have been asked for; a second question about one is free."""
        return len(self._asked)

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Return the labels of images.

        Parameters
        ----------
        positions : ndarray of int, [n]

        Returns
        -------
        ndarray of int, [n]

        Raises
        ------
        Failure
            If that is more than the budget; no label is given then.
        """
        asked = self._asked.union(np.asarray(positions).tolist())
        if len(asked) > self.budget:
            raise Failure(
                f"annotating {len(asked)} images would exceed the budget of {self.budget}"
            )
        self._asked = asked
        return np.asarray(self.__labels)[positions]
