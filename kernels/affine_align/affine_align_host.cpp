// The same arithmetic on the CPU, all people of a call at once: what PyTorch's CPU operator runs and what tests compare.
// Float and double only: a CPU converts arrays of halves faster than it converts each of four taps.
//
// Arrays as in affine_align.cu, which the caller has checked; N may be 0. Work is cut into units of one person and a
// share of the channels (NCHW) or rows (NHWC), which threads take in turn.
#include <atomic>
#include <thread>
#include <vector>

#include "affine_align.cuh"

namespace {

using namespace pose2seg;

constexpr int UNIT_CHANNELS = 16;
constexpr int UNIT_ROWS = 8;
constexpr int BLOCK = 256;  // px whose taps are kept while the channels go by

template <typename Unit> void in_threads(int units, int threads, const Unit& unit) {
  std::atomic<int> next{0};
  const auto work = [&] {
    for (int i = next++; i < units; i = next++) unit(i);
  };
  std::vector<std::thread> others;
  for (int i = 1; i < threads && i < units; ++i) others.emplace_back(work);
  work();
  for (auto& other : others) other.join();
}

int shares(int all, int of) { return (all + of - 1) / of; }

// Taps of up to BLOCK px that lie inside the map, as columns, so that the loop over them has no branch.
template <typename A> struct tap_list {
  int count = 0, px[BLOCK], tl[BLOCK], tr[BLOCK], bl[BLOCK], br[BLOCK];
  A weight_tl[BLOCK], weight_tr[BLOCK], weight_bl[BLOCK], weight_br[BLOCK];

  void fill(const A* theta, int begin, int end, int S, int H, int W) {
    count = 0;
    for (int p = begin; p < end; ++p) {
      const taps_t<A> taps = make_taps(theta, p % S, p / S, H, W);
      if (!taps.inside) continue;
      px[count] = p;
      tl[count] = taps.top_left, tr[count] = taps.top_right;
      bl[count] = taps.bottom_left, br[count] = taps.bottom_right;
      weight_tl[count] = taps.weight_tl, weight_tr[count] = taps.weight_tr;
      weight_bl[count] = taps.weight_bl, weight_br[count] = taps.weight_br;
      ++count;
    }
  }
};

// One person's channels first..last into planes of S*S; `out` is the person's first plane and holds zeros.
template <typename T>
void align_planes(const T* features, const arithmetic_t<T>* theta, int image, int first, int last, int C, int H, int W,
                  int S, T* out) {
  using A = arithmetic_t<T>;
  const long long plane = (long long)H * W, area = (long long)S * S;
  tap_list<A> taps;
  for (int begin = 0; begin < S * S; begin += BLOCK) {
    taps.fill(theta, begin, begin + BLOCK < S * S ? begin + BLOCK : S * S, S, H, W);
    for (int c = first; c < last; ++c) {
      const T* map = features + ((long long)image * C + c) * plane;
      T* window = out + c * area;
      for (int i = 0; i < taps.count; ++i)
        window[taps.px[i]] = from_arithmetic<T>(
            taps.weight_tl[i] * to_arithmetic(map[taps.tl[i]]) + taps.weight_tr[i] * to_arithmetic(map[taps.tr[i]]) +
            taps.weight_bl[i] * to_arithmetic(map[taps.bl[i]]) + taps.weight_br[i] * to_arithmetic(map[taps.br[i]]));
    }
  }
}

// One row of one person, px by px with all channels; `step` is the distance of neighbouring px of the window.
template <typename T>
void align_row(const T* features, const arithmetic_t<T>* theta, int image, int v, int C, int H, int W, int S, T* out,
               int step) {
  using A = arithmetic_t<T>;
  const T* map = features + (long long)image * H * W * C;
  for (int u = 0; u < S; ++u, out += step) {
    const taps_t<A> taps = make_taps(theta, u, v, H, W);
    if (!taps.inside) continue;
    const T* tl = map + (long long)taps.top_left * C;
    const T* tr = map + (long long)taps.top_right * C;
    const T* bl = map + (long long)taps.bottom_left * C;
    const T* br = map + (long long)taps.bottom_right * C;
    for (int c = 0; c < C; ++c)
      out[c] = from_arithmetic<T>(
          blend(taps, to_arithmetic(tl[c]), to_arithmetic(tr[c]), to_arithmetic(bl[c]), to_arithmetic(br[c])));
  }
}

struct range_t {
  int first, last;
};

// The whole numbers of low..high and one more at each end, within first..last; cut as floats: far joints exceed int.
range_t around(float low, float high, int first, int last) {
  return {low > (float)first + 1 ? (low < (float)last ? (int)low - 1 : last) : first,
          high < (float)last - 2 ? (high > (float)first - 2 ? (int)high + 3 : first) : last};
}

// One person's maps in rows first..last: store(channel, u, v, value) for what is not zero. A map is looked at only where
// its joint or limb can be.
template <typename Store> void draw(const float* joints, int S, int first, int last, const Store& store) {
  constexpr float RADIUS_PX = 9.2f;  // sqrt(HEATMAP_VARIANCE_2 * HEATMAP_CUTOFF), and a little
  for (int k = 0; k < JOINTS; ++k) {
    const float* joint = joints + 3 * k;
    if (!present(joint)) continue;
    const range_t columns = around(joint[0] - RADIUS_PX, joint[0] + RADIUS_PX, 0, S);
    const range_t rows = around(joint[1] - RADIUS_PX, joint[1] + RADIUS_PX, first, last);
    for (int v = rows.first; v < rows.last; ++v)
      for (int u = columns.first; u < columns.last; ++u) {
        const float value = joint_value(joint, u, v);
        if (value != 0) store(k, u, v, value);
      }
  }
  for (int limb = 0; limb < LIMBS; ++limb) {
    const float* a = joints + 3 * limb_joint(limb, 0);
    const float* b = joints + 3 * limb_joint(limb, 1);
    if (!present(a) || !present(b)) continue;
    const range_t columns = around((a[0] < b[0] ? a[0] : b[0]) - LIMB_HALF_WIDTH_PX,
                                   (a[0] < b[0] ? b[0] : a[0]) + LIMB_HALF_WIDTH_PX, 0, S);
    const range_t rows = around((a[1] < b[1] ? a[1] : b[1]) - LIMB_HALF_WIDTH_PX,
                                (a[1] < b[1] ? b[1] : a[1]) + LIMB_HALF_WIDTH_PX, first, last);
    for (int v = rows.first; v < rows.last; ++v)
      for (int u = columns.first; u < columns.last; ++u) {
        const direction_t along = limb_value(joints, limb, u, v);
        if (along.x == 0 && along.y == 0) continue;
        store(JOINTS + 2 * limb, u, v, along.x);
        store(JOINTS + 2 * limb + 1, u, v, along.y);
      }
  }
}

template <typename T>
void forward_nchw(const T* features, const arithmetic_t<T>* theta, const int* roi_image, int N, int B, int C, int H,
                  int W, int S, T* out, int threads) {
  const int groups = shares(C, UNIT_CHANNELS);
  in_threads(N * groups, threads, [=](int unit) {
    const int n = unit / groups, first = unit % groups * UNIT_CHANNELS;
    if (image_exists(roi_image[n], B))
      align_planes(features, theta + 6ll * n, roi_image[n], first, first + UNIT_CHANNELS < C ? first + UNIT_CHANNELS : C,
                   C, H, W, S, out + (long long)n * C * S * S);
  });
}

template <typename T>
void forward_nhwc(const T* features, const arithmetic_t<T>* theta, const int* roi_image, int N, int B, int C, int H,
                  int W, int S, T* out, int threads) {
  const int groups = shares(S, UNIT_ROWS);
  in_threads(N * groups, threads, [=](int unit) {
    const int n = unit / groups, first = unit % groups * UNIT_ROWS;
    if (!image_exists(roi_image[n], B)) return;
    for (int v = first; v < S && v < first + UNIT_ROWS; ++v)
      align_row(features, theta + 6ll * n, roi_image[n], v, C, H, W, S, out + ((long long)n * S + v) * S * C, C);
  });
}

template <typename T>
void skeleton_nchw(const T* features, const float* theta, const int* roi_image, const float* joints, int N, int B, int C,
                   int H, int W, int S, T* out, int threads) {
  const long long area = (long long)S * S;
  const int groups = shares(C, UNIT_CHANNELS) + 1;  // the last draws the skeleton
  in_threads(N * groups, threads, [=](int unit) {
    const int n = unit / groups, first = unit % groups * UNIT_CHANNELS;
    const float* person = joints + 3ll * JOINTS * n;
    T* maps = out + (long long)n * (C + SKELETON_CHANNELS) * area;
    if (unit % groups < groups - 1) {
      if (image_exists(roi_image[n], B))
        align_planes(features, theta + 6ll * n, roi_image[n], first,
                     first + UNIT_CHANNELS < C ? first + UNIT_CHANNELS : C, C, H, W, S, maps);
      return;
    }
    draw(person, S, 0, S, [=](int channel, int u, int v, float value) {
      maps[(C + channel) * area + (long long)v * S + u] = from_arithmetic<T>(value);
    });
  });
}

template <typename T>
void skeleton_nhwc(const T* features, const float* theta, const int* roi_image, const float* joints, int N, int B, int C,
                   int H, int W, int S, T* out, int threads) {
  const int groups = shares(S, UNIT_ROWS), all = C + SKELETON_CHANNELS;
  in_threads(N * groups, threads, [=](int unit) {
    const int n = unit / groups, first = unit % groups * UNIT_ROWS;
    const int last = first + UNIT_ROWS < S ? first + UNIT_ROWS : S;
    T* window = out + (long long)n * S * S * all;
    if (image_exists(roi_image[n], B))
      for (int v = first; v < last; ++v)
        align_row(features, theta + 6ll * n, roi_image[n], v, C, H, W, S, window + (long long)v * S * all, all);
    draw(joints + 3ll * JOINTS * n, S, first, last, [=](int channel, int u, int v, float value) {
      window[((long long)v * S + u) * all + C + channel] = from_arithmetic<T>(value);
    });
  });
}

template <typename A> void scatter(A* map, const taps_t<A>& taps, long long step, A gradient) {
  map[taps.top_left * step] += taps.weight_tl * gradient;
  map[taps.top_right * step] += taps.weight_tr * gradient;
  map[taps.bottom_left * step] += taps.weight_bl * gradient;
  map[taps.bottom_right * step] += taps.weight_br * gradient;
}

// Threads share the channels out among themselves, so that no two add to the same px.
template <typename T>
void backward_nchw(const T* gradient, const arithmetic_t<T>* theta, const int* roi_image, int N, int B, int C, int H,
                   int W, int S, arithmetic_t<T>* out, int threads) {
  using A = arithmetic_t<T>;
  const long long plane = (long long)H * W, area = (long long)S * S;
  in_threads(shares(C, UNIT_CHANNELS), threads, [=](int unit) {
    const int first = unit * UNIT_CHANNELS;
    for (int n = 0; n < N; ++n) {
      if (!image_exists(roi_image[n], B)) continue;
      for (int p = 0; p < S * S; ++p) {
        const taps_t<A> taps = make_taps(theta + 6ll * n, p % S, p / S, H, W);
        if (!taps.inside) continue;
        for (int c = first; c < C && c < first + UNIT_CHANNELS; ++c)
          scatter(out + ((long long)roi_image[n] * C + c) * plane, taps, 1,
                  to_arithmetic(gradient[((long long)n * C + c) * area + p]));
      }
    }
  });
}

template <typename T>
void backward_nhwc(const T* gradient, const arithmetic_t<T>* theta, const int* roi_image, int N, int B, int C, int H,
                   int W, int S, arithmetic_t<T>* out, int threads) {
  using A = arithmetic_t<T>;
  in_threads(shares(C, UNIT_CHANNELS), threads, [=](int unit) {
    const int first = unit * UNIT_CHANNELS;
    for (int n = 0; n < N; ++n) {
      if (!image_exists(roi_image[n], B)) continue;
      for (int p = 0; p < S * S; ++p) {
        const taps_t<A> taps = make_taps(theta + 6ll * n, p % S, p / S, H, W);
        if (!taps.inside) continue;
        for (int c = first; c < C && c < first + UNIT_CHANNELS; ++c)
          scatter(out + (long long)roi_image[n] * H * W * C + c, taps, C,
                  to_arithmetic(gradient[((long long)n * S * S + p) * C + c]));
      }
    }
  });
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default"))) void
#define FORWARD(LAYOUT, DTYPE, T)                                                                                     \
  EXPORT affine_align_##LAYOUT##_##DTYPE(const T* features, const arithmetic_t<T>* theta, const int* roi_image, int N, \
                                         int B, int C, int H, int W, int S, T* out, int threads) {                    \
    forward_##LAYOUT<T>(features, theta, roi_image, N, B, C, H, W, S, out, threads);                                  \
  }
#define SKELETON(LAYOUT, DTYPE, T)                                                                                    \
  EXPORT align_with_skeleton_##LAYOUT##_##DTYPE(const T* features, const float* theta, const int* roi_image,          \
                                                const float* joints, int N, int B, int C, int H, int W, int S,        \
                                                T* out, int threads) {                                                \
    skeleton_##LAYOUT<T>(features, theta, roi_image, joints, N, B, C, H, W, S, out, threads);                         \
  }
#define BACKWARD(LAYOUT, DTYPE, T)                                                                                    \
  EXPORT affine_align_backward_##LAYOUT##_##DTYPE(const T* gradient, const arithmetic_t<T>* theta,                    \
                                                  const int* roi_image, int N, int B, int C, int H, int W, int S,     \
                                                  arithmetic_t<T>* out, int threads) {                                \
    backward_##LAYOUT<T>(gradient, theta, roi_image, N, B, C, H, W, S, out, threads);                                 \
  }

FORWARD(nchw, f32, float)
FORWARD(nchw, f64, double)
FORWARD(nhwc, f32, float)
FORWARD(nhwc, f64, double)
SKELETON(nchw, f32, float)
SKELETON(nhwc, f32, float)
BACKWARD(nchw, f32, float)
BACKWARD(nchw, f64, double)
BACKWARD(nhwc, f32, float)
BACKWARD(nhwc, f64, double)

// The conversions, for the test that tries all bit patterns, and the limb table, for the one that compares it.
EXPORT half_to_float(const half_t* in, float* out, int count) {
  for (int i = 0; i < count; ++i) out[i] = to_arithmetic(in[i]);
}
EXPORT float_to_half(const float* in, half_t* out, int count) {
  for (int i = 0; i < count; ++i) out[i] = from_arithmetic<half_t>(in[i]);
}
EXPORT bfloat16_to_float(const bfloat16_t* in, float* out, int count) {
  for (int i = 0; i < count; ++i) out[i] = to_arithmetic(in[i]);
}
EXPORT float_to_bfloat16(const float* in, bfloat16_t* out, int count) {
  for (int i = 0; i < count; ++i) out[i] = from_arithmetic<bfloat16_t>(in[i]);
}
EXPORT limb_table(int* out) {
  for (int i = 0; i < 2 * LIMBS; ++i) out[i] = limb_joint(i / 2, i % 2);
}
