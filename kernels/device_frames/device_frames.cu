// Kernels of device_frames.cuh. Blocks: letterbox 256 threads, (input width / 32, input height / tile_height, frames);
// paste_and_blend 128 threads, (frame width / 128, frame height / 8).
#include "device_frames.cuh"

using namespace pose2seg;

extern __shared__ uint4 scratch[];

#define LETTERBOX(name, frame_type, input_type, blocks)                                                               \
  extern "C" __global__ void __launch_bounds__(256, blocks)                                                           \
      name(const __grid_constant__ FramePointers frames, const __grid_constant__ LetterboxPlan plan, void* out) {     \
    letterbox_block<frame_type, input_type>(frames, plan, out, (int)blockIdx.x, (int)blockIdx.y, (int)blockIdx.z,     \
                                            reinterpret_cast<byte_t*>(scratch));                                      \
  }

LETTERBOX(letterbox_rgb_u8, RgbFrame, ByteInput, 4)
LETTERBOX(letterbox_rgb_f32, RgbFrame, NormalisedInput<float>, 4)
LETTERBOX(letterbox_rgb_f16, RgbFrame, NormalisedInput<half_t>, 4)
LETTERBOX(letterbox_yuv_u8, YuvFrame, ByteInput, 3)
LETTERBOX(letterbox_yuv_f32, YuvFrame, NormalisedInput<float>, 3)
LETTERBOX(letterbox_yuv_f16, YuvFrame, NormalisedInput<half_t>, 3)

#define PASTE(name, type)                                                                                             \
  extern "C" __global__ void __launch_bounds__(128, 5)                                                                \
      name(const PersonRecord* records, const type* probabilities, const __grid_constant__ PastePlan plan,            \
           unsigned char* frame, unsigned char* alpha, unsigned* bits) {                                              \
    __shared__ PasteScratch staged;                                                                                   \
    paste_block<type>(records, probabilities, plan, frame, alpha, bits, (int)blockIdx.x, (int)blockIdx.y,             \
                      first_warp(), staged);                                                                          \
  }

PASTE(paste_and_blend_f32, float)
PASTE(paste_and_blend_f16, half_t)
