"""The solver HiGHS, for approaches that depend on `highspy`."""

import highspy


class QuietHighs(highspy.Highs):
    """An empty program of HiGHS that prints nothing; one thread, a fixed seed."""

    def __init__(self) -> None:
        super().__init__()
        self.setOptionValue("threads", 1)
        self.setOptionValue("random_seed", 0)

    def enableCallbacks(self) -> None:
        """Turn the output off before HiGHS prints its banner, which this call is the first to."""
        self.setOptionValue("output_flag", False)
        super().enableCallbacks()
