"""Reading torch.distributed.checkpoint files without executing what they say.

The format keeps its table of contents in a pickle and small values in pickles of their own; to load them in full is to trust
the file with the machine. Here the first may name only the classes it is made of, the second are read with `weights_only`.
"""

import io
import pickle
from pathlib import Path

import torch
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem

METADATA_CLASSES = (  # by name: the module they are in also holds `os`, which a file could reach into
    "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
    "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
)  # fmt: skip
ALLOWED = {
    *(("torch.distributed.checkpoint.metadata", name) for name in METADATA_CLASSES),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
}


class _ContentsUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if (module, name) not in ALLOWED and not is_dtype:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no checkpoint needs")
        return super().find_class(module, name)


class SafeReader(FileSystemReader):
    """FileSystemReader that unpickles nothing but the classes of a table of contents."""

    def read_metadata(self, *args, **kwargs) -> Metadata:
        with (Path(self.path) / ".metadata").open("rb") as file:
            metadata = _ContentsUnpickler(file).load()
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class SafePlanner(DefaultLoadPlanner):
    """Load planner that reads numbers, texts and containers of them, and nothing else."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        checked = io.BytesIO()
        torch.save(torch.load(value, weights_only=True), checked)
        checked.seek(0)
        super().load_bytes(read_item, checked)
