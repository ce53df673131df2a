"""The rows of a parquet file."""

from collections.abc import Iterator
from typing import Any, BinaryIO

BATCH_BYTES = 1 << 23
MAX_BATCH_ROWS = 1000
MAX_METADATA = 1 << 26


def parquet_rows(source: BinaryIO) -> Iterator[dict[str, Any]]:
    """The rows as dicts; numbers and dates are text, as in CSV.

    Raises:
        Exception: of pyarrow, if the file is damaged.
    """
    from pyarrow.parquet import ParquetFile

    file = ParquetFile(
        source,
        thrift_string_size_limit=MAX_METADATA,
        thrift_container_size_limit=1_000_000,
        buffer_size=1 << 20,
        pre_buffer=False,
    )
    groups = [file.metadata.row_group(n) for n in range(file.num_row_groups)]
    row_bytes = max(
        (group.total_byte_size // max(group.num_rows, 1) for group in groups), default=1
    )
    count = min(max(BATCH_BYTES // max(row_bytes, 1), 1), MAX_BATCH_ROWS)
    for batch in file.iter_batches(count, use_threads=False):
        for row in batch.to_pylist():
            yield {key: _plain(value) for key, value in row.items()}


def _plain(value: Any) -> Any:
    """A value as JSON may hold it."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return f"{len(value)} bytes" if isinstance(value, bytes) else str(value)
