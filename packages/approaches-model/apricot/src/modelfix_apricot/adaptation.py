"""How failing samples move the weights, for a whole batch in closed form.

Sample after sample the rule is

``theta <- theta + sigma * eta * (p_c * (theta - w_c) - p_w * (theta - w_w))``

with the mean weights ``w_c`` of the submodels that are right and ``w_w`` of those that are wrong,
and their shares ``p_c`` and ``p_w``. All of it is affine in theta and linear in the weights of the
submodels, hence so is the sequence over any number of samples: one factor for theta and one for
each submodel.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Move:
    """The affine map ``theta <- scale * theta + shares @ W``.

    Attributes
    ----------
    scale : float
    shares : ndarray of float64, [K]
    samples : int
        Failing samples that take part: some submodels are right on them and some wrong.
    """

    scale: float
    shares: np.ndarray
    samples: int

    def apply(self, theta: Tensor, weights: Tensor) -> Tensor:
        """Return the moved weights.

        Parameters
        ----------
        theta : Tensor, [P]
        weights : Tensor, [K, P]
            Of the submodels.

        Returns
        -------
        Tensor, [P]
            `theta` itself where no sample takes part.
        """
        if not self.samples:
            return theta
        shares = torch.from_numpy(self.shares).to(theta)
        return torch.addmv(theta, weights.T, shares, beta=self.scale)


def move(right: np.ndarray, eta: float, strategy: str = "both", sigma: int = -1) -> Move:
    """Compose the moves of all failing samples, in order.

    Parameters
    ----------
    right : ndarray of bool, [m, K]
        Whether submodel k predicts the label of the failing sample i.
    eta : float
        In [0, 1).
    strategy : {"both", "correct", "incorrect"}
    sigma : {-1, 1}

    Returns
    -------
    Move
        Exact, but for rounding, however many samples there are.
    """
    count = right.shape[1]
    votes = right.sum(axis=1)
    right = right[(votes > 0) & (votes < count)].astype(np.float64)
    if strategy == "both":
        towards = 2 * right - 1
    elif strategy == "correct":
        towards = right
    else:
        towards = right - 1
    steps = sigma * eta * towards / count  # [m, K]: what each submodel's weights weigh
    factors = 1 + steps.sum(axis=1)
    after = np.append(np.cumprod(factors[::-1])[::-1], 1.0)  # product of factors from i on
    return Move(float(after[0]), -after[1:] @ steps, len(right))
