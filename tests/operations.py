"""What a stretch of PyTorch does, operation by operation: on a GPU each would be a kernel or a copy."""

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class Operations(TorchDispatchMode):
    """Within, notes the name of every operation but those that only look at tensors otherwise, or make room for one."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.note(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))

    def note(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Called before each operation."""
        if not (_is_view(func) or "empty" in str(func)):
            self.seen.append(str(func))


def _is_view(func: Any) -> bool:
    returned = func._schema.returns
    return all(one.alias_info is not None and not one.alias_info.is_write for one in returned)
