# environment: arachne
"""What the job adds to an approach's own work: selecting, checking, recording.

Runs Arachne on `fashion-mini-lenet5` (prepared before: `nox -s prepare -- fashion-mini-lenet5`)
and states everything that is neither the approach's work nor conversion as a share of the fixing
time. The start of the process is not part of it.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from modelfix_core.job import Job, run_job

SUBJECT = Path(__file__).resolve().parents[1] / "results" / "subjects" / "fashion-mini-lenet5"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subject", type=Path, default=SUBJECT)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        job = Job(approach="arachne", subject=options.subject, record=folder / "1")
        record, _ = run_job(job)
    finally:
        shutil.rmtree(folder)
    seconds = record.seconds
    apart = {"fixing", "total", "selecting"}
    own = seconds["fixing"] + sum(value for key, value in seconds.items() if key not in apart)
    overhead = seconds["total"] - own
    share = overhead / seconds["fixing"]
    print(
        f"job overhead: {share:.1%} of the fixing time "
        f"({overhead:.2f} s, {seconds['fixing']:.2f} s)"
    )
    if options.json:
        line = {"name": "job overhead", "share": share, "seconds": seconds}
        options.json.write_text(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
