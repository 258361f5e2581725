"""Hugging Face checkpoints in and out: safetensors and JSON only, nothing that could execute code.

Reading is strict both ways: a missing, unexpected, misshapen or non-finite tensor is an error that names it.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.config import ModelConfig
from model.transformer import Transformer

INDEX_FILE = "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
COPIED_FILES = [
    "generation_config.json",
    "tokenizer*",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
]
HUB_FILES = ["config.json", "*.safetensors", INDEX_FILE, *COPIED_FILES]


def resolve_checkpoint(path_or_hub_id: str | Path) -> Path:
    """Return the local folder of a checkpoint; of a hub id the files that are needed are downloaded, once.

    Raises:
        ValueError: neither a folder with a model nor of the form `owner/name` (`@revision` may follow), or not to be had.
    """
    path = Path(path_or_hub_id)
    if path.is_dir():
        if not (path / "config.json").is_file():
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


def load_model(
    path_or_hub_id: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> Transformer:
    """Build a model and stream its weights from a Hugging Face checkpoint, one tensor at a time.

    Args:
        path_or_hub_id: a folder, or a hub id, which @REVISION (branch, tag or commit) may follow.
        dtype: dtype of the weights; default float32, the dtype of trainable masters, whatever the file holds.
        device: where the weights go.

    Raises:
        ValueError: unsupported configuration; no safetensors weights; a tensor that is missing, unexpected, of the wrong
            shape, not of floating point or not finite. The message names the field, file or tensor.
    """
    folder = resolve_checkpoint(path_or_hub_id)
    config = ModelConfig.from_hf(read_json(folder / "config.json"))
    with torch.device("meta"):
        model = Transformer(config)
    model = model.to(dtype or torch.float32).to_empty(device=device)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    copy_weights(model, folder)
    return model.eval()


def all_rows(parameter: Tensor) -> tuple[Tensor, int]:
    return parameter, 0


@torch.no_grad()
def copy_weights(model: Transformer, folder: Path, rows_held: Callable[[Tensor], tuple[Tensor, int]] = all_rows) -> None:
    """Fill a model from a checkpoint folder, one tensor at a time.

    Args:
        rows_held: the part of a parameter to fill, a run of its rows, and the first of them; only these are read.

    Raises:
        ValueError: see `load_model`.
    """
    parameters = dict(model.named_parameters())  # a tied head appears once, as the embedding
    missing = set(parameters)
    for name, stored in _stored_tensors(folder):
        if name == HEAD and model.config.tie_word_embeddings:
            name = EMBEDDING  # some writers store the tied head as well, or instead
        if name not in parameters:
            raise ValueError(f"{folder}: unexpected tensor {name}; it is no parameter of a {model.config.model_type} model")
        shape, wanted = tuple(stored.get_shape()), tuple(parameters[name].shape)
        if shape != wanted:
            raise ValueError(f"{folder}: {name} has shape {shape}, config.json implies {wanted}")
        target, first = rows_held(parameters[name])
        tensor = stored[first : first + len(target)].to(target.device)  # as it is stored: it is cast there
        if not tensor.is_floating_point():
            raise ValueError(f"{folder}: {name} is stored as {tensor.dtype}; load the unquantised checkpoint")
        if not all_finite(tensor):
            raise ValueError(f"{folder}: {name} holds NaN or infinite values")
        if name not in missing and not torch.equal(target, tensor.to(target)):
            raise ValueError(f"{folder}: {name} is stored twice with different values (tied to {HEAD}, which differs?)")
        target.copy_(tensor)
        missing.discard(name)
    if missing:
        raise ValueError(f"{folder}: {len(missing)} tensors are missing, for example {sorted(missing)[0]}")


def all_finite(tensor: Tensor) -> bool:
    """Tell by its extremes, a tenth of the work of `isfinite` at each value: they are NaN if one value is."""
    return tensor.numel() == 0 or all(extreme.isfinite().item() for extreme in tensor.aminmax())


def _stored_tensors(folder: Path) -> Iterator[tuple[str, "PySafeSlice"]]:  # noqa: F821 - safetensors does not export it
    """Every tensor by name, as something to slice: rows are read when they are asked for."""
    for file in _weight_files(folder):
        try:
            with safe_open(file, framework="pt", device="cpu") as stored:
                for name in stored.keys():  # noqa: SIM118 - not a dict
                    yield name, stored.get_slice(name)
        except SafetensorError as error:
            raise ValueError(f"{file} is not a readable safetensors file: {error}") from error


def _weight_files(folder: Path) -> list[Path]:
    if (folder / INDEX_FILE).is_file():
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
    """The dtype that a checkpoint's configuration says its weights are in; float32 if it says nothing."""
    config = read_json(folder / "config.json")
    name = config.get("dtype") or config.get("torch_dtype") or "float32"
    dtype = getattr(torch, str(name), None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{folder / 'config.json'}: dtype {name!r} is not a dtype of torch")
    return dtype


def fingerprint(folder: Path) -> str:
    """A hash that tells two checkpoints apart, wherever they lie: configuration, and size and both ends of each weight file."""
    digest = hashlib.blake2b((folder / "config.json").read_bytes(), digest_size=16)
    for file in _weight_files(folder):
        size = file.stat().st_size
        with file.open("rb") as content:
            digest.update(f"{file.name} {size}".encode() + content.read(2**20))
            content.seek(max(0, size - 2**20))
            digest.update(content.read())
    return digest.hexdigest()


@torch.no_grad()
def save_model(
    model: Transformer,
    tokenizer,
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    source: Path | None = None,
    shard_bytes: int = SHARD_BYTES,
    weights: Iterable[tuple[str, Tensor]] | None = None,
) -> None:
    """Write a folder that `from_pretrained` of transformers loads without missing or unexpected keys.

    Args:
        model: the model; a tied head is not written twice.
        tokenizer: a transformers tokenizer, or None to write weights and configuration only. Written only without `source`.
        path: the folder; made if absent.
        dtype: dtype of the stored weights; default the model's own.
        source: folder the model came from: its tokenizer, chat template and generation_config.json are copied as they are,
            and fields of its config.json that this code base does not read (token ids, for example) are carried over.
        shard_bytes: largest size of one weight file; no more than that is held in memory.
        weights: the parameters by name, in the model's order, where the model itself does not hold them whole.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    dtype = dtype or model.lm_head.weight.dtype
    shards = _plan_shards({n: p.numel() * dtype.itemsize for n, p in model.named_parameters()}, shard_bytes)
    _write_shards(shards, model.named_parameters() if weights is None else weights, dtype, path)
    config = model.config.to_hf(str(dtype).removeprefix("torch."))
    if tokenizer is not None:
        config |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    if source is not None:
        kept = read_json(source / "config.json")
        config = kept | {name: value for name, value in config.items() if not name.endswith("token_id") or name not in kept}
        for pattern in COPIED_FILES:
            for file in source.glob(pattern):
                shutil.copyfile(file, path / file.name)
    elif tokenizer is not None:
        tokenizer.save_pretrained(path)
    (path / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _plan_shards(sizes: dict[str, int], shard_bytes: int) -> list[dict[str, int]]:
    """Bytes by name -> the same, file by file."""
    shards: list[dict[str, int]] = [{}]
    for name, size in sizes.items():
        if shards[-1] and sum(shards[-1].values()) + size > shard_bytes:
            shards.append({})
        shards[-1][name] = size
    return shards


def _write_shards(shards: list[dict[str, int]], weights: Iterable[tuple[str, Tensor]], dtype: torch.dtype, path: Path) -> None:
    weights, weight_map = iter(weights), {}
    for number, names in enumerate(shards, start=1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        shard = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in islice(weights, len(names))}
        assert shard.keys() == names.keys(), "weights come in the order of the model's parameters"
        save_weights(shard, path / file, {"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    if len(shards) > 1:
        total = sum(sum(names.values()) for names in shards)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (path / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def save_weights(tensors: dict[str, Tensor], file: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file that others may read as far as the umask lets them, where the library lets nobody."""
    file.touch()
    mode = file.stat().st_mode
    save_file(tensors, file, metadata=metadata)
    file.chmod(mode)
