"""A frozen model that lives in host memory: its layers visit the device one at a time, the next one while this one computes.

For the reference model where the card has no room for it. One forward over a micro-batch moves every weight across once, so
it suits log-probs and grading, where thousands of tokens share a forward, and not decoding, where each token would pay for it.

On the device stay the head, the last norm and two layers. The embedding stays in host memory: what is looked up there is a
few rows. The arithmetic, and therefore every log-prob, is that of the resident model.

Shapes: B sequences, T tokens, E embedding, V vocabulary.
"""

import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.transformer import Block, Transformer


def stream_from_host(model: Transformer, device: torch.device) -> Transformer:
    """Change a model in host memory so that it computes on `device`, in place.

    Args:
        model: on the CPU; from here on frozen and without layers of its own: `parameters()` are only what is on the device.
        device: where the forward runs. On a CPU the layers are copied all the same, so that tests run what a GPU runs.

    Returns:
        The model, with the interface it had: forward, logits, activation_dtype, device.

    Raises:
        ValueError: the model is not in host memory.
    """
    if model.device.type != "cpu":
        raise ValueError(f"a streamed model must be loaded into host memory first; this one is on {model.device}")
    model.requires_grad_(False)
    embedding_VE = model.model.embed_tokens.weight.detach()  # shared with a tied head, which gets its copy on the device
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().to(device), requires_grad=False)
    model.model.norm.to(device)
    model.model.embed_tokens = HostEmbedding(embedding_VE, device)
    model.model.layers = StreamedLayers(model.model.layers, device)
    return model


class HostEmbedding(nn.Module):
    """Looks rows up in host memory and sends them to the device."""

    def __init__(self, weight_VE: Tensor, device: torch.device) -> None:
        super().__init__()
        self.weight_VE, self.device = weight_VE, device  # a plain attribute: `.to` must not move it

    def forward(self, ids_BT: Tensor) -> Tensor:
        return F.embedding(ids_BT.cpu(), self.weight_VE).to(self.device)


class StreamedLayers(nn.Module):
    """Iterates over the layers of a decoder; each is valid until the next one is asked for.

    Each layer is one flat tensor in host memory, pinned where a GPU reads it. Two layers' worth of device memory take turns:
    while the device computes with one, the other is filled on a stream of its own.
    """

    def __init__(self, blocks: nn.ModuleList, device: torch.device) -> None:
        super().__init__()
        self._host: list[Tensor] = []
        template: Block = blocks[0]
        for index in range(len(blocks)):
            flat = torch.cat([parameter.detach().flatten() for parameter in blocks[index].parameters()])
            self._host.append(flat.pin_memory() if device.type == "cuda" else flat)
            blocks[index] = nn.Identity()  # frees the layer: host memory holds the model once, and one layer twice
        # all that differs between layers is their weights and their number
        self._stages = [Stage(template, self._host[0], device) for _ in range(2)]
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __len__(self) -> int:
        return len(self._host)

    def __iter__(self) -> Iterator[Block]:
        self._fetch(0)
        for index in range(len(self)):
            if index + 1 < len(self):
                self._fetch(index + 1)
            stage = self._stage(index)
            stage.wait_until_filled()
            try:
                yield stage.block
            finally:  # also when the forward ends in an exception
                stage.mark_used()

    def _stage(self, index: int) -> "Stage":
        return self._stages[index % 2]

    def _fetch(self, index: int) -> None:
        self._stage(index).fill(self._host[index], index, self._stream)


class Stage:
    """Room for one layer on the device.

    Args:
        template: a layer; only its structure counts.
        like: a flat layer: its size and dtype.
    """

    def __init__(self, template: Block, like: Tensor, device: torch.device) -> None:
        self.flat = torch.empty(like.shape, dtype=like.dtype, device=device)
        self.block = copy.deepcopy(template).requires_grad_(False)
        begin = 0
        for parameter in self.block.parameters():
            parameter.data = self.flat[begin : begin + parameter.numel()].view(parameter.shape)
            begin += parameter.numel()
        self.filled = self.used = None
        if device.type == "cuda":
            self.filled, self.used = torch.cuda.Event(), torch.cuda.Event()
            self.mark_used()  # whoever had this memory before is done with it when this stream gets here

    def fill(self, layer: Tensor, index: int, stream: "torch.cuda.Stream | None") -> None:
        """Copy a layer in, once the computation with the one before has been done; returns before the copy is."""
        self.block.self_attn.layer = index  # what a cache knows the layer by
        if stream is None:
            self.flat.copy_(layer)
            return
        with torch.cuda.stream(stream):
            stream.wait_event(self.used)
            self.flat.copy_(layer, non_blocking=True)
            self.filled.record(stream)

    def wait_until_filled(self) -> None:
        """Let the computation wait for the copy, not the process."""
        if self.filled is not None:
            torch.cuda.current_stream(self.flat.device).wait_event(self.filled)

    def mark_used(self) -> None:
        if self.used is not None:
            self.used.record(torch.cuda.current_stream(self.flat.device))
