"""Parquet files of encoded images."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from modelfix_core.errors import ModelfixError
from modelfix_core.readers.columns import GROUP, SPLIT_NAMES, explained, from_columns, no_column
from modelfix_core.readers.encoded import Encoded
from modelfix_core.readers.listing import BLOCK, Listing


def parquet(
    path: Path, _: Path | None, group_column: str | None, classes: Sequence[str] | None
) -> Listing:
    """List the encoded images of a Parquet file, or of a folder of them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    shards = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    with explained(path, "readable Parquet", pa.ArrowException):
        schema = pq.read_schema(shards[0])
        image = next((name for name in ("image", "img") if name in schema.names), None)
        if image is None or "label" not in schema.names:
            raise ModelfixError(
                f"{path}: has the columns {', '.join(schema.names)}; expected image and label."
            )
        wanted = {"label", "split", group_column or GROUP} & set(schema.names)
        if group_column and group_column not in wanted:
            raise no_column(str(path), group_column, schema.names)
        parts = [pq.read_table(shard, columns=sorted(wanted)) for shard in shards]
        table = {name: pa.concat_tables(parts)[name].to_pylist() for name in wanted}
    if "split" not in table and all(_split_of(shard) for shard in shards):
        pairs = zip(shards, parts, strict=True)
        table["split"] = [_split_of(shard) for shard, part in pairs for _ in range(len(part))]
    if classes is None:
        classes = _huggingface_classes(schema.metadata)

    def batches() -> Iterator[list[tuple[str, Any]]]:
        with explained(path, "readable Parquet", pa.ArrowException):
            for shard in shards:
                start = 0
                for batch in pq.ParquetFile(shard).iter_batches(BLOCK, columns=[image]):
                    values = batch.column(0).to_pylist()
                    yield [
                        (f"{shard}, image {start + i}", _encoded(shard, start + i, value))
                        for i, value in enumerate(values)
                    ]
                    start += len(values)

    if not table["label"]:
        raise ModelfixError(f"{path}: holds no images.")
    images = Encoded(len(table["label"]), batches)
    return from_columns(images, table, group_column, classes, str(path))


def _split_of(shard: Path) -> str | None:
    """Return the split in the name of a shard such as ``train-00000-of-00002.parquet``."""
    return SPLIT_NAMES.get(shard.stem.split("-")[0])


def _encoded(shard: Path, number: int, value: Any) -> bytes | Path:
    if isinstance(value, dict):
        inside, outside = value.get("bytes"), value.get("path")
        value = inside if inside or not outside else _beside(shard, outside)
    if not isinstance(value, bytes | Path):
        raise ModelfixError(
            f"{shard}, image {number}: is {type(value).__name__}; expected the bytes of an encoded "
            "image, or {bytes, path}."
        )
    return value


def _beside(shard: Path, name: str) -> Path:
    folder = shard.parent.resolve()
    if not (folder / name).resolve().is_relative_to(folder):
        raise ModelfixError(f"{shard}: names {name!r}, which lies outside its folder.")
    return shard.parent / name


def _huggingface_classes(metadata: dict[bytes, bytes] | None) -> list[str] | None:
    """Return the class names that Hugging Face datasets keep in the schema, if they are there."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return [str(name) for name in features["label"]["names"]]
    except (KeyError, TypeError, ValueError):
        return None
