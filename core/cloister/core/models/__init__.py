"""Models by name: logistic regression, MLP, two CNNs, ResNet, depthwise-separable CNN, GRU, LSTM, Transformer.

All are fit for differential privacy: no batch norm, and a gradient for each record under Opacus.
"""

from cloister.core.models.registry import ModelChoice, build, model_names, read_model

__all__ = ["ModelChoice", "build", "model_names", "read_model"]
