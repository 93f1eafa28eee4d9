"""Averaged weights: an exponential moving average of the network, which is evaluated and kept in its place."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Averaged:
    """The moving average of a network's parameters and of BatchNorm's statistics.

    After step t (from 1) it is decay * average + (1 - decay) * network, where decay is the recipe's, or (1 + t) / (10 +
    t) if that is less, as TensorFlow's ExponentialMovingAverage has it: a short training is not averaged with its
    beginning. What does not change in the network does not change in the average either, not by a bit.
    """

    def __init__(self, model: nn.Module, decay: float, saved: Mapping[str, Tensor] | None = None) -> None:
        """Begins as the network is now, or where `saved` (a `state_dict`) was."""
        self._model, self._decay = model, decay
        self._own: dict[str, Tensor] | None = None  # the network's tensors, while the average is in their place
        self._state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        for name, tensor in (saved or {}).items():
            self._state[name].copy_(tensor)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the network as it is after `step` steps of the run."""
        decay = min(self._decay, (1 + step) / (10 + step))
        for name, tensor in self._model.state_dict().items():
            if tensor.is_floating_point():
                self._state[name].lerp_(tensor, 1 - decay)
            else:
                self._state[name].copy_(tensor)

    def state_dict(self) -> dict[str, Tensor]:
        return self._state

    def network(self) -> dict[str, Tensor]:
        """The network's own `state_dict`, also while the average, or a part of it, is in its place.

        Putting it there and back takes two copies, and a signal may end the process within either: what is saved then
        must not be half an average.
        """
        return self._model.state_dict() if self._own is None else self._own

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within, the network's tensors hold the average."""
        self._own = own = {name: tensor.detach().clone() for name, tensor in self._model.state_dict().items()}
        try:
            self._model.load_state_dict(self._state)
            yield
        finally:
            self._model.load_state_dict(own)
            self._own = None
