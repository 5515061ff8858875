"""Who calls torchvision's ops gets the package's kernels: layers, scripts, graphs, a detector."""

import contextlib
import pickle
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign, roi_align

from dcn_tvm import compat
from tests.compat_cases import BOXES, CALLS, SCALE, answers, close

X = torch.ones(2, 4, 9, 8)


@pytest.fixture(autouse=True)
def undone() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    compat.disable()
    torch._dynamo.reset()


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.offset = torch.nn.Conv2d(4, 18, 3, padding=1)
        self.layer = torchvision.ops.DeformConv2d(4, 6, 3, padding=1)
        self.pool = torchvision.ops.RoIPool(2, SCALE)

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = self.pool(self.layer(x, self.offset(x)), BOXES)
        return pooled


class Align(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        boxes = torch.tensor([[1.0, 1.0, 2.0, 30.0, 21.0]])
        return roi_align(x, boxes, (2, 2), 0.25)


def scripted() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and used
        return torch.jit.script(Align())


CALLERS: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
    "layers": Net,
    "pickled": lambda: pickle.loads(pickle.dumps(Net())),
    "scripted": scripted,
    "exported": lambda: torch.export.export(Align(), (X,)).module(),
    "vmap": lambda: torch.func.vmap(lambda x: roi_align(x[None], BOXES[1:2], 2, SCALE)),
}


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", CALLERS)
def test_callers_made_before_are_served(name: str) -> None:
    call, x = CALLERS[name](), torch.randn(2, 4, 9, 8)
    expected = call(x)
    with compat.enable(), torch.profiler.profile() as profile:
        found = call(x)
    assert any(event.key.startswith("dcn_tvm::") for event in profile.key_averages())
    torch.testing.assert_close(found, expected, atol=3e-5, rtol=3e-5)


def graphs(call: Callable[..., Any], *tensors: Tensor) -> tuple[list[Tensor], set[str]]:
    """Answers of the compiled function, and the namespaces of the ops in its graphs."""
    spaces: set[str] = set()

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        targets = [n.target for n in graph.graph.nodes if n.op == "call_function"]
        spaces.update(t.namespace for t in targets if isinstance(t, torch._ops.OpOverload))
        return make_boxed_func(graph.forward)

    compiled = torch.compile(call, fullgraph=True, backend=aot_autograd(fw_compiler=keep))
    return answers(compiled, list(tensors)), spaces & {"dcn_tvm", "torchvision"}


@pytest.mark.parametrize("name", ["deform_conv2d", "roi_pool", "ps_roi_pool"])
def test_what_is_compiled_has_the_kernels_of_its_time(name: str) -> None:
    call, tensors = CALLS[name]()
    expected = answers(call, tensors)
    for wanted in ("torchvision", "dcn_tvm", "torchvision"):
        torch._dynamo.reset()
        with compat.enable() if wanted == "dcn_tvm" else contextlib.nullcontext():
            found, spaces = graphs(call, *tensors)
        close(found, expected)
        assert spaces == {wanted}


@pytest.mark.parametrize("name", ["roi_pool", "ps_roi_align"])
def test_a_graph_compiled_before_keeps_its_gradients(name: str) -> None:
    call, tensors = CALLS[name]()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    expected = answers(compiled, tensors)
    with compat.enable():
        close(answers(compiled, tensors), expected)
        torch._dynamo.reset()
        with torch.inference_mode():
            close([compiled(*tensors)], expected[:1])


def test_a_compiled_graph_that_reads_argmax_has_it() -> None:
    x = torch.randn(2, 12, 10, 11)

    def where(x: Tensor) -> Tensor:
        found: Tensor = torch.ops.torchvision.roi_pool(x, BOXES, SCALE, 2, 2)[1]
        return found

    expected = where(x)
    with compat.enable():
        assert torch.equal(torch.compile(where, fullgraph=True, backend="aot_eager")(x), expected)


def detector() -> Any:
    backbone = torchvision.models.mobilenet_v3_small().features[:4]
    backbone.out_channels = 24
    return torchvision.models.detection.FasterRCNN(
        backbone,
        num_classes=3,
        min_size=64,
        max_size=96,
        rpn_anchor_generator=AnchorGenerator(((16, 32),), ((0.5, 1.0, 2.0),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], 7, 2),
        box_detections_per_img=5,
    )


def test_a_faster_rcnn_trains_and_detects_alike() -> None:
    model = detector()
    images = list(torch.rand(2, 3, 64, 80))
    boxes = torch.tensor([[5.0, 6, 40, 44], [20, 10, 70, 60]])
    targets = [{"boxes": boxes, "labels": torch.tensor([1, 2])} for _ in images]

    def step() -> tuple[list[Tensor], dict[str, Tensor], dict[str, Tensor]]:
        torch.manual_seed(0)  # which proposals are sampled
        model.train().zero_grad()
        losses = model(images, targets)
        sum(losses.values()).backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        with torch.inference_mode():
            return gradients, losses, model.eval()(images)[0]

    model(images, targets)  # running statistics move with every step: the same start for both
    state = {key: value.clone() for key, value in model.state_dict().items()}
    theirs = step()
    model.load_state_dict(state)
    with compat.enable(), torch.profiler.profile() as profile:
        found = step()
    assert any(event.key == "dcn_tvm::roi_align_backward" for event in profile.key_averages())
    torch.testing.assert_close(found, theirs, atol=1e-4, rtol=1e-3)
    assert len(theirs[2]["boxes"]) > 0
