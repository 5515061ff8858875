"""The examples in the docstrings run as they are written."""

import doctest
import importlib

import pytest
import torch
import torchvision

FILES = (
    *("aligned_inception_resnet", "deeplab", "faster_rcnn", "options", "resnet", "rfcn", "rpn"),
    "sampling",
)


@pytest.mark.parametrize("name", FILES)
def test_the_examples_run(name: str) -> None:
    module = importlib.import_module(f"dcn_tvm.models.{name}")
    names = {"torch": torch, "torchvision": torchvision}
    result = doctest.testmod(module, extraglobs=names)
    assert result.attempted > 0
    assert result.failed == 0
