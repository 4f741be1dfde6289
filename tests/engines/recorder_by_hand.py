"""A recorder for the CPU in place of CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch


@dataclass
class ByHand:
    """A recorder for the CPU. As a CUDA graph does, a replay fills the memory of the recorded results again."""

    log: list[str] = field(default_factory=list)
    fail: Exception | None = None

    def capture(self, call: Callable[[], list[torch.Tensor]]) -> tuple[list[torch.Tensor], Callable[[], None]]:
        self.log.append("capture")
        if self.fail is not None:
            raise self.fail
        results = call()

        def replay() -> None:
            self.log.append("replay")
            for result, again in zip(results, call(), strict=True):
                result.copy_(again)

        return results, replay

    def begin(self) -> None:
        self.log.append("begin")

    def end(self) -> None:
        self.log.append("end")
