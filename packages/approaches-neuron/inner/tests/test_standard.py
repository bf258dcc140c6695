from modelfix_inner import Inner
from modelfix_testing import ApproachStandardTests


class TestInner(ApproachStandardTests):
    approach = Inner
    config = {  # noqa: RUF012
        "samples": 100,
        "probe_samples": 300,
        "probe_epochs": 10,
        "routing_samples": 20,
        "routing_steps": 5,
        "epochs": 3,
    }
