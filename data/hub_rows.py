"""Rows of a data set on the hub, from the Parquet files that the hub itself keeps of every public data set."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow
import pyarrow.parquet
from huggingface_hub import snapshot_download

REVISION = "refs/convert/parquet"  # the hub's own branch: one layout for all data sets, and no loading script is run


@dataclass(frozen=True)
class HubSplit:
    """One split of a data set."""

    repository: str
    config: str
    split: str

    def __str__(self) -> str:
        return f"{self.repository} ({self.config}, {self.split})"

    def rows(self) -> list[tuple[str, dict]]:
        """Every row with the words that say where it stands; downloaded once, then from the hub's cache.

        Raises:
            ValueError: neither cached nor to be downloaded, or not readable as Parquet.
        """
        where = f"{self.config}/{self.split}/*.parquet"
        try:
            folder = snapshot_download(self.repository, repo_type="dataset", revision=REVISION, allow_patterns=where)
            files = sorted(Path(folder).glob(where))
            if not files:
                raise ValueError("it has no such configuration or split")
        except (OSError, ValueError) as error:  # every error of the hub and its connection is one of these
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            raise ValueError(
                f"{self} is not in the hub's cache and could not be downloaded: {reason}. Without network, give files of your "
                "own (train.py: --data, evaluate.py: --data-dir); a data set with terms of use needs them accepted on its "
                "page, and HF_TOKEN set"
            ) from error
        rows = [row for file in files for row in _read(file)]
        return [(f"row {i}", row) for i, row in enumerate(rows)]


def _read(file: Path) -> list[dict]:
    try:
        return pyarrow.parquet.read_table(file).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"{file} is no readable Parquet file: {error}") from error
