"""How far a fast kernel may be from its reference, and why. Every twin test takes its number from here."""

from __future__ import annotations

from typing import Final

#: Both compute in float64 and differ only in the order of sums; results are stored as float32 (24 bits).
SAME_FORMULA: Final = {"rtol": 2e-6, "atol": 1e-6}

#: Closed form against an SVD of the same system: its condition times float64, then float32 of thousands of ROI px.
CLOSED_FORM_AGAINST_SVD: Final = {"rtol": 1e-5, "atol": 2e-4}

#: Sums of four float32 products in float32 against float64; features of size about 1.
FLOAT32_BILINEAR: Final = {"rtol": 0.0, "atol": 2e-6}

#: grid_sample normalises coordinates to -1..1 in float32: about 1e-5 of a feature px, times the slope there.
GRID_SAMPLE: Final = {"rtol": 0.0, "atol": 2e-4}

#: Coordinates in float32 against float64: sums of a few hundred px are off by some 1e-5 px, times the slopes there.
FLOAT32_COORDINATES: Final = {"rtol": 0.0, "atol": 2e-4}

#: The same, rounded once more to 11 or 8 bits when the result is stored; values up to about 1.
STORED_AS_FLOAT16: Final = {"rtol": 2.0**-11, "atol": 2.5e-4}
STORED_AS_BFLOAT16: Final = {"rtol": 2.0**-8, "atol": 2.5e-4}

#: OpenCV's bilinear resize of bytes works with 11-bit weights, its area resize rounds sums of float32.
OPENCV_RESIZE_LEVELS: Final = 1

#: float32 against float64 Gaussians and unit vectors, values in -1..1.
SKELETON: Final = {"rtol": 0.0, "atol": 1e-5}

#: Joints and matrices in float64 through several products; px.
GEOMETRY_PX: Final = 1e-6

#: OpenCV's affine warp of bytes places each sample on a grid of 1/32 px, and rounds once more.
OPENCV_WARP_STEP_PX: Final = 1 / 32

#: One ONNX operator in PyTorch against ONNX Runtime: both float32, sums of some tens of values of about 2 in any order.
TORCH_OPERATOR: Final = {"rtol": 1e-5, "atol": 1e-5}

#: A whole network in float32 by PyTorch against ONNX Runtime: 80 convolutions, each with its own order of sums.
#: Features are of size 10, probabilities of 1.
TORCH_NETWORK: Final = {"rtol": 1e-4, "atol": 1e-4}

#: The same for positions in px of an input of 512 px.
TORCH_POSITION_PX: Final = 1e-2

#: The same on a GPU: cuDNN's fastest algorithms also transform (Winograd), which costs another digit.
TORCH_CUDA_NETWORK: Final = {"rtol": 1e-3, "atol": 1e-3}
TORCH_CUDA_POSITION_PX: Final = 5e-2

#: A frame px whose interpolated probability is this near to the threshold may fall on either side: float32 ROI
#: coordinates from a float64 corner of each tile, times a slope of at most 1 per px.
NEAR_THRESHOLD: Final = 1e-4

#: swscale's integer YUV to RGB drops 16 bits of each product before it adds them; the definition rounds once.
SWSCALE_LEVELS: Final = 3

#: Where swscale interpolates chroma (NV12 frames) and our kernel repeats it, after shrinking: only at edges of colour.
SWSCALE_INTERPOLATED_CHROMA_LEVELS: Final = 20

#: The segment graph whole and cut before its SegModule: positions in float32 against float64, so samples that lie some
#: 1e-5 of a px apart, and sums in another order.
CUT_GRAPH: Final = {"rtol": 0.0, "atol": 2e-4}
