"""Hugging Face checkpoints in and out: safetensors and JSON only, nothing that could execute code.

Reading is strict both ways: a missing, unexpected, misshapen or non-finite tensor is an error that names it.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.config import ModelConfig
from model.folder import (
    ADAPTER_CONFIG,
    ADAPTER_FILE,
    BASE_FILE,
    COPIED_FILES,
    INDEX_FILE,
    address,
    base_folder,
    fingerprint,
    is_adapter,
    read_json,
    resolve_checkpoint,
    stored_dtype,
    weight_files,
)
from model.lora import adapter_parameters, add_adapters_of, merged_weights, peft_config
from model.transformer import Transformer

SHARD_BYTES = 5 * 10**9
ADAPTER_PREFIX = "base_model.model."  # of names in files of peft
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def load_model(
    path_or_hub_id: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> Transformer:
    """Build a model and stream its weights from a Hugging Face checkpoint, one tensor at a time.

    Args:
        path_or_hub_id: a folder, or a hub id, which @REVISION (branch, tag or commit) may follow. That of an adapter (ours, or
            of peft) gives its base with the adapter on.
        dtype: dtype of the weights; default float32, the dtype of trainable masters, whatever the file holds. Adapters are
            never below float32.
        device: where the weights go.

    Raises:
        ValueError: unsupported configuration; no safetensors weights; a tensor that is missing, unexpected, of the wrong
            shape, not of floating point or not finite. The message names the field, file or tensor.
    """
    folder = resolve_checkpoint(path_or_hub_id)
    base = base_folder(folder)
    config = ModelConfig.from_hf(read_json(base / "config.json"))
    with torch.device("meta"):
        model = Transformer(config)
    model = model.to(dtype or torch.float32).to_empty(device=device)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    copy_weights(model, base)
    if is_adapter(folder):
        try:
            add_adapters_of(model, read_json(folder / ADAPTER_CONFIG))
        except ValueError as error:
            raise ValueError(f"{folder / ADAPTER_CONFIG}: {error}") from error
        copy_weights(model, folder)
    return model.eval()


def all_rows(parameter: Tensor) -> tuple[Tensor, int]:
    return parameter, 0


@torch.no_grad()
def copy_weights(model: Transformer, folder: Path, rows_held: Callable[[Tensor], tuple[Tensor, int]] = all_rows) -> None:
    """Fill a model, or only its adapters, from a checkpoint folder, one tensor at a time.

    Args:
        rows_held: the part of a parameter to fill, a run of its rows, and the first of them; only these are read.

    Raises:
        ValueError: see `load_model`.
    """
    parameters = dict(model.named_parameters())  # a tied head appears once, as the embedding
    if is_adapter(folder):
        parameters = {ADAPTER_PREFIX + name: tensor for name, tensor in adapter_parameters(model).items()}
    missing = set(parameters)
    for name, stored in _stored_tensors(folder):
        if name == HEAD and model.config.tie_word_embeddings:
            name = EMBEDDING  # some writers store the tied head as well, or instead
        if name not in parameters:
            raise ValueError(f"{folder}: unexpected tensor {name}; it is no parameter of a {model.config.model_type} model")
        shape, wanted = tuple(stored.get_shape()), tuple(parameters[name].shape)
        if shape != wanted:
            raise ValueError(f"{folder}: {name} has shape {shape}, its configuration implies {wanted}")
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
    for file in weight_files(folder):
        try:
            with safe_open(file, framework="pt", device="cpu") as stored:
                for name in stored.keys():  # noqa: SIM118 - not a dict
                    yield name, stored.get_slice(name)
        except SafetensorError as error:
            raise ValueError(f"{file} is not a readable safetensors file: {error}") from error


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
    """Write a folder that `from_pretrained` of transformers loads without missing or unexpected keys; adapters are merged.

    Args:
        model: the model; a tied head is not written twice.
        tokenizer: a transformers tokenizer, or None to write weights and configuration only. Written only without `source`.
        path: the folder; made if absent.
        dtype: dtype of the stored weights; default that of `source`, without one the model's own.
        source: folder the model came from: its tokenizer, chat template and generation_config.json are copied as they are,
            and fields of its config.json that this code base does not read (token ids, for example) are carried over.
        shard_bytes: largest size of one weight file; no more than that is held in memory.
        weights: the parameters by name, in the model's order, where the model itself does not hold them whole.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    dtype = dtype or (stored_dtype(source) if source else model.lm_head.weight.dtype)
    names = dict(model.named_parameters()).keys() - adapter_parameters(model)
    sizes = {name: p.numel() * dtype.itemsize for name, p in model.named_parameters() if name in names}
    _write_shards(_plan_shards(sizes, shard_bytes), merged_weights(model) if weights is None else weights, dtype, path)
    config = model.config.to_hf(str(dtype).removeprefix("torch."))
    if tokenizer is not None:
        config |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    if source is not None:
        kept = read_json(base_folder(source) / "config.json")
        config = kept | {name: value for name, value in config.items() if not name.endswith("token_id") or name not in kept}
        _copy_files(source, path)
    elif tokenizer is not None:
        tokenizer.save_pretrained(path)
    (path / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def save_adapter(model: Transformer, path: Path, *, source: Path) -> None:
    """Write the adapters of a model, in their own dtype, as peft does: `PeftModel.from_pretrained` loads them on the base.

    Args:
        source: folder the model came from: a base, or an adapter of the same base. Files beside the weights are copied.
    """
    path.mkdir(parents=True, exist_ok=True)
    base = base_folder(source)
    tensors = {ADAPTER_PREFIX + name: tensor.detach().cpu() for name, tensor in adapter_parameters(model).items()}
    save_weights(tensors, path / ADAPTER_FILE, metadata={"format": "pt"})
    (path / BASE_FILE).write_text(fingerprint(base) + "\n", encoding="utf-8")
    name, revision = address(base)
    config = {"base_model_name_or_path": name, "revision": revision} | peft_config(model)
    (path / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    _copy_files(source, path)


def _copy_files(source: Path, path: Path) -> None:
    """Copy what is no weight; an adapter's own files replace those of its base."""
    for folder in (base_folder(source), source):
        for file in (file for pattern in COPIED_FILES for file in folder.glob(pattern)):
            shutil.copyfile(file, path / file.name)


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
