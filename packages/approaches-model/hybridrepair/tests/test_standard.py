from modelfix_hybridrepair import HybridRepair
from modelfix_testing import ApproachStandardTests


class TestHybridRepair(ApproachStandardTests):
    approach = HybridRepair
    config = {"warm_up": 1, "epochs": 2, "n_iters": 2, "replay_images": 256}  # noqa: RUF012
