"""The model that computes logits: dense Qwen2, Qwen3 and Llama decoders, their KV cache and checkpoint format."""

from model.checkpoint import load_model, save_model
from model.config import ModelConfig
from model.transformer import Transformer

__all__ = ["ModelConfig", "Transformer", "load_model", "save_model"]
