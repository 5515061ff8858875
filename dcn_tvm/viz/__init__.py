"""What deformable layers look at: recorded from any network, as positions, and as pictures.

`record_offsets` keeps what the layers of a network did in a forward pass; `sampling_points` and
`bin_boxes` turn that into positions; the `draw_...` functions draw them into matplotlib's axes.

Source: Dai et al., Deformable Convolutional Networks, figures 5 to 7.
"""

from dcn_tvm.viz.bins import SampledBins, bin_boxes
from dcn_tvm.viz.layers import SampledLayer, sampling_points
from dcn_tvm.viz.pictures import draw_bins, draw_offsets, draw_sampling_points, draw_times
from dcn_tvm.viz.recording import record_offsets

__all__ = [
    "SampledBins",
    "SampledLayer",
    "bin_boxes",
    "draw_bins",
    "draw_offsets",
    "draw_sampling_points",
    "draw_times",
    "record_offsets",
    "sampling_points",
]
