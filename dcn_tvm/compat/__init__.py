"""Models that call torchvision's ops run on these kernels: one call does it, one undoes it.

    handle = dcn_tvm.compat.enable()      # or: with dcn_tvm.compat.enable(): ...
    model(images)                         # Faster R-CNN, DBNet, anything with a DeformConv2d
    handle.disable()                      # or dcn_tvm.compat.disable()

`torchvision::deform_conv2d`, `roi_pool`, `roi_align`, `ps_roi_pool` and `ps_roi_align` are replaced
in torch's dispatcher, below every caller: functions that were imported before, layers, scripted
functions, exported programs, compiled models. Results, strides, autocast and errors are
torchvision's, gradients too, only those asked for are computed, and calls are deterministic. What
these kernels refuse goes to torchvision's.

What differs, beside roundings:

- On a CPU bfloat16 works, and so do boxes of another floating type and deform_conv2d under
  autocast, where torchvision raises errors; float16 is summed in float32.
- A box with a corner that is not finite gives NaN, and so does an offset that is NaN; a pixel that
  is NaN gives NaN to the maximum of its bin. torchvision gives numbers.
- A box of an image that is not there is a ValueError; torchvision reads other memory.
- The gradient of ps_roi_pool is that of its result also for boxes at the last row and column.
- ps_roi_align of a box of no size is 0, where torchvision divides 0 by 0.
- Forward-mode differentiation is an error, where torchvision's tangent is 0.
- The first call of a channel configuration compiles its kernels.

A compiled function keeps the kernels with which it was compiled (`torch.compiler.reset()` forgets
them); torch's compile caches on disk keep the two apart.
"""

from dcn_tvm.compat.switch import Replacement, disable, enable, status

__all__ = ["Replacement", "disable", "enable", "status"]
