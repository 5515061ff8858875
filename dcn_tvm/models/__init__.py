"""The networks of the paper: ResNet backbones and four heads, each plain and deformable.

Every network trains end to end and is called as torchvision's of its kind. Layers that make their
own offsets, in a backbone (`dcn=...`) or in a head (`pool="deformable"`), may learn at a rate of
their own: see `dcn_tvm.nn.parameter_groups`. This package needs torchvision and is imported by its
own name: `import dcn_tvm` does not load it.
"""

try:
    import torchvision  # noqa: F401
except ImportError as error:
    raise ImportError("dcn_tvm.models needs torchvision: pip install 'dcn_tvm[models]'") from error

from dcn_tvm.models.aligned_inception_resnet import AlignedInceptionResNet, InceptionResidualBlock
from dcn_tvm.models.backbone import Backbone
from dcn_tvm.models.deeplab import DeepLab
from dcn_tvm.models.faster_rcnn import FasterRCNN
from dcn_tvm.models.options import DetectionOptions
from dcn_tvm.models.resnet import ResNet, resnet18, resnet34, resnet50, resnet101, resnet152
from dcn_tvm.models.rfcn import RFCN
from dcn_tvm.models.rpn import ClassAwareRPN
from dcn_tvm.models.sampling import RepeatableSampler

__all__ = [
    "RFCN",
    "AlignedInceptionResNet",
    "Backbone",
    "ClassAwareRPN",
    "DeepLab",
    "DetectionOptions",
    "FasterRCNN",
    "InceptionResidualBlock",
    "RepeatableSampler",
    "ResNet",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
]
