"""The process of a step: `python -m dcn_tvm.device.child STEP CONTEXT`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import torch

from dcn_tvm.device import behaviour, benchmark, correctness, machine, tune
from dcn_tvm.device.items import Context, Item, work
from dcn_tvm.device.journal import Journal

ITEMS: dict[str, Callable[[Context], Iterator[Item]]] = {
    machine.STEP: machine.items,
    correctness.STEP: correctness.items,
    behaviour.STEP: behaviour.items,
    benchmark.STEP: benchmark.items,
    tune.STEP: tune.items,
    benchmark.TUNED_STEP: benchmark.tuned_items,
}


def main(step: str, text: str) -> int:
    """Do what is left of a step; return an exit code of `items`."""
    context = Context.from_json(text)
    if context.device.startswith("cuda"):
        torch.cuda.set_device(torch.device(context.device).index or 0)
    return work(ITEMS[step](context), Journal(context.out, step), context)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
