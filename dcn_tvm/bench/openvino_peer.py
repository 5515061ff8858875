"""OpenVINO as a peer: a model of one node, inferred by its CPU plugin in float32.

Other dtypes are not listed: the plugin computes float64 in float32, and whether it computes half
types in half types is the processor's matter. It has no gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dcn_tvm.bench.contender import Call, Contender, Setting, settings
from dcn_tvm.suites import Case


class Node(NamedTuple):
    """One operator with its data.

    Attributes:
        inputs: the tensors that a request reads.
        make: makes the node of as many parameters, and of the constants that it holds.
    """

    inputs: Sequence[Tensor]
    make: Callable[..., Any]


def openvino_peer(
    node: Callable[[Case, Setting], Node], serves: Callable[[Case], bool] = lambda case: True
) -> Contender:
    """Return OpenVINO's request of the model that `node` describes for a case and setting.

    The request fills the same output in every call, which helps it.

    Args:
        node: the operator that computes the op, with its data.
        serves: the cases in which it computes the same function.
    """

    def prepare(case: Case, setting: Setting) -> Call:
        import openvino

        inputs, make = node(case, setting)
        given = [tensor.numpy() for tensor in inputs]
        parameters = [openvino.opset1.parameter(list(a.shape), a.dtype) for a in given]
        config = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": "f32",
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # it would pin the thread that all contenders run in
        }
        model = openvino.Model([make(*parameters)], parameters)
        request = openvino.Core().compile_model(model, "CPU", config).create_infer_request()
        held = [openvino.Tensor(array, shared_memory=True) for array in given]
        for place, tensor in enumerate(held):
            request.set_input_tensor(place, tensor)

        def infer() -> list[Tensor]:
            assert held  # the request does not keep what it reads
            request.infer()
            return [torch.from_numpy(request.get_output_tensor(0).data)]

        return infer

    return Contender(
        "openvino",
        "peer",
        "openvino",
        settings(("forward",), memory_formats=("contiguous",)),
        prepare,
        "pip install openvino",
        ("openvino.opset1",),
        serves,
    )
