"""Rows of a data set on the hub, from the Parquet files that the hub itself keeps of every public data set."""

from dataclasses import dataclass

import pyarrow
import pyarrow.parquet
from huggingface_hub import hf_hub_download

REVISION = "refs/convert/parquet"  # the hub's own branch: one layout for all data sets, and no loading script is run


@dataclass(frozen=True)
class HubSplit:
    """One split of a data set, small enough for a single file."""

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
        name = f"{self.config}/{self.split}/0000.parquet"
        try:
            file = hf_hub_download(self.repository, name, repo_type="dataset", revision=REVISION)
        except (OSError, ValueError) as error:  # every error of the hub and its connection is one of these
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            raise ValueError(
                f"{self} is not in the hub's cache and could not be downloaded: {reason}. Without network, give a folder of "
                "files with --data-dir; a data set with terms of use needs them accepted on its page, and HF_TOKEN set"
            ) from error
        try:
            table = pyarrow.parquet.read_table(file)
        except (OSError, pyarrow.ArrowException) as error:
            raise ValueError(f"{file}, downloaded from {self}, is no readable Parquet file: {error}") from error
        return [(f"row {i}", row) for i, row in enumerate(table.to_pylist())]
