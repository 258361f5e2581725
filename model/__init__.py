"""The model that computes logits: a Qwen2/Qwen3 transformer, its KV cache and its checkpoint format."""

from model.checkpoint import load_model, save_model
from model.config import ModelConfig
from model.transformer import Transformer

__all__ = ["ModelConfig", "Transformer", "load_model", "save_model"]
