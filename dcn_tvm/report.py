"""What every piece of evidence states: the machine, the versions, and pages that show them."""

from __future__ import annotations

import base64
import importlib.metadata
import io
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dcn_tvm import target

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PACKAGES = (
    "dcn_tvm",
    "torch",
    "torchvision",
    "onnxruntime",
    "openvino",
    "apache-tvm",
    "apache-tvm-ffi",
)
TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Machine:
    """Where a measurement was taken."""

    device: str
    threads: int
    versions: dict[str, str]

    @classmethod
    def here(cls, device: str = "cpu") -> Machine:
        """Return this machine; its threads are those that torch uses now."""
        return cls(_name(device), torch.get_num_threads(), _versions())

    @property
    def line(self) -> str:
        """The machine in one line."""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        threads = f"{self.threads} thread{'s' * (self.threads != 1)}"
        return f"{self.device}, {threads}, {versions}"


def _name(device: str) -> str:
    """Return a processor's name; makers give several generations of CPUs the same one."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    cpu = target.detect()
    return f"{cpu.name} ({cpu.model})" if cpu.model else cpu.name


@cache
def _versions() -> dict[str, str]:
    """Return the versions of what is installed and matters for speed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def inline_png(figure: Figure, dots_per_inch: int = 110) -> str:
    """Return a figure as a `data:` URI, so that a page needs no other file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dots_per_inch, bbox_inches="tight")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def write_page(template: str, path: Path, **values: Any) -> Path:
    """Fill `templates/<template>` with values and write the page to `path`.

    Raises:
        jinja2.UndefinedError: the template wants a value that is not given.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(environment.get_template(template).render(**values), encoding="utf-8")
    return path
