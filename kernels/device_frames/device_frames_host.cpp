// The kernels of device_frames.cu as loops over their blocks, for the CPU: same names, same parameters.
#include "device_frames.cuh"

using namespace pose2seg;

#define HOST_ENTRY extern "C" __attribute__((visibility("default")))

namespace {

constexpr int STAGE_BYTES = 48 * 1024;

template <typename Frame, typename Input>
void letterbox(const FramePointers& frames, const LetterboxPlan& plan, void* out) {
  alignas(16) byte_t scratch[STAGE_BYTES];
  const int across = (plan.input_width + ROW_PIXELS - 1) / ROW_PIXELS;
  const int down = (plan.input_height + plan.tile_height - 1) / plan.tile_height;
  for (int index = 0; index < plan.frames; ++index) {
    for (int y = 0; y < down; ++y) {
      for (int x = 0; x < across; ++x) letterbox_block<Frame, Input>(frames, plan, out, x, y, index, scratch);
    }
  }
}

// Blocks that nobody's box touches are many, and cost the device next to nothing.
bool touched(const PersonRecord* records, int count, int x0, int y0, int x1, int y1) {
  for (int k = 0; k < count; ++k) {
    const PersonRecord& person = records[k];
    if (person.x0 < x1 && person.x1 > x0 && person.y0 < y1 && person.y1 > y0) return true;
  }
  return false;
}

template <typename T>
void paste(const PersonRecord* records, const T* probabilities, const PastePlan& plan, byte_t* frame, byte_t* alpha,
           unsigned* bits) {
  PasteScratch scratch;
  const int across = (plan.frame_width + ROW_PIXELS * TILES_ACROSS - 1) / (ROW_PIXELS * TILES_ACROSS);
  const int down = (plan.frame_height + TILE_ROWS - 1) / TILE_ROWS;
  for (int y = 0; y < down; ++y) {
    for (int x = 0; x < across; ++x) {
      for (int tile = 0; tile < TILES_ACROSS; ++tile) {
        const int x0 = (x * TILES_ACROSS + tile) * ROW_PIXELS, y0 = y * TILE_ROWS;
        if (!touched(records, plan.records, x0, y0, x0 + ROW_PIXELS, y0 + TILE_ROWS)) continue;
        paste_block<T>(records, probabilities, plan, frame, alpha, bits, x, y, tile, scratch);
      }
    }
  }
}

}  // namespace

#define LETTERBOX(name, frame_type, input_type)                                                                       \
  HOST_ENTRY void name(FramePointers frames, LetterboxPlan plan, void* out) {                                         \
    letterbox<frame_type, input_type>(frames, plan, out);                                                             \
  }

LETTERBOX(letterbox_rgb_u8, RgbFrame, ByteInput)
LETTERBOX(letterbox_rgb_f32, RgbFrame, NormalisedInput<float>)
LETTERBOX(letterbox_rgb_f16, RgbFrame, NormalisedInput<half_t>)
LETTERBOX(letterbox_yuv_u8, YuvFrame, ByteInput)
LETTERBOX(letterbox_yuv_f32, YuvFrame, NormalisedInput<float>)
LETTERBOX(letterbox_yuv_f16, YuvFrame, NormalisedInput<half_t>)

#define PASTE(name, type)                                                                                             \
  HOST_ENTRY void name(const PersonRecord* records, const type* probabilities, PastePlan plan,                        \
                       unsigned char* frame, unsigned char* alpha, unsigned* bits) {                                  \
    paste<type>(records, probabilities, plan, frame, alpha, bits);                                                    \
  }

PASTE(paste_and_blend_f32, float)
PASTE(paste_and_blend_f16, half_t)

// For the test that both sides lay the structures out alike.
HOST_ENTRY int size_of(int which) {
  const int sizes[] = {(int)sizeof(FramePointers), (int)sizeof(LetterboxPlan), (int)sizeof(PersonRecord),
                       (int)sizeof(PastePlan)};
  return sizes[which];
}
