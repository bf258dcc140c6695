"""How much memory a repair needs, known before anything is computed."""

from collections.abc import Sequence

FEATURE = 12  # bytes of a feature: float32 as computed, float64 as used
# Bytes for an entry of a region's rows with the solver's copies and factors: 122 to 131 were
# measured with HiGHS 1.16 for regions of 204 x 144 to 2,048 x 512.
ENTRY = 140


def estimate(inputs: int, features: int, hidden: Sequence[int], cores: int) -> int:
    """Estimate the memory of a repair in bytes.

    Parameters
    ----------
    inputs : int
        Inputs whose features are kept: those of the repair and the validation split.
    features : int
        Inputs d of the block.
    hidden : sequence of int
        Widths of the hidden layers: a region has a row for each neuron.
    cores : int
        Regions that are solved at once.
    """
    return FEATURE * inputs * features + ENTRY * cores * sum(hidden) * features
