// The GPU kernels: which thread does what. Arithmetic is in affine_align.cuh; launch shapes in launch_shapes.py.
//
// Parameters are in the order inputs, int scalars, outputs: what TensorRT's ahead-of-time plugins pass.
//   features   [B, C, H, W] or, in kernels named _nhwc, [B, H, W, C]; dense
//   theta      [N, 2, 3], ROI px to feature index; float (double for f64)
//   roi_image  [N], the image of each person; outside 0..B-1 gives zeros and reads nothing
//   joints     [N, 17, 3] float, ROI px
// N is the grid's z and never 0. Offsets within one map fit an int (launch_shapes.py checks); everything else is 64 bit.
#include "affine_align.cuh"

namespace pose2seg {

constexpr int THREADS = 128;
constexpr int CHANNELS = 8;          // of one thread, NCHW: 32 loads that wait for nothing but the taps
constexpr int PIXELS = 2;            // of one thread, NHWC: 8 loads of 16 bytes
constexpr int FUSED_PIXELS = 4;      // of one thread, NHWC with skeleton: one channel each, 16 loads
constexpr int LIMBS_PER_THREAD = 4;  // NCHW with skeleton: 8 channels again
constexpr int JOINT_ROWS = (JOINTS + CHANNELS - 1) / CHANNELS;

struct where_t {
  int p, n;  // px of the window, person
};

// CHANNELS neighbouring channels at one px: neighbours in the warp are neighbours along u, and so are their stores.
template <typename T>
__device__ __forceinline__ void align_nchw(const T* RESTRICT features, const arithmetic_t<T>* RESTRICT theta, int image,
                                           int B, int C, int H, int W, int S, int c0, where_t at, T* RESTRICT out,
                                           long long out_plane) {
  using A = arithmetic_t<T>;
  taps_t<A> taps = {0, 0, 0, 0, 0, 0, 0, 0, false};
  if (image_exists(image, B)) taps = make_taps(theta + 6 * (long long)at.n, at.p % S, at.p / S, H, W);
  const int count = C - c0 < CHANNELS ? C - c0 : CHANNELS;
  if (!taps.inside) {
    for (int k = 0; k < count; ++k) out[k * out_plane] = from_arithmetic<T>((A)0);
    return;
  }
  const long long plane = (long long)H * W;
  const T* map = features + ((long long)image * C + c0) * plane;
  if (count == CHANNELS) {
    T read[CHANNELS][4];
#pragma unroll
    for (int k = 0; k < CHANNELS; ++k) {
      read[k][0] = map[k * plane + taps.top_left];
      read[k][1] = map[k * plane + taps.top_right];
      read[k][2] = map[k * plane + taps.bottom_left];
      read[k][3] = map[k * plane + taps.bottom_right];
    }
#pragma unroll
    for (int k = 0; k < CHANNELS; ++k)
      out[k * out_plane] =
          from_arithmetic<T>(blend(taps, to_arithmetic(read[k][0]), to_arithmetic(read[k][1]),
                                   to_arithmetic(read[k][2]), to_arithmetic(read[k][3])));
  } else {
    for (int k = 0; k < count; ++k) out[k * out_plane] = from_arithmetic<T>(sample(map + k * plane, taps, 1));
  }
}

// grid (ceil(S*S / 128), ceil(C / 8), N)
template <typename T>
__device__ __forceinline__ void forward_nchw(const T* RESTRICT features, const arithmetic_t<T>* RESTRICT theta,
                                             const int* RESTRICT roi_image, int B, int C, int H, int W, int S,
                                             T* RESTRICT out) {
  const where_t at = {(int)(blockIdx.x * THREADS + threadIdx.x), (int)blockIdx.z};
  if (at.p >= S * S) return;
  const int c0 = (int)blockIdx.y * CHANNELS;
  const long long area = (long long)S * S;
  align_nchw(features, theta, roi_image[at.n], B, C, H, W, S, c0, at, out + ((long long)at.n * C + c0) * area + at.p,
             area);
}

// grid (ceil(S*S / 128), ceil(C / 8) + 3 + 5, N): the last eight rows of blocks draw 17 joints and 19 limbs
template <typename T>
__device__ __forceinline__ void skeleton_nchw(const T* RESTRICT features, const float* RESTRICT theta,
                                              const int* RESTRICT roi_image, const float* RESTRICT joints, int B, int C,
                                              int H, int W, int S, T* RESTRICT out) {
  const where_t at = {(int)(blockIdx.x * THREADS + threadIdx.x), (int)blockIdx.z};
  if (at.p >= S * S) return;
  const long long area = (long long)S * S;
  out += (long long)at.n * (C + SKELETON_CHANNELS) * area + at.p;
  const int feature_rows = (C + CHANNELS - 1) / CHANNELS, row = (int)blockIdx.y - feature_rows;
  if (row < 0) {
    const int c0 = (int)blockIdx.y * CHANNELS;
    align_nchw(features, theta, roi_image[at.n], B, C, H, W, S, c0, at, out + c0 * area, area);
    return;
  }
  const float* person = joints + (long long)at.n * JOINTS * 3;
  const int u = at.p % S, v = at.p / S;
  out += C * area;
  if (row < JOINT_ROWS) {
    for (int k = row * CHANNELS; k < (row + 1) * CHANNELS && k < JOINTS; ++k)
      out[k * area] = from_arithmetic<T>(joint_value(person + 3 * k, u, v));
    return;
  }
  const int first = (row - JOINT_ROWS) * LIMBS_PER_THREAD;
  for (int limb = first; limb < first + LIMBS_PER_THREAD && limb < LIMBS; ++limb) {
    const direction_t along = limb_value(person, limb, u, v);
    out[(JOINTS + 2 * limb) * area] = from_arithmetic<T>(along.x);
    out[(JOINTS + 2 * limb + 1) * area] = from_arithmetic<T>(along.y);
  }
}

// grid (ceil(ceil(S*S / 2) * ceil(C / V) / 128), 1, N), V elements in 16 bytes: neighbours in the warp are neighbouring
// vectors of channels, so that four taps are four contiguous reads. Where C is no multiple of V: element by element.
template <typename T>
__device__ __forceinline__ void forward_nhwc(const T* RESTRICT features, const arithmetic_t<T>* RESTRICT theta,
                                             const int* RESTRICT roi_image, int B, int C, int H, int W, int S,
                                             T* RESTRICT out) {
  using A = arithmetic_t<T>;
  constexpr int V = widest<T>::value;
  using vector = vector_t<T, V>;
  const int vectors = (C + V - 1) / V, area = S * S, n = (int)blockIdx.z;
  const long long thread = (long long)blockIdx.x * THREADS + threadIdx.x;
  const int p0 = (int)(thread / vectors) * PIXELS, c0 = (int)(thread % vectors) * V;
  if (p0 >= area) return;
  const int image = roi_image[n];
  taps_t<A> taps[PIXELS];
#pragma unroll
  for (int k = 0; k < PIXELS; ++k) {
    taps[k] = {0, 0, 0, 0, 0, 0, 0, 0, false};
    if (image_exists(image, B)) taps[k] = make_taps(theta + 6 * (long long)n, (p0 + k) % S, (p0 + k) / S, H, W);
  }
  const T* map = features + (image_exists(image, B) ? (long long)image * H * W * C + c0 : 0);
  out += ((long long)n * area + p0) * C + c0;
  if (C % V == 0) {
    vector read[PIXELS][4];
#pragma unroll
    for (int k = 0; k < PIXELS; ++k)
      if (taps[k].inside) {
        read[k][0] = *reinterpret_cast<const vector*>(map + (long long)taps[k].top_left * C);
        read[k][1] = *reinterpret_cast<const vector*>(map + (long long)taps[k].top_right * C);
        read[k][2] = *reinterpret_cast<const vector*>(map + (long long)taps[k].bottom_left * C);
        read[k][3] = *reinterpret_cast<const vector*>(map + (long long)taps[k].bottom_right * C);
      }
#pragma unroll
    for (int k = 0; k < PIXELS; ++k) {
      vector result;
#pragma unroll
      for (int i = 0; i < V; ++i)
        result.lane[i] = from_arithmetic<T>(
            taps[k].inside ? blend(taps[k], to_arithmetic(read[k][0].lane[i]), to_arithmetic(read[k][1].lane[i]),
                                   to_arithmetic(read[k][2].lane[i]), to_arithmetic(read[k][3].lane[i]))
                           : (A)0);
      if (p0 + k < area) *reinterpret_cast<vector*>(out + (long long)k * C) = result;
    }
    return;
  }
  for (int k = 0; k < PIXELS && p0 + k < area; ++k)
    for (int i = 0; i < V && c0 + i < C; ++i)
      out[(long long)k * C + i] = from_arithmetic<T>(taps[k].inside ? sample(map + i, taps[k], C) : (A)0);
}

// grid (ceil(ceil(S*S / 4) * (C + 55) / 128), 1, N): neighbours in the warp are neighbouring channels. C + 55 is odd for
// every even C, so a px does not start on a vector's boundary and stores are single elements, side by side.
template <typename T>
__device__ __forceinline__ void skeleton_nhwc(const T* RESTRICT features, const float* RESTRICT theta,
                                              const int* RESTRICT roi_image, const float* RESTRICT joints, int B, int C,
                                              int H, int W, int S, T* RESTRICT out) {
  const int all = C + SKELETON_CHANNELS, area = S * S, n = (int)blockIdx.z;
  const long long thread = (long long)blockIdx.x * THREADS + threadIdx.x;
  const int p0 = (int)(thread / all) * FUSED_PIXELS, c = (int)(thread % all);
  if (p0 >= area) return;
  out += ((long long)n * area + p0) * all + c;
  float values[FUSED_PIXELS];
  if (c < C) {
    const int image = roi_image[n];
    const bool exists = image_exists(image, B);
    const T* map = features + (exists ? (long long)image * H * W * C + c : 0);
#pragma unroll
    for (int k = 0; k < FUSED_PIXELS; ++k) {
      taps_t<float> taps = {0, 0, 0, 0, 0, 0, 0, 0, false};
      if (exists) taps = make_taps(theta + 6 * (long long)n, (p0 + k) % S, (p0 + k) / S, H, W);
      values[k] = taps.inside ? sample(map, taps, C) : 0.f;
    }
  } else {
    for (int k = 0; k < FUSED_PIXELS; ++k)
      values[k] = skeleton_value(joints + (long long)n * JOINTS * 3, c - C, (p0 + k) % S, (p0 + k) / S);
  }
#pragma unroll
  for (int k = 0; k < FUSED_PIXELS; ++k)
    if (p0 + k < area) out[(long long)k * all] = from_arithmetic<T>(values[k]);
}

// out += weight * gradient at the four taps. Sums of several people meet at a px, in any order.
template <typename A>
__device__ __forceinline__ void scatter(A* RESTRICT map, const taps_t<A>& taps, long long step, A gradient) {
  if (taps.weight_tl != 0) atomicAdd(map + taps.top_left * step, taps.weight_tl * gradient);
  if (taps.weight_tr != 0) atomicAdd(map + taps.top_right * step, taps.weight_tr * gradient);
  if (taps.weight_bl != 0) atomicAdd(map + taps.bottom_left * step, taps.weight_bl * gradient);
  if (taps.weight_br != 0) atomicAdd(map + taps.bottom_right * step, taps.weight_br * gradient);
}

// gradient [N, C, S, S] -> out [B, C, H, W], which starts as zeros; grid as forward_nchw
template <typename T>
__device__ __forceinline__ void backward_nchw(const T* RESTRICT gradient, const arithmetic_t<T>* RESTRICT theta,
                                              const int* RESTRICT roi_image, int B, int C, int H, int W, int S,
                                              arithmetic_t<T>* RESTRICT out) {
  using A = arithmetic_t<T>;
  const int p = (int)(blockIdx.x * THREADS + threadIdx.x), n = (int)blockIdx.z;
  if (p >= S * S || !image_exists(roi_image[n], B)) return;
  const taps_t<A> taps = make_taps(theta + 6 * (long long)n, p % S, p / S, H, W);
  if (!taps.inside) return;
  const long long area = (long long)S * S, plane = (long long)H * W;
  const int c0 = (int)blockIdx.y * CHANNELS;
  for (int c = c0; c < C && c < c0 + CHANNELS; ++c)
    scatter(out + ((long long)roi_image[n] * C + c) * plane, taps, 1,
            to_arithmetic(gradient[((long long)n * C + c) * area + p]));
}

// gradient [N, S, S, C] -> out [B, H, W, C]; grid (ceil(S*S * C / 128), 1, N), neighbours are channels
template <typename T>
__device__ __forceinline__ void backward_nhwc(const T* RESTRICT gradient, const arithmetic_t<T>* RESTRICT theta,
                                              const int* RESTRICT roi_image, int B, int C, int H, int W, int S,
                                              arithmetic_t<T>* RESTRICT out) {
  using A = arithmetic_t<T>;
  const long long thread = (long long)blockIdx.x * THREADS + threadIdx.x;
  const int n = (int)blockIdx.z, c = (int)(thread % C);
  if (thread >= (long long)S * S * C || !image_exists(roi_image[n], B)) return;
  const int p = (int)(thread / C);
  const taps_t<A> taps = make_taps(theta + 6 * (long long)n, p % S, p / S, H, W);
  if (!taps.inside) return;
  scatter(out + (long long)roi_image[n] * H * W * C + c, taps, C,
          to_arithmetic(gradient[(long long)n * S * S * C + thread]));
}

}  // namespace pose2seg

#define KERNEL extern "C" __global__ void __launch_bounds__(pose2seg::THREADS)
#define FORWARD(LAYOUT, DTYPE, T)                                                                                     \
  KERNEL affine_align_##LAYOUT##_##DTYPE(const T* features, const pose2seg::arithmetic_t<T>* theta,                   \
                                         const int* roi_image, int B, int C, int H, int W, int S, T* out) {           \
    pose2seg::forward_##LAYOUT<T>(features, theta, roi_image, B, C, H, W, S, out);                                    \
  }
#define SKELETON(LAYOUT, DTYPE, T)                                                                                    \
  KERNEL align_with_skeleton_##LAYOUT##_##DTYPE(const T* features, const float* theta, const int* roi_image,          \
                                                const float* joints, int B, int C, int H, int W, int S, T* out) {     \
    pose2seg::skeleton_##LAYOUT<T>(features, theta, roi_image, joints, B, C, H, W, S, out);                           \
  }
#define BACKWARD(LAYOUT, DTYPE, T)                                                                                    \
  KERNEL affine_align_backward_##LAYOUT##_##DTYPE(                                                                    \
      const T* gradient, const pose2seg::arithmetic_t<T>* theta, const int* roi_image, int B, int C, int H, int W,    \
      int S, pose2seg::arithmetic_t<T>* out) {                                                                        \
    pose2seg::backward_##LAYOUT<T>(gradient, theta, roi_image, B, C, H, W, S, out);                                   \
  }
// What a TensorRT plugin of [B, C, H, W] launches. It is not told B: a negative image gives zeros, one of B or more must
// not come.
#define PLUGIN(DTYPE, T)                                                                                              \
  KERNEL affine_align_##DTYPE(const T* features, const float* theta, const int* roi_image, int C, int H, int W,       \
                              int S, T* out) {                                                                        \
    pose2seg::forward_nchw<T>(features, theta, roi_image, 0x7fffffff, C, H, W, S, out);                               \
  }

FORWARD(nchw, f32, float)
FORWARD(nchw, f16, pose2seg::half_t)
FORWARD(nchw, bf16, pose2seg::bfloat16_t)
FORWARD(nchw, f64, double)
FORWARD(nhwc, f32, float)
FORWARD(nhwc, f16, pose2seg::half_t)
FORWARD(nhwc, bf16, pose2seg::bfloat16_t)
FORWARD(nhwc, f64, double)
PLUGIN(f32, float)
PLUGIN(f16, pose2seg::half_t)
SKELETON(nchw, f32, float)
SKELETON(nchw, f16, pose2seg::half_t)
SKELETON(nchw, bf16, pose2seg::bfloat16_t)
SKELETON(nhwc, f32, float)
SKELETON(nhwc, f16, pose2seg::half_t)
SKELETON(nhwc, bf16, pose2seg::bfloat16_t)
BACKWARD(nchw, f32, float)
BACKWARD(nchw, f16, pose2seg::half_t)
BACKWARD(nchw, bf16, pose2seg::bfloat16_t)
BACKWARD(nchw, f64, double)
BACKWARD(nhwc, f32, float)
BACKWARD(nhwc, f16, pose2seg::half_t)
BACKWARD(nhwc, bf16, pose2seg::bfloat16_t)
BACKWARD(nhwc, f64, double)
