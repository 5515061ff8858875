"""A step whose items pass, fail, crash, hang and poison, run as `python -m tests.device_steps`."""

from __future__ import annotations

import os
import sys
import time

import torch

from dcn_tvm.device import items
from dcn_tvm.device.items import Context, Item, Skipped, work
from dcn_tvm.device.journal import Journal, Result


def _crash() -> Result:
    os.abort()


def _hang() -> Result:
    time.sleep(600)
    return {}


def _skip() -> Result:
    raise Skipped("not here")


def _raise() -> Result:
    raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")


ITEMS = {
    "passing": [Item("one", lambda: {"pid": os.getpid()}), Item("skipped", _skip, 0.0)],
    "wrong": [
        Item("raising", _raise),
        Item("not a number", lambda: {"value": float("nan")}),
    ],
    "crashing": [
        Item("before", lambda: {"pid": os.getpid()}),
        Item("crash", _crash),
        Item("hang", _hang, most_s=0.5),
        Item("after", lambda: {"pid": os.getpid()}),
    ],
    "slow": [
        Item("quick", lambda: {}, 0.0),
        Item("slow", lambda: time.sleep(600) or {}, 0.0),
    ],
}


def main(step: str, text: str) -> int:
    context = Context.from_json(text)
    if step == "wrong":  # as after an error that the device does not recover from
        items.usable = lambda device: False
    torch.set_num_threads(1)
    return work(ITEMS[step], Journal(context.out, step), context)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
