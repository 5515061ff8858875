"""ONNX Runtime as a peer: a model of one node, run by a session on the CPU.

Only settings in whose dtype a kernel computes are listed: for half types the runtime puts casts
around its float32 kernels, and where it has kernels of its own they take rounded boxes. It has no
gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dcn_tvm.bench.contender import Call, Contender, Setting, settings
from dcn_tvm.suites import Case

# The oldest IR version with all opsets used here: newer ones are refused by older runtimes.
IR_VERSION = 9
OUTPUT = "output"


@dataclass(frozen=True)
class Node:
    """One operator with its data.

    Attributes:
        operator: its name in ONNX.
        opset: the version of the operators' definitions.
        attributes: what is fixed, by ONNX's names.
        inputs: the tensors in the operator's order, None for an optional one that is left out.
        constants: the names of those that are part of the model, as filters are, which helps the
            runtime most.
    """

    operator: str
    opset: int
    attributes: Mapping[str, Any]
    inputs: Mapping[str, Tensor | None]
    constants: frozenset[str] = frozenset()

    @property
    def given(self) -> dict[str, Tensor]:
        """The tensors that there are, by name."""
        return {name: tensor for name, tensor in self.inputs.items() if tensor is not None}

    @property
    def fed(self) -> dict[str, Tensor]:
        """The tensors that every run is given, by name."""
        return {name: t for name, t in self.given.items() if name not in self.constants}


def onnx_peer(
    node: Callable[[Case, Setting], Node],
    dtypes: Sequence[str] = ("float32",),
    serves: Callable[[Case], bool] = lambda case: True,
) -> Contender:
    """Return ONNX Runtime's session of the model that `node` describes for a case and setting.

    Args:
        node: the operator that computes the op, with its data.
        dtypes: those in which it has kernels.
        serves: the cases in which it computes the same function.
    """

    def prepare(case: Case, setting: Setting) -> Call:
        import onnxruntime

        described = node(case, setting)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # Idle ONNX Runtime threads would spin and slow down every other contender.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(
            model(described), options, providers=["CPUExecutionProvider"]
        )
        feed = {name: tensor.numpy() for name, tensor in described.fed.items()}
        return lambda: [torch.from_numpy(session.run(None, feed)[0])]

    return Contender(
        "onnxruntime",
        "peer",
        "onnxruntime",
        settings(("forward",), dtypes, ("contiguous",)),
        prepare,
        "pip install onnxruntime onnx",
        ("onnxruntime", "onnx"),
        serves,
    )


def model(node: Node) -> bytes:
    """Return the ONNX model of one node, serialised; the output has the first input's dtype."""
    from onnx import helper, numpy_helper

    def value(name: str, tensor: Tensor, shape: list[int] | None) -> Any:
        kind = helper.np_dtype_to_tensor_dtype(tensor.numpy().dtype)
        return helper.make_tensor_value_info(name, kind, shape)

    names = [name if tensor is not None else "" for name, tensor in node.inputs.items()]
    graph = helper.make_graph(
        [helper.make_node(node.operator, names, [OUTPUT], **node.attributes)],
        node.operator,
        [value(name, tensor, list(tensor.shape)) for name, tensor in node.fed.items()],
        [value(OUTPUT, next(iter(node.given.values())), None)],
        [
            numpy_helper.from_array(tensor.numpy(), name)
            for name, tensor in node.given.items()
            if name in node.constants
        ],
    )
    opset = [helper.make_opsetid("", node.opset)]
    made = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION)
    return bytes(made.SerializeToString())
