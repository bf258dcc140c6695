# environment: core-torch
"""Images that stay files: peak memory of preparing and of an epoch at 1, 4 and 16 times the images.

JPEG files are generated below a temporary folder. A process of its own prepares a subject of them
(list, split, save the index, read it back) and passes once through all training images in random
order, with the batches that training takes; its peak memory is compared with that of the
straightforward way, which decodes all images into one array first. Both see the same pixels.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

UNIT = 250  # images at 1x
FACTORS = (1, 4, 16)
CLASSES = 5
SIDE, RESIZE, BATCH = 224, 256, 16


def generate(folder: Path, images: int) -> None:
    """Write photograph-like JPEG files of 320 x 280 into a folder per class."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:280, :320]
    for number in range(images):
        place = folder / f"c{number % CLASSES}"
        place.mkdir(parents=True, exist_ok=True)
        waves = [np.sin(x / rng.uniform(5, 40)) + np.cos(y / rng.uniform(5, 40)) for _ in range(3)]
        pixels = 128 + 40 * np.stack(waves, -1) + rng.normal(0, 6, (280, 320, 1))
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        image.save(place / f"{number:06}.JPEG", quality=85)


def measure(way: str, folder: Path, images: int) -> dict:
    """Prepare and pass once through the training images, in this process."""
    import torch
    from modelfix_core import Dataset, Split
    from modelfix_core.images import ImageFiles
    from modelfix_core.subjects.constructions import carve
    from modelfix_core.torch.training import Feed

    torch.set_num_threads(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    classes = (f"c{k}" for k in range(CLASSES))
    paths = sorted(f"{c}/{e.name}" for c in classes for e in os.scandir(folder / c))[:images]
    x = ImageFiles.of(folder, paths, SIDE, RESIZE)
    if way == "whole":
        x = np.stack([x[k] for k in range(len(x))])
    y = np.array([int(path[1]) for path in paths])
    size = images // 5
    sizes = {"train": images - 3 * size, "validation": size, "repair": size, "test": size}
    splits = carve({"all": Split(x, y)}, {"all": sizes}, seed=0)
    with tempfile.TemporaryDirectory() as place:
        Dataset(splits, [f"c{k}" for k in range(CLASSES)]).save(Path(place))
        del x, splits
        split = Dataset.load(Path(place), ("train",))["train"]
        order = np.random.default_rng(0).permutation(len(split))
        check = 0
        # The images are on no device: they are read ahead, batch by batch.
        for batch, _ in Feed(split, "cpu", memory=0).batches(order, BATCH):
            check = zlib.crc32(batch.numpy().tobytes(), check)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"mib": (peak - before) / 1024, "seconds": seconds, "check": check}


def in_a_process(way: str, folder: Path, images: int) -> dict:
    """Run `measure` in a process of its own, for its peak memory."""
    command = [sys.executable, __file__, "--measure", way, str(folder), str(images)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Print peak memory over that of the imported libraries, and the ratio to the whole array."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", nargs=3, metavar=("WAY", "FOLDER", "IMAGES"))
    options = parser.parse_args()
    if options.measure:
        way, folder, images = options.measure
        print(json.dumps(measure(way, Path(folder), int(images))))
        return
    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        generate(folder, UNIT * FACTORS[-1])
        for factor in FACTORS:
            images = UNIT * factor
            files, whole = (in_a_process(way, folder, images) for way in ("files", "whole"))
            assert files["check"] == whole["check"], "both ways must see the same pixels"
            row = {
                "benchmark": f"images {factor}x ({images})",
                "files_mib": round(files["mib"], 1),
                "whole_mib": round(whole["mib"], 1),
                "ratio": round(whole["mib"] / files["mib"], 1),
                "files_seconds": round(files["seconds"], 2),
                "whole_seconds": round(whole["seconds"], 2),
            }
            rows.append(row)
            print(row, flush=True)
    growth = rows[-1]["files_mib"] / rows[0]["files_mib"]
    print(f"peak memory at {FACTORS[-1]}x over 1x: {growth:.2f} (as files)")
    if options.json:
        options.json.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
