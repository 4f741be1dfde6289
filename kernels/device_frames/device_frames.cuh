// Frames in device memory: letterbox into a network input, and people's masks over the frame.
//
// A block's work is written once, for a block of any number of threads: nvcc makes kernels of it, g++ builds it as a
// block of a single thread that holds all 32 px of a row, and that build is what the tests run. Arithmetic that decides
// a level or a bit is done in integers, or in float without fused operations, so that both builds agree.
//
// Convention: integer coordinates are pixel centres, RGB is three bytes a px, words of mask bits hold 32 neighbouring
// px of a row, the leftmost in bit 0.
#pragma once

#include "../native/half.cuh"

#ifdef __CUDACC__
#define UNROLLED _Pragma("unroll")
#define UNROLLED_BY_4 _Pragma("unroll 4")
#else
#define UNROLLED
#define UNROLLED_BY_4
#endif

namespace pose2seg {

typedef unsigned char byte_t;
typedef unsigned long long address_t;

// ------------------------------------------------------------------------------------------- threads, rows of 32 px

#ifdef __CUDA_ARCH__
constexpr int LANES = 1;  // px of a row of 32 that one thread holds
#else
constexpr int LANES = 32;
#endif
constexpr int ROW_PIXELS = 32;

HOST_DEVICE int lane_of(int slot) {
#ifdef __CUDA_ARCH__
  return (int)(threadIdx.x & 31u);
#else
  return slot;
#endif
}

HOST_DEVICE int first_thread() {
#ifdef __CUDA_ARCH__
  return (int)threadIdx.x;
#else
  return 0;
#endif
}

HOST_DEVICE int thread_count() {
#ifdef __CUDA_ARCH__
  return (int)blockDim.x;
#else
  return 1;
#endif
}

HOST_DEVICE int first_warp() { return first_thread() / 32; }

HOST_DEVICE int warp_count() {
#ifdef __CUDA_ARCH__
  return (int)(blockDim.x / 32u);
#else
  return 1;
#endif
}

HOST_DEVICE void wait_for_block() {
#ifdef __CUDA_ARCH__
  __syncthreads();
#endif
}

HOST_DEVICE void wait_for_warp() {
#ifdef __CUDA_ARCH__
  __syncwarp();
#endif
}

// One bit for each px of a row, from the threads that hold them.
HOST_DEVICE unsigned bits_of_row(const bool (&of_lane)[LANES]) {
#ifdef __CUDA_ARCH__
  return __ballot_sync(0xffffffffu, of_lane[0]);
#else
  unsigned bits = 0;
  for (int lane = 0; lane < LANES; ++lane) bits |= (unsigned)of_lane[lane] << lane;
  return bits;
#endif
}

HOST_DEVICE int lowest_bit(unsigned bits) {
#ifdef __CUDA_ARCH__
  return __ffs((int)bits) - 1;
#else
  return __builtin_ctz(bits);
#endif
}

HOST_DEVICE int smaller(int a, int b) { return a < b ? a : b; }
HOST_DEVICE int larger(int a, int b) { return a > b ? a : b; }
HOST_DEVICE int clamped(int value, int low, int high) { return smaller(larger(value, low), high); }

HOST_DEVICE int floor_of(float value) {
  const int truncated = (int)value;
  return truncated - (value < (float)truncated);
}

HOST_DEVICE unsigned packed_rgb(unsigned red, unsigned green, unsigned blue) { return red | green << 8 | blue << 16; }

HOST_DEVICE byte_t read_byte(const byte_t* from) {
#ifdef __CUDA_ARCH__
  return __ldg(from);
#else
  return *from;
#endif
}

HOST_DEVICE unsigned read_word(const byte_t* from) {  // at a multiple of 4
#ifdef __CUDA_ARCH__
  return __ldg(reinterpret_cast<const unsigned*>(from));
#else
  unsigned word;
  __builtin_memcpy(&word, from, 4);
  return word;
#endif
}

HOST_DEVICE void copy_16(byte_t* to, const byte_t* from) {  // both at multiples of 16
#ifdef __CUDA_ARCH__
  *reinterpret_cast<uint4*>(to) = __ldg(reinterpret_cast<const uint4*>(from));
#else
  __builtin_memcpy(to, from, 16);
#endif
}

// `count` px to `to`, one from each lane. A whole row at a multiple of 4 is one store.
HOST_DEVICE void store_row(byte_t* to, int count, const unsigned (&rgb)[LANES]) {
#ifdef __CUDA_ARCH__
  const int lane = lane_of(0);
  if (count == ROW_PIXELS && ((address_t)to & 3u) == 0) {
    // Word j holds bytes 4 j ... 4 j + 3: the end of px j + j / 3, and the start of the next.
    const int pixel = lane + lane / 3;
    const unsigned skipped = 8u * (unsigned)(lane % 3);
    const unsigned low = __shfl_sync(0xffffffffu, rgb[0], pixel), high = __shfl_sync(0xffffffffu, rgb[0], pixel + 1);
    if (lane < 24) *reinterpret_cast<unsigned*>(to + 4 * lane) = low >> skipped | high << (24u - skipped);
  } else if (lane < count) {
    to[3 * lane] = (byte_t)rgb[0];
    to[3 * lane + 1] = (byte_t)(rgb[0] >> 8);
    to[3 * lane + 2] = (byte_t)(rgb[0] >> 16);
  }
#else
  for (int lane = 0; lane < count; ++lane) {
    to[3 * lane] = (byte_t)rgb[lane];
    to[3 * lane + 1] = (byte_t)(rgb[lane] >> 8);
    to[3 * lane + 2] = (byte_t)(rgb[lane] >> 16);
  }
#endif
}

// -------------------------------------------------------------------------------------------------------- letterbox

constexpr int FRAMES_PER_LAUNCH = 8;

// The first byte of each frame's px, or of its luma and of its chroma.
struct FramePointers {
  const byte_t* pixels[FRAMES_PER_LAUNCH];
  const byte_t* chroma[FRAMES_PER_LAUNCH];
};

// What all frames of a launch share. Sides are 1..32767 px, so that products of two fit 32 bits.
struct LetterboxPlan {
  int frame_height, frame_width;
  int content_height, content_width;
  int input_height, input_width;
  int tile_height;  // rows of the input that one block makes
  int stage_bytes;  // scratch of a block
  long long row_stride;  // bytes, of RGB or of luma
  long long chroma_row_stride, chroma_pixel_stride, chroma_channel_stride;  // bytes; V lies a channel stride after U
  // YUV to RGB in 13 bits: 8 x luma offset; luma; V in red; U in blue; U and V in green
  int luma_offset_8, luma_scale, red_v, blue_u, green_u, green_v;
  float mean[3], inverse_deviation[3];  // of normalised outputs, in levels
  int frames;

  HOST_DEVICE bool copies() const { return content_height == frame_height && content_width == frame_width; }
  HOST_DEVICE bool shrinks() const { return content_height <= frame_height && content_width <= frame_width; }
};

struct RgbPixel {
  unsigned red, green, blue;
};

struct RgbRow {
  const byte_t* first;  // of px 0

  HOST_DEVICE RgbPixel at(int x) const {
    const byte_t* pixel = first + 3 * (long long)x;
    return {pixel[0], pixel[1], pixel[2]};
  }
};

HOST_DEVICE unsigned level_of(int value) { return (unsigned)clamped(value, 0, 255); }

// swscale's arithmetic on x86 for planar 4:2:0 (libswscale/yuv2rgb.c, x86/yuv_2_rgb.asm): each product loses its lower
// 16 bits before the sum. The host's decoder gives these very levels.
HOST_DEVICE RgbPixel rgb_of_yuv(const LetterboxPlan& plan, int luma, int u, int v) {
  const int y = (8 * luma - plan.luma_offset_8) * plan.luma_scale >> 16;
  const int u_8 = 8 * u - 1024, v_8 = 8 * v - 1024;
  return {level_of(y + (v_8 * plan.red_v >> 16)),
          level_of(y + (u_8 * plan.green_u >> 16) + (v_8 * plan.green_v >> 16)),
          level_of(y + (u_8 * plan.blue_u >> 16))};
}

struct YuvRow {
  const LetterboxPlan* plan;
  const byte_t* luma;
  const byte_t* chroma;

  HOST_DEVICE RgbPixel at(int x) const {
    const byte_t* u = chroma + (x >> 1) * plan->chroma_pixel_stride;
    return rgb_of_yuv(*plan, read_byte(luma + x), read_byte(u), read_byte(u + plan->chroma_channel_stride));
  }
};

// Stretch of source px that a stretch of target px is made from.
struct Span {
  int first, count;
};

HOST_DEVICE Span area_span(int first, int last, int targets, int sources) {
  const int low = first * sources / targets;
  return {low, ((last + 1) * sources - 1) / targets - low + 1};
}

// Bilinear: the px left of target px `index` (-1 ... sources - 1), and the weight of the one right of it in 1/2048.
struct Tap {
  int low, weight;
};

HOST_DEVICE Tap linear_tap(int index, int targets, int sources) {
  const int numerator = (2 * index + 1) * sources - targets, denominator = 2 * targets;
  const int low = numerator < 0 ? -1 : numerator / denominator;  // never below -1/2
  const int rest = numerator - low * denominator;
  return {low, (rest * 4096 + denominator) / (2 * denominator)};
}

HOST_DEVICE Span source_span(const LetterboxPlan& plan, int first, int last, int targets, int sources) {
  if (plan.copies()) return {first, last - first + 1};
  if (plan.shrinks()) return area_span(first, last, targets, sources);
  const int low = larger(linear_tap(first, targets, sources).low, 0);
  return {low, smaller(linear_tap(last, targets, sources).low + 1, sources - 1) - low + 1};
}

HOST_DEVICE float product(float a, float b) {  // never fused with what follows
#ifdef __CUDA_ARCH__
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

// One px of the content. `rows` gives source rows: rows.row(y).at(x).
template <typename Rows> HOST_DEVICE unsigned content_pixel(const LetterboxPlan& plan, const Rows& rows, int x, int y) {
  if (plan.copies()) {
    const RgbPixel pixel = rows.row(y).at(x);
    return packed_rgb(pixel.red, pixel.green, pixel.blue);
  }
  if (plan.shrinks()) {
    // Everything in units of 1 / content_width and 1 / content_height of a source px: sums are exact integers.
    const int width = plan.content_width, height = plan.content_height;
    const int left = x * plan.frame_width, right = left + plan.frame_width;
    const int top = y * plan.frame_height, bottom = top + plan.frame_height;
    const int first_x = left / width, last_x = (right - 1) / width;
    const int first_y = top / height, last_y = (bottom - 1) / height;
    const unsigned first_weight = (unsigned)(smaller((first_x + 1) * width, right) - left);
    const unsigned last_weight = last_x > first_x ? (unsigned)(right - last_x * width) : 0u;
    address_t red = 0, green = 0, blue = 0;
    for (int row = first_y; row <= last_y; ++row) {
      const unsigned weight = (unsigned)(smaller((row + 1) * height, bottom) - larger(row * height, top));
      const auto pixels = rows.row(row);
      const RgbPixel first = pixels.at(first_x), last = pixels.at(last_x);
      RgbPixel inner = {0, 0, 0};
      for (int column = first_x + 1; column < last_x; ++column) {
        const RgbPixel pixel = pixels.at(column);
        inner.red += pixel.red;
        inner.green += pixel.green;
        inner.blue += pixel.blue;
      }
      const unsigned whole = (unsigned)width;
      red += (address_t)weight * (first.red * first_weight + inner.red * whole + last.red * last_weight);
      green += (address_t)weight * (first.green * first_weight + inner.green * whole + last.green * last_weight);
      blue += (address_t)weight * (first.blue * first_weight + inner.blue * whole + last.blue * last_weight);
    }
    const float share = 1.0f / ((float)plan.frame_width * (float)plan.frame_height);
    return packed_rgb((unsigned)(product((float)red, share) + 0.5f), (unsigned)(product((float)green, share) + 0.5f),
                      (unsigned)(product((float)blue, share) + 0.5f));
  }
  // OpenCV's fixed point: weights in 1/2048 along both axes, and the same bits dropped on the way.
  const Tap tap_x = linear_tap(x, plan.content_width, plan.frame_width);
  const Tap tap_y = linear_tap(y, plan.content_height, plan.frame_height);
  const int last_x = plan.frame_width - 1, last_y = plan.frame_height - 1;
  const int left = larger(tap_x.low, 0), right = smaller(tap_x.low + 1, last_x);
  const auto upper = rows.row(larger(tap_y.low, 0));
  const auto lower = rows.row(smaller(tap_y.low + 1, last_y));
  const RgbPixel a = upper.at(left), b = upper.at(right), c = lower.at(left), d = lower.at(right);
  const unsigned wx = (unsigned)tap_x.weight, wy = (unsigned)tap_y.weight;
  const auto mixed = [wx, wy](unsigned p, unsigned q, unsigned r, unsigned s) {
    const unsigned up = (p * (2048u - wx) + q * wx) >> 4, down = (r * (2048u - wx) + s * wx) >> 4;
    return (((2048u - wy) * up >> 16) + (wy * down >> 16) + 2u) >> 2;
  };
  return packed_rgb(mixed(a.red, b.red, c.red, d.red), mixed(a.green, b.green, c.green, d.green),
                    mixed(a.blue, b.blue, c.blue, d.blue));
}

// A frame in memory, and how a rectangle of it gets into a block's scratch as RGB.
struct RgbFrame {
  const byte_t* pixels;
  const LetterboxPlan* plan;

  HOST_DEVICE RgbFrame(const FramePointers& frames, const LetterboxPlan& of, int index)
      : pixels(frames.pixels[index]), plan(&of) {}
  HOST_DEVICE RgbRow row(int y) const { return {pixels + y * plan->row_stride}; }

  struct Stage {  // aligned pieces of 16 bytes as they lie in memory, so each row starts 0..15 bytes late
    const byte_t* scratch;
    int stride;
    Span rows, columns;
    address_t start;  // of the rectangle, in memory
    long long row_stride;

    HOST_DEVICE RgbRow row(int y) const {
      const unsigned late = (unsigned)(start + (address_t)((y - rows.first) * row_stride)) & 15u;
      return {scratch + (y - rows.first) * stride + late - 3 * (long long)columns.first};
    }
  };

  static HOST_DEVICE int stride_of(const Span& columns) { return (3 * columns.count + 15 + 15) / 16 * 16; }

  HOST_DEVICE Stage stage(byte_t* scratch, const Span& rows, const Span& columns) const {
    const int stride = stride_of(columns), pieces = stride / 16;
    const byte_t* rectangle = pixels + rows.first * plan->row_stride + 3 * (long long)columns.first;
    const byte_t* end = pixels + (plan->frame_height - 1) * plan->row_stride + 3 * (long long)plan->frame_width;
    for (int i = first_thread(); i < rows.count * pieces; i += thread_count()) {
      const int row = i / pieces, piece = i - row * pieces;
      const byte_t* start = rectangle + row * plan->row_stride;
      const byte_t* from = start - ((address_t)start & 15u) + 16 * piece;
      byte_t* to = scratch + row * stride + 16 * piece;
      if ((address_t)from >= (address_t)pixels && (address_t)(from + 16) <= (address_t)end) {
        copy_16(to, from);
      } else {  // the very first and last bytes of the frame: what lies around is not ours to read
        for (int k = 0; k < 16; ++k) {
          if ((address_t)(from + k) >= (address_t)pixels && (address_t)(from + k) < (address_t)end) to[k] = from[k];
        }
      }
    }
    return {scratch, stride, rows, columns, (address_t)rectangle, plan->row_stride};
  }
};

struct YuvFrame {
  const byte_t* luma;
  const byte_t* chroma;
  const LetterboxPlan* plan;

  HOST_DEVICE YuvFrame(const FramePointers& frames, const LetterboxPlan& of, int index)
      : luma(frames.pixels[index]), chroma(frames.chroma[index]), plan(&of) {}
  HOST_DEVICE YuvRow row(int y) const {
    return {plan, luma + y * plan->row_stride, chroma + (y >> 1) * plan->chroma_row_stride};
  }

  struct Stage {
    const byte_t* scratch;
    int stride;
    Span rows, columns;

    HOST_DEVICE RgbRow row(int y) const {
      return {scratch + (y - rows.first) * stride - 3 * (long long)(columns.first & ~3)};
    }
  };

  static HOST_DEVICE int stride_of(const Span& columns) { return 12 * ((columns.count + 3 + 3) / 4); }

  // Four px at a time: a word of luma and, where the chroma is interleaved, one of chroma; three words of RGB.
  HOST_DEVICE Stage stage(byte_t* scratch, const Span& rows, const Span& columns) const {
    const int stride = stride_of(columns), start = columns.first & ~3;
    const int quads = (columns.first + columns.count - start + 3) / 4;
    const bool interleaved = plan->chroma_pixel_stride == 2 && plan->chroma_channel_stride == 1;
    for (int i = first_thread(); i < rows.count * quads; i += thread_count()) {
      const int row = i / quads, x = start + 4 * (i - row * quads), y = rows.first + row;
      const byte_t* luma_row = luma + y * plan->row_stride;
      const byte_t* chroma_row = chroma + (y >> 1) * plan->chroma_row_stride;
      unsigned rgb[4];
      const bool whole = x + 3 < plan->frame_width && interleaved;
      if (whole && (((address_t)(luma_row + x) | (address_t)(chroma_row + x)) & 3u) == 0) {
        const unsigned y4 = read_word(luma_row + x), uv2 = read_word(chroma_row + x);
        UNROLLED for (int k = 0; k < 4; ++k) {
          const unsigned uv = k < 2 ? uv2 : uv2 >> 16;
          const RgbPixel pixel = rgb_of_yuv(*plan, (int)(y4 >> 8 * k & 255u), (int)(uv & 255u), (int)(uv >> 8 & 255u));
          rgb[k] = packed_rgb(pixel.red, pixel.green, pixel.blue);
        }
      } else {
        const YuvRow pixels = {plan, luma_row, chroma_row};
        UNROLLED for (int k = 0; k < 4; ++k) {
          const RgbPixel pixel = pixels.at(smaller(x + k, plan->frame_width - 1));
          rgb[k] = packed_rgb(pixel.red, pixel.green, pixel.blue);
        }
      }
      unsigned* to = reinterpret_cast<unsigned*>(scratch + row * stride + 3 * (x - start));
      to[0] = rgb[0] | rgb[1] << 24;
      to[1] = rgb[1] >> 8 | rgb[2] << 16;
      to[2] = rgb[2] >> 16 | rgb[3] << 8;
    }
    return {scratch, stride, rows, columns};
  }
};

// Where a row of 32 px of the network input goes: bytes (H, W, 3), or normalised planes (3, H, W).
struct ByteInput {
  byte_t* start;

  HOST_DEVICE ByteInput(void* out, const LetterboxPlan& plan, int index)
      : start(static_cast<byte_t*>(out) + 3 * (long long)index * plan.input_height * plan.input_width) {}
  HOST_DEVICE void store(const LetterboxPlan& plan, int x, int y, int count, const unsigned (&rgb)[LANES]) const {
    store_row(start + 3 * ((long long)y * plan.input_width + x), count, rgb);
  }
};

template <typename T> struct NormalisedInput {
  T* start;

  HOST_DEVICE NormalisedInput(void* out, const LetterboxPlan& plan, int index)
      : start(static_cast<T*>(out) + 3 * (long long)index * plan.input_height * plan.input_width) {}
  HOST_DEVICE void store(const LetterboxPlan& plan, int x, int y, int count, const unsigned (&rgb)[LANES]) const {
    const long long plane = (long long)plan.input_height * plan.input_width;
    UNROLLED for (int channel = 0; channel < 3; ++channel) {
      T* row = start + channel * plane + (long long)y * plan.input_width + x;
      for (int slot = 0; slot < LANES; ++slot) {
        const float level = (float)(rgb[slot] >> 8 * channel & 255u);
        if (lane_of(slot) < count) {
          row[lane_of(slot)] =
              from_arithmetic<T>(product(level - plan.mean[channel], plan.inverse_deviation[channel]));
        }
      }
    }
  }
};

template <typename Rows, typename Input>
HOST_DEVICE void fill_tile(const LetterboxPlan& plan, const Rows& rows, const Input& input, int x0, int y0, int y1) {
  const int count = smaller(ROW_PIXELS, plan.input_width - x0);
  for (int y = y0 + first_warp(); y < y1; y += warp_count()) {
    unsigned rgb[LANES];
    UNROLLED for (int slot = 0; slot < LANES; ++slot) {
      const int x = x0 + lane_of(slot);
      rgb[slot] = x < plan.content_width && y < plan.content_height ? content_pixel(plan, rows, x, y) : 0u;
    }
    input.store(plan, x0, y, count, rgb);
  }
}

// One block: 32 x tile_height px of one frame's network input. The source px go through scratch where they fit.
template <typename Frame, typename Input>
HOST_DEVICE void letterbox_block(const FramePointers& frames, const LetterboxPlan& plan, void* out, int block_x,
                                 int block_y, int index, byte_t* scratch) {
  const Input input(out, plan, index);
  const Frame frame(frames, plan, index);
  const int x0 = block_x * ROW_PIXELS, y0 = block_y * plan.tile_height;
  const int y1 = smaller(y0 + plan.tile_height, plan.input_height);
  const int last_x = smaller(x0 + ROW_PIXELS, plan.content_width) - 1, last_y = smaller(y1, plan.content_height) - 1;
  if (last_x < x0 || last_y < y0) {  // padding only, nothing is read
    fill_tile(plan, frame, input, x0, y0, y1);
    return;
  }
  const Span columns = source_span(plan, x0, last_x, plan.content_width, plan.frame_width);
  const Span rows = source_span(plan, y0, last_y, plan.content_height, plan.frame_height);
  if ((long long)rows.count * Frame::stride_of(columns) > plan.stage_bytes) {
    fill_tile(plan, frame, input, x0, y0, y1);
    return;
  }
  const auto staged = frame.stage(scratch, rows, columns);
  wait_for_block();
  fill_tile(plan, staged, input, x0, y0, y1);
}

// -------------------------------------------------------------------------------------------------- paste and blend

constexpr int TILE_ROWS = 8;     // of the tile of 32 x 8 px that a warp works on
constexpr int TILES_ACROSS = 4;  // tiles, and warps, of a block, side by side
constexpr int STAGED_PEOPLE = 32;

// One person, 64 bytes, made on the host; people lie in the order in which they are painted.
struct PersonRecord {
  float roi_from_frame[6];
  int x0, y0, x1, y1;  // box in frame px, end exclusive
  int first_word;      // of this person's bits: (x1 + 31) / 32 - x0 / 32 columns of words, y1 - y0 words down each
  int index;           // row of the probabilities
  unsigned color;      // packed RGB
  int plane;           // of the alpha planes
  int unused[2];
};

struct PastePlan {
  int people, size;  // rows of the probabilities, side of one
  int records;
  int frame_height, frame_width;
  float threshold;
  unsigned opacity;            // in 1 / 2^24
  long long frame_row_stride;  // bytes
  long long alpha_plane_stride, alpha_row_stride;
  long long words;  // that fit the output
  int alpha_planes;
  int exclusive;  // not 0: a px that several people claim goes to the surest of them
};

template <typename T> HOST_DEVICE float tap(const T* map, int place, bool inside) {
  return inside ? to_arithmetic(map[place]) : 0.0f;
}

// Interpolated at ROI px (u, v); -1 where it is not wanted or all is zero around, NaN where a NaN has a share. No
// branches: the loads of several rows are under way before the first is needed.
template <typename T> HOST_DEVICE float probability_at(const T* map, int size, float u, float v, bool wanted) {
  const float end = (float)size;
  const bool near = wanted & (u > -1.0f) & (u < end) & (v > -1.0f) & (v < end);
#ifndef __CUDA_ARCH__
  if (!near) return -1.0f;
#endif
  const int left = near ? floor_of(u) : -2, top = near ? floor_of(v) : -2;
  const float right_share = u - (float)left, lower_share = v - (float)top;
  const bool has_left = (unsigned)left < (unsigned)size, has_right = (unsigned)(left + 1) < (unsigned)size;
  const bool has_top = (unsigned)top < (unsigned)size, has_bottom = (unsigned)(top + 1) < (unsigned)size;
  const int place = top * size + left;
  const float a = tap(map, place, has_top & has_left), b = tap(map, place + 1, has_top & has_right);
  const float c = tap(map, place + size, has_bottom & has_left), d = tap(map, place + size + 1, has_bottom & has_right);
  // Between equal values exactly that value: people who are equally sure stay so, wherever their windows lie.
  const float upper = a + (b - a) * right_share, lower = c + (d - c) * right_share;
  return near ? upper + (lower - upper) * lower_share : -1.0f;
}

// What one look at all ROI px that a tile's px interpolate says of the tile: inside a person, and away from everybody,
// nothing needs to be interpolated.
enum class Cover { NONE, PARTLY, ALL };

template <typename T>
HOST_DEVICE Cover cover_of_tile(const T* map, int size, const float* m, float u0, float v0, float threshold) {
  constexpr float ACROSS = ROW_PIXELS - 1, DOWN = TILE_ROWS - 1, FAR = 1e6f;
  const float u_low = u0 + (m[0] < 0 ? m[0] * ACROSS : 0) + (m[1] < 0 ? m[1] * DOWN : 0);
  const float u_high = u0 + (m[0] > 0 ? m[0] * ACROSS : 0) + (m[1] > 0 ? m[1] * DOWN : 0);
  const float v_low = v0 + (m[3] < 0 ? m[3] * ACROSS : 0) + (m[4] < 0 ? m[4] * DOWN : 0);
  const float v_high = v0 + (m[3] > 0 ? m[3] * ACROSS : 0) + (m[4] > 0 ? m[4] * DOWN : 0);
  if (!(u_low > -FAR && u_high < FAR && v_low > -FAR && v_high < FAR)) return Cover::PARTLY;  // NaN, too
  const int end = size - 1;
  const int left = floor_of(u_low), right = floor_of(u_high) + 1;
  const int top = floor_of(v_low), bottom = floor_of(v_high) + 1;
  const int first_u = larger(left, 0), columns = smaller(right, end) - first_u + 1;
  const int first_v = larger(top, 0), count = columns * (smaller(bottom, end) - first_v + 1);
  if (columns <= 0 || count <= 0) return Cover::NONE;
  if (count > 4 * 32) return Cover::PARTLY;  // a tiny person: looking would cost more than it saves
  bool some[LANES], all[LANES];
  for (int slot = 0; slot < LANES; ++slot) {
    some[slot] = false;
    all[slot] = true;
    for (int i = lane_of(slot); i < count; i += 32) {
      const int row = i / columns;
      const float value = to_arithmetic(map[(first_v + row) * size + first_u + i - row * columns]);
      some[slot] |= value > threshold;
      all[slot] &= (value > threshold) & (value <= 2.0f);  // infinity times a weight of 0 would be NaN
    }
  }
  if (bits_of_row(some) == 0) return Cover::NONE;
  const bool zeros_around = left < 0 || right > end || top < 0 || bottom > end;
  return bits_of_row(all) == 0xffffffffu && !zeros_around ? Cover::ALL : Cover::PARTLY;
}

HOST_DEVICE void tint(byte_t* rgb, unsigned color, unsigned opacity) {
  UNROLLED for (int channel = 0; channel < 3; ++channel) {
    const unsigned target = color >> 8 * channel & 255u;
    rgb[channel] = (byte_t)((((1u << 24) - opacity) * rgb[channel] + opacity * target + (1u << 23)) >> 24);
  }
}

struct alignas(16) PasteScratch {
  PersonRecord people[STAGED_PEOPLE];
  byte_t tiles[TILES_ACROSS][TILE_ROWS * 3 * ROW_PIXELS];
  int owners[TILES_ACROSS][TILE_ROWS * ROW_PIXELS];  // index of the person each px is left to, -1 where that is nobody
};

// The part of the frame that a warp works on.
struct Tile {
  int x0, y0, count, rows;  // first px, px across and down
};

// A bit for each of up to 32 people whose boxes touch the tile.
HOST_DEVICE unsigned people_who_touch(const PersonRecord* people, int here, const Tile& tile, int maps) {
  bool touches[LANES];
  for (int slot = 0; slot < LANES; ++slot) {
    const int k = lane_of(slot);
    touches[slot] = false;
    if (k < here) {
      const PersonRecord& person = people[k];
      touches[slot] = person.x0 < tile.x0 + tile.count && person.x1 > tile.x0 && person.y0 < tile.y0 + tile.rows &&
                      person.y1 > tile.y0 && (unsigned)person.index < (unsigned)maps;
    }
  }
  return bits_of_row(touches);
}

// Where several people's boxes touch a tile: leave each px to the surest of those who claim it, of equally sure ones to
// the one with the lowest index, and return true. Each probability is computed once, here: who is left a px does not
// depend on how two places in the code round. Each lane writes and later reads its own column of `owners`.
template <typename T>
HOST_DEVICE bool settle_tile(const PersonRecord* RESTRICT records, const T* RESTRICT probabilities,
                             const PastePlan& plan, const Tile& tile, int* owners) {
  bool some = false, several = false;
  for (int base = 0; base < plan.records; base += STAGED_PEOPLE) {
    const int here = smaller(STAGED_PEOPLE, plan.records - base);
    const unsigned touching = people_who_touch(records + base, here, tile, plan.people);
    several |= (touching & (touching - 1u)) != 0 || (some && touching != 0);
    some |= touching != 0;
  }
  if (!several) return false;
  float best[TILE_ROWS][LANES];
  UNROLLED for (int row = 0; row < TILE_ROWS; ++row) {
    for (int slot = 0; slot < LANES; ++slot) {
      best[row][slot] = -1.0f;
      owners[row * ROW_PIXELS + lane_of(slot)] = -1;
    }
  }
  for (int base = 0; base < plan.records; base += STAGED_PEOPLE) {
    const int here = smaller(STAGED_PEOPLE, plan.records - base);
    unsigned left = people_who_touch(records + base, here, tile, plan.people);
    for (; left != 0; left &= left - 1u) {
      const PersonRecord& person = records[base + lowest_bit(left)];
      const float* m = person.roi_from_frame;
      const T* map = probabilities + (long long)person.index * plan.size * plan.size;
      const float u0 = (float)((double)m[0] * tile.x0 + (double)m[1] * tile.y0 + (double)m[2]);
      const float v0 = (float)((double)m[3] * tile.x0 + (double)m[4] * tile.y0 + (double)m[5]);
      const Cover cover = cover_of_tile(map, plan.size, m, u0, v0, plan.threshold);
      if (cover == Cover::NONE) continue;
      const int first_row = larger(person.y0 - tile.y0, 0), end_row = smaller(person.y1 - tile.y0, tile.rows);
      UNROLLED for (int row = 0; row < TILE_ROWS; ++row) {
        for (int slot = 0; slot < LANES; ++slot) {
          const int lane = lane_of(slot), x = tile.x0 + lane, place = row * ROW_PIXELS + lane;
          const bool inside = (row >= first_row) & (row < end_row) & (x >= person.x0) & (x < person.x1) &
                              (lane < tile.count);
          const float value = probability_at(map, plan.size, u0 + (m[0] * (float)lane + m[1] * (float)row),
                                             v0 + (m[3] * (float)lane + m[4] * (float)row), inside);
          const bool claims = inside & ((cover == Cover::ALL) | (value > plan.threshold));
          if (claims && (value > best[row][slot] || (value == best[row][slot] && person.index < owners[place]))) {
            best[row][slot] = value;
            owners[place] = person.index;
          }
        }
      }
    }
  }
  return true;
}

// Move a tile of RGB between the frame and scratch: words where rows lie at multiples of 4, else bytes.
template <bool TO_SCRATCH>
HOST_DEVICE void move_tile(byte_t* frame, long long row_stride, int rows, int count, byte_t* tile) {
  constexpr int ROW_BYTES = 3 * ROW_PIXELS, ROW_WORDS = ROW_BYTES / 4;
  const int step = 32 / LANES;
  if (count == ROW_PIXELS && (((address_t)frame | (address_t)row_stride) & 3u) == 0) {
    UNROLLED for (int i = lane_of(0); i < TILE_ROWS * ROW_WORDS; i += step) {
      const int row = i / ROW_WORDS, word = i % ROW_WORDS;
      unsigned* there = reinterpret_cast<unsigned*>(frame + row * row_stride) + word;
      unsigned* here = reinterpret_cast<unsigned*>(tile) + i;
      if (row < rows) *(TO_SCRATCH ? here : there) = *(TO_SCRATCH ? there : here);
    }
  } else {
    for (int row = 0; row < rows; ++row) {
      for (int i = lane_of(0); i < 3 * count; i += step) {
        byte_t* there = frame + row * row_stride + i;
        byte_t* here = tile + row * ROW_BYTES + i;
        *(TO_SCRATCH ? here : there) = *(TO_SCRATCH ? there : here);
      }
    }
  }
  wait_for_warp();
}

// One block: 128 x 8 px of the frame, a warp for each 32 x 8 of them. Every px is read and written at most once,
// however many people lie over it, and words of bits that lie below one another are stored together.
template <typename T>
HOST_DEVICE void paste_block(const PersonRecord* RESTRICT records, const T* RESTRICT probabilities,
                             const PastePlan& plan, byte_t* frame, byte_t* alpha, unsigned* bits, int block_x,
                             int block_y, int tile, PasteScratch& scratch) {
  const int x0 = (block_x * TILES_ACROSS + tile) * ROW_PIXELS, y0 = block_y * TILE_ROWS;
  const int count = smaller(ROW_PIXELS, plan.frame_width - x0), rows = smaller(TILE_ROWS, plan.frame_height - y0);
  const Tile here_px = {x0, y0, count, rows};
  int* owners = scratch.owners[tile];
  const bool settled = plan.exclusive != 0 && settle_tile(records, probabilities, plan, here_px, owners);
  byte_t* corner = frame + y0 * plan.frame_row_stride + 3 * x0;  // unused without a frame
  byte_t* pixels = scratch.tiles[tile];
  bool loaded = false;
  for (int base = 0; base < plan.records; base += STAGED_PEOPLE) {
    const int here = smaller(STAGED_PEOPLE, plan.records - base);
    for (int piece = first_thread(); piece < 4 * here; piece += thread_count()) {
      copy_16(reinterpret_cast<byte_t*>(scratch.people) + 16 * piece,
              reinterpret_cast<const byte_t*>(records + base) + 16 * piece);
    }
    wait_for_block();
    unsigned left = people_who_touch(scratch.people, here, here_px, plan.people);
    for (; left != 0; left &= left - 1u) {
      const PersonRecord& person = scratch.people[lowest_bit(left)];
      const float* m = person.roi_from_frame;
      const T* map = probabilities + (long long)person.index * plan.size * plan.size;
      // The corner in double: far from the frame's origin, float would lose a ten-thousandth of a ROI px.
      const float u0 = (float)((double)m[0] * x0 + (double)m[1] * y0 + (double)m[2]);
      const float v0 = (float)((double)m[3] * x0 + (double)m[4] * y0 + (double)m[5]);
      const int first_row = larger(person.y0 - y0, 0), end_row = smaller(person.y1 - y0, rows);
      const Cover cover = settled ? Cover::PARTLY : cover_of_tile(map, plan.size, m, u0, v0, plan.threshold);
      unsigned own_rows[LANES] = {};  // bit r: row r of this lane's column is person
      unsigned words[LANES] = {};     // of row `lane`
      unsigned any = 0;
      if (cover != Cover::NONE) {
        UNROLLED_BY_4 for (int row = 0; row < TILE_ROWS; ++row) {
          bool inside[LANES];
          for (int slot = 0; slot < LANES; ++slot) {
            const int lane = lane_of(slot), x = x0 + lane;
            inside[slot] = (row >= first_row) & (row < end_row) & (x >= person.x0) & (x < person.x1) & (lane < count);
            if (settled) {
              inside[slot] = inside[slot] & (owners[row * ROW_PIXELS + lane] == person.index);
            } else if (cover == Cover::PARTLY) {
              inside[slot] = probability_at(map, plan.size, u0 + (m[0] * (float)lane + m[1] * (float)row),
                                            v0 + (m[3] * (float)lane + m[4] * (float)row), inside[slot]) >
                             plan.threshold;
            }
            own_rows[slot] |= (unsigned)inside[slot] << row;
          }
          const unsigned word = bits_of_row(inside);
          any |= word;
          for (int slot = 0; slot < LANES; ++slot) {
            if (lane_of(slot) == row) words[slot] = word;
          }
        }
      }
      const int column = (x0 >> 5) - (person.x0 >> 5);
      const long long top = person.first_word + (long long)column * (person.y1 - person.y0) + (y0 - person.y0);
      for (int slot = 0; slot < LANES; ++slot) {
        const int row = lane_of(slot);
        const bool fits = top + row >= 0 && top + row < plan.words;
        if (row >= first_row && row < end_row && fits) bits[top + row] = words[slot];
      }
      if (any == 0) continue;
      if (frame != nullptr) {
        if (!loaded) move_tile<true>(corner, plan.frame_row_stride, rows, count, pixels);
        loaded = true;
        for (int row = 0; row < TILE_ROWS; ++row) {
          for (int slot = 0; slot < LANES; ++slot) {
            byte_t* pixel = pixels + 3 * (row * ROW_PIXELS + lane_of(slot));
            if (own_rows[slot] >> row & 1u) tint(pixel, person.color, plan.opacity);
          }
        }
      }
      if (alpha != nullptr && (unsigned)person.plane < (unsigned)plan.alpha_planes) {
        byte_t* plane = alpha + person.plane * plan.alpha_plane_stride + y0 * plan.alpha_row_stride + x0;
        for (int row = 0; row < TILE_ROWS; ++row) {
          for (int slot = 0; slot < LANES; ++slot) {
            if (own_rows[slot] >> row & 1u) plane[row * plan.alpha_row_stride + lane_of(slot)] = 255;
          }
        }
      }
    }
    wait_for_block();  // before the next people take the places of these
  }
  if (loaded) move_tile<false>(corner, plan.frame_row_stride, rows, count, pixels);
}

}  // namespace pose2seg
