"""The folder of a model: a whole checkpoint as Hugging Face writes it, or an adapter as peft does, which names its base."""

import hashlib
import json
import re
from pathlib import Path

import torch
from huggingface_hub import snapshot_download

INDEX_FILE = "model.safetensors.index.json"
COPIED_FILES = [
    "generation_config.json",
    "tokenizer*",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
]
ADAPTER_CONFIG, ADAPTER_FILE, ADAPTER_PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."
BASE_FILE = "base_fingerprint.txt"  # of the model that an adapter was trained on
HUB_FILES = ["config.json", ADAPTER_CONFIG, BASE_FILE, "*.safetensors", INDEX_FILE, *COPIED_FILES]


def resolve_checkpoint(path_or_hub_id: str | Path) -> Path:
    """Return the local folder of a checkpoint; of a hub id the files that are needed are downloaded, once.

    Raises:
        ValueError: neither a folder with a model nor of the form `owner/name` (`@revision` may follow), or not to be had.
    """
    path = Path(path_or_hub_id)
    if path.is_dir():
        if not (path / "config.json").is_file() and not is_adapter(path):
            raise ValueError(f"{path} holds no config.json, so it is no model's folder (of a run give runs/NAME)")
        return path
    name, _, revision = str(path_or_hub_id).partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ValueError(f"no model at {path_or_hub_id}: give an existing folder or a hub id such as Qwen/Qwen2.5-7B")
    try:
        # no subfolders: a checkpoint of ours on the hub has its optimizer state in one
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=HUB_FILES, ignore_patterns="*/*"))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{path_or_hub_id} is no local folder and could not be fetched from the hub: {reason}") from error


def is_adapter(folder: Path) -> bool:
    """Tell an adapter's folder from a whole model's."""
    return (folder / ADAPTER_CONFIG).is_file()


def base_folder(folder: Path) -> Path:
    """Return the folder of the model that an adapter's folder builds on; of a whole model, its own.

    Raises:
        ValueError: the base is absent, or is not the one that the adapter was trained on.
    """
    if not is_adapter(folder):
        return folder
    config = read_json(folder / ADAPTER_CONFIG)
    name, revision = config.get("base_model_name_or_path"), config.get("revision")
    try:
        base = resolve_checkpoint(f"{name}@{revision}" if revision else str(name))
    except ValueError as error:
        raise ValueError(f"the base of {folder} is missing; correct base_model_name_or_path there: {error}") from error
    mark = folder / BASE_FILE  # absent in folders of peft
    if mark.is_file() and mark.read_text(encoding="utf-8").strip() != fingerprint(base):
        raise ValueError(f"{folder} was trained on another model than {base}: give its own as base_model_name_or_path there")
    return base


def address(folder: Path) -> tuple[str, str | None]:
    """Return hub id and commit of a folder that was fetched from the hub; of another its absolute path and None."""
    found = re.search(r"models--([^/]+?)--([^/]+)/snapshots/(\w+)$", folder.as_posix())
    return (f"{found[1]}/{found[2]}", found[3]) if found else (str(folder.absolute()), None)


def text_folder(folder: Path) -> Path:
    """Return the folder with a model's tokenizer: an adapter may leave it to its base."""
    return folder if any(folder.glob("tokenizer*")) else base_folder(folder)


def read_json(path: Path) -> dict:
    """A JSON object from a file.

    Raises:
        ValueError: the file is absent, or is not a JSON object.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object")
    return content


def weight_files(folder: Path) -> list[Path]:
    if is_adapter(folder):
        names = [ADAPTER_FILE]
    elif (folder / INDEX_FILE).is_file():
        weight_map = read_json(folder / INDEX_FILE).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise ValueError(f"{folder / INDEX_FILE} is damaged: its weight_map must name a file for each tensor")
        names = sorted(set(weight_map.values()))
    else:
        names = ["model.safetensors"]
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise ValueError(
            f"{folder} has no {absent[0]}: only safetensors weights are read (a .bin checkpoint must be converted first)"
        )
    return [folder / name for name in names]


def stored_dtype(folder: Path) -> torch.dtype:
    """The dtype that a checkpoint's configuration says its weights are in, an adapter's base's; float32 if it says nothing."""
    folder = base_folder(folder)
    config = read_json(folder / "config.json")
    name = config.get("dtype") or config.get("torch_dtype") or "float32"
    dtype = getattr(torch, str(name), None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{folder / 'config.json'}: dtype {name!r} is not a dtype of torch")
    return dtype


def fingerprint(folder: Path) -> str:
    """A hash that tells two checkpoints apart, wherever they lie: configuration, and size and both ends of each weight file."""
    configuration = folder / (ADAPTER_CONFIG if is_adapter(folder) else "config.json")
    digest = hashlib.blake2b(configuration.read_bytes(), digest_size=16)
    if is_adapter(folder):
        digest.update(fingerprint(base_folder(folder)).encode())
    for file in weight_files(folder):
        size = file.stat().st_size
        with file.open("rb") as content:
            digest.update(f"{file.name} {size}".encode() + content.read(2**20))
            content.seek(max(0, size - 2**20))
            digest.update(content.read())
    return digest.hexdigest()
