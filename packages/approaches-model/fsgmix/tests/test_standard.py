from modelfix_fsgmix import FSGMix
from modelfix_testing import ApproachStandardTests


class TestFSGMix(ApproachStandardTests):
    approach = FSGMix
    config = {"learning_rates": (1e-3,), "epochs": 2}  # noqa: RUF012
