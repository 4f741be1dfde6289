// Affine-Align and the skeleton maps, px by px: the arithmetic that the GPU kernels, the host build and its tests share.
//
// Convention: theta, six numbers by rows, maps ROI px (u, v) to feature *indices* (x, y); bilinear between exact
// indices, zeros outside the map; see kernels/coordinates.py. Sums are done in float32 whatever the features are
// stored as (float64 for float64).
//
// Source: Pose2Seg sections 3.2 (alignment) and 3.3 (skeleton); slow twins in reference.py and ../skeleton.py.
#pragma once

#include "../native/half.cuh"

namespace pose2seg {

// Where one ROI px reads, and with what weight. Taps outside the map have weight zero and an offset inside it.
template <typename A> struct taps_t {
  int top_left, top_right, bottom_left, bottom_right;  // px offsets within one map, row * W + column
  A weight_tl, weight_tr, weight_bl, weight_br;
  bool inside;  // false: nothing of the map lies within one px; the sample is zero
};

// NaN, infinity and far values fail the comparisons, so a broken matrix samples zeros.
template <typename A> HOST_DEVICE taps_t<A> make_taps(const A* theta, int u, int v, int H, int W) {
  const A x = theta[0] * (A)u + theta[1] * (A)v + theta[2];
  const A y = theta[3] * (A)u + theta[4] * (A)v + theta[5];
  taps_t<A> taps = {0, 0, 0, 0, 0, 0, 0, 0, false};
  if (!(x > (A)-1 && y > (A)-1 && x < (A)W && y < (A)H)) return taps;
  const int x0 = (int)x - (x < 0), y0 = (int)y - (y < 0);  // floor, for all that came so far
  const A fx = x - (A)x0, fy = y - (A)y0;
  const int left = x0 < 0 ? 0 : x0, right = x0 + 1 < W ? x0 + 1 : W - 1;
  const int top = y0 < 0 ? 0 : y0, bottom = y0 + 1 < H ? y0 + 1 : H - 1;
  const A weight_l = x0 < 0 ? (A)0 : (A)1 - fx, weight_r = x0 + 1 < W ? fx : (A)0;
  const A weight_t = y0 < 0 ? (A)0 : (A)1 - fy, weight_b = y0 + 1 < H ? fy : (A)0;
  taps.top_left = top * W + left;
  taps.top_right = top * W + right;
  taps.bottom_left = bottom * W + left;
  taps.bottom_right = bottom * W + right;
  taps.weight_tl = weight_l * weight_t;
  taps.weight_tr = weight_r * weight_t;
  taps.weight_bl = weight_l * weight_b;
  taps.weight_br = weight_r * weight_b;
  taps.inside = true;
  return taps;
}

template <typename A> HOST_DEVICE A blend(const taps_t<A>& taps, A tl, A tr, A bl, A br) {
  return taps.weight_tl * tl + taps.weight_tr * tr + taps.weight_bl * bl + taps.weight_br * br;
}

// One value of one channel. step: elements between neighbouring px, 1 for NCHW and C for NHWC.
template <typename T>
HOST_DEVICE arithmetic_t<T> sample(const T* RESTRICT map, const taps_t<arithmetic_t<T>>& taps, long long step) {
  return blend(taps, to_arithmetic(map[taps.top_left * step]), to_arithmetic(map[taps.top_right * step]),
               to_arithmetic(map[taps.bottom_left * step]), to_arithmetic(map[taps.bottom_right * step]));
}

HOST_DEVICE bool image_exists(int image, int B) { return image >= 0 && image < B; }

// ---------------------------------------------------------------------------------------------------------- skeleton

constexpr int JOINTS = 17;
constexpr int LIMBS = 19;
constexpr int SKELETON_CHANNELS = JOINTS + 2 * LIMBS;
constexpr float HEATMAP_VARIANCE_2 = 18.f;    // 2 sigma^2, sigma = 3 ROI px
constexpr float HEATMAP_CUTOFF = 4.6025f;     // exponent beyond which a joint's map is zero
constexpr float LIMB_HALF_WIDTH_PX = 1.f;

HOST_DEVICE float absolute(float value) { return value < 0 ? -value : value; }
HOST_DEVICE bool finite(float value) { return value - value == 0; }

HOST_DEVICE float to_nearest(float value) {  // ties to even
#ifdef __CUDA_ARCH__
  return rintf(value);
#else
  return __builtin_rintf(value);
#endif
}
HOST_DEVICE float square_root(float value) {
#ifdef __CUDA_ARCH__
  return sqrtf(value);
#else
  return __builtin_sqrtf(value);
#endif
}
HOST_DEVICE float exponential(float value) {
#ifdef __CUDA_ARCH__
  return expf(value);
#else
  return __builtin_expf(value);
#endif
}

// The two joints of a limb, in the order of kernels.skeleton.LIMBS.
HOST_DEVICE int limb_joint(int limb, int end) {
  static constexpr signed char joints[LIMBS][2] = {
      {0, 1}, {0, 2}, {1, 2},  {1, 3},  {2, 4},  {3, 5},   {4, 6},   {5, 6},   {5, 7},  {5, 11},
      {6, 8}, {6, 12}, {7, 9}, {8, 10}, {11, 12}, {11, 13}, {12, 14}, {13, 15}, {14, 16}};
  return joints[limb][end];
}

// joint: x, y in ROI px and 0 absent, 1 labelled but hidden, 2 visible. NaN and infinity count as absent.
HOST_DEVICE bool present(const float* joint) {
  return joint[2] > .5f && finite(joint[0]) && finite(joint[1]) && finite(joint[2]);
}

HOST_DEVICE float joint_value(const float* joint, int u, int v) {
  if (!present(joint)) return 0;
  const float dx = (float)u - joint[0], dy = (float)v - joint[1];
  const float exponent = (dy * dy + dx * dx) / HEATMAP_VARIANCE_2;
  if (!(exponent < HEATMAP_CUTOFF)) return 0;
  return joint[2] > 1.5f ? exponential(-exponent) : -exponential(-exponent);
}

struct direction_t {
  float x, y;
};

// A limb's unit vector where (u, v) lies within its line's width and box, else zeros.
HOST_DEVICE direction_t limb_value(const float* joints, int limb, int u, int v) {
  const float* a = joints + 3 * limb_joint(limb, 0);
  const float* b = joints + 3 * limb_joint(limb, 1);
  const direction_t nothing = {0, 0};
  if (!present(a) || !present(b)) return nothing;
  const float low_x = a[0] < b[0] ? a[0] : b[0], high_x = a[0] < b[0] ? b[0] : a[0];
  const float low_y = a[1] < b[1] ? a[1] : b[1], high_y = a[1] < b[1] ? b[1] : a[1];
  if (!((float)u >= to_nearest(low_x - LIMB_HALF_WIDTH_PX) && (float)u < to_nearest(high_x + LIMB_HALF_WIDTH_PX) &&
        (float)v >= to_nearest(low_y - LIMB_HALF_WIDTH_PX) && (float)v < to_nearest(high_y + LIMB_HALF_WIDTH_PX)))
    return nothing;
  // Divided by the longer side first: the squares of far joints exceed float32.
  const float dx = b[0] - a[0], dy = b[1] - a[1];
  const float longer = absolute(dx) > absolute(dy) ? absolute(dx) : absolute(dy);
  if (!(longer > 0) || !finite(longer)) return nothing;
  const float length = square_root((dx / longer) * (dx / longer) + (dy / longer) * (dy / longer));
  const direction_t along = {dx / longer / length, dy / longer / length};
  const float across = ((float)u - a[0]) * along.y - ((float)v - a[1]) * along.x;
  return absolute(across) < LIMB_HALF_WIDTH_PX ? along : nothing;
}

// Channel 0..54 of kernels.skeleton at one px.
HOST_DEVICE float skeleton_value(const float* joints, int channel, int u, int v) {
  if (channel < JOINTS) return joint_value(joints + 3 * channel, u, v);
  const direction_t along = limb_value(joints, (channel - JOINTS) / 2, u, v);
  return (channel - JOINTS) % 2 ? along.y : along.x;
}

}  // namespace pose2seg
