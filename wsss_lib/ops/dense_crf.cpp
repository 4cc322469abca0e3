// Mean field of the fully connected CRF, for several label maps of one photograph at once.
//
// Kraehenbuehl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials", NeurIPS 2011, with the
// lattice of Adams, Baek and Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice", Eurographics 2010. The
// formulas are those of pydensecrf. It takes less time because all labels of all maps lie side by side in vector registers, and
// slicing, soft-max and the next splatting are one pass over the pixels.

#include <Python.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <stdexcept>
#include <vector>

namespace {

constexpr int LANES = 4;            // labels in one vector
constexpr int BLOCK = 64;           // pixels that go through a step together
constexpr float NO_LABEL = -1e9;  // energy of lanes without a label
typedef float Vector __attribute__((vector_size(4 * LANES)));

// The points of the lattice that pixels touch: every pixel lies in a simplex of D + 1 of them.
template <int D>
class Lattice {
 public:
  int pixels, points = 0;
  std::vector<std::array<int32_t, D + 1>> corners;  // of each pixel: points...
  std::vector<std::array<float, D + 1>> weights;    // ...and barycentric coordinates
  std::vector<float> norms;                         // 1 / sqrt(filtered ones), of each pixel
  // For each axis the points that have a neighbor along it, one after the other; the last before a gap has the highest bit.
  // AHEAD more follow, as the blur asks the memory for points before it uses them.
  std::vector<uint32_t> chains[D + 1];
  static constexpr uint32_t NUMBER = (1u << 31) - 1;
  static constexpr int AHEAD = 8;

  // features: (pixels, D), in units of the filter's standard deviations
  template <class Features>
  Lattice(int pixels, Features features) : pixels(pixels), corners(pixels), weights(pixels), norms(pixels) {
    for (int j = 1; j <= D; j++) scale[j] = std::sqrt(2.f / (3 * j * (j + 1)));
    grow();
    for (int p = 0; p < pixels; p++) place(p, features(p));
    link();
    std::vector<float> ones(points);
    for (int p = 0; p < pixels; p++)
      for (int c = 0; c <= D; c++) ones[corners[p][c]] += weights[p][c];
    blur<1>(ones);
    for (int p = 0; p < pixels; p++) {
      float sum = 0;
      for (int c = 0; c <= D; c++) sum += weights[p][c] * ones[corners[p][c]];
      norms[p] = 1 / std::sqrt(sum * SCALE + 1e-20f);
    }
  }

  // Blur W values of each point along each axis with (1/2, 1, 1/2), in place.
  template <int W, class T>
  void blur(std::vector<T>& values) const {
    for (const auto& chain : chains)
      for (auto i = chain.begin(); i != chain.end() - AHEAD;) {
        T before[W] = {}, here[W], after[W];
        std::copy_n(&values[size_t(*i & NUMBER) * W], W, here);
        for (bool last = false; !last;) {
          T* const at = &values[size_t(*i & NUMBER) * W];
          last = *i++ & ~NUMBER;
          for (size_t line = 0; line < sizeof(T) * W; line += 64)
            __builtin_prefetch((const char*)&values[size_t(i[AHEAD - 1] & NUMBER) * W] + line);
          if (last)
            std::fill_n(after, W, T{});
          else
            std::copy_n(&values[size_t(*i & NUMBER) * W], W, after);
          for (int v = 0; v < W; v++) at[v] = here[v] + 0.5f * (before[v] + after[v]), before[v] = here[v], here[v] = after[v];
        }
      }
  }

  static constexpr float SCALE = 1 / (1 + 1.f / (1 << D));  // the blur's gain

 private:
  // A point's coordinates are congruent modulo D + 1: its key holds what remains and how often D + 1 fits into all but the
  // last, which follows from the others, as their sum is 0. Each has a field of its own, so that steps are mere additions.
  using Key = uint64_t;
  static constexpr int BITS = 60 / D, LIMIT = 1 << (BITS - 1);
  static constexpr Key field(int axis) { return axis < D ? Key(1) << (4 + BITS * axis) : 0; }
  static constexpr Key all_fields() {
    Key sum = 0;
    for (int axis = 0; axis < D; axis++) sum += field(axis);
    return sum;
  }
  struct Slot {
    Key key;
    int32_t point = -1;
  };
  std::vector<Slot> table;  // open addressing
  std::vector<Key> keys;    // of each point

  Slot& slot(Key key) {
    size_t at = (key * 0x9E3779B97F4A7C15ull) >> 32 & (table.size() - 1);
    while (table[at].point >= 0 && table[at].key != key) at = (at + 1) & (table.size() - 1);
    return table[at];
  }

  void grow() {
    table.assign(std::max<size_t>(1 << 15, table.size() * 2), Slot());
    for (int i = 0; i < points; i++) slot(keys[i]) = {keys[i], i};
  }

  int point(Key key) {
    Slot& found = slot(key);
    if (found.point >= 0) return found.point;
    found = {key, points};
    keys.push_back(key);
    if (size_t(++points) * 2 > table.size()) grow();
    return points - 1;
  }

  // Find the simplex around a pixel and its coordinates in it (section 4.1: elevate, round, rank, interpolate).
  void place(int p, const std::array<float, D>& feature) {
    float elevated[D + 1], sum = 0;  // in units of D + 1
    for (int j = D; j > 0; j--) {
      const float scaled = feature[j - 1] * scale[j];
      elevated[j] = sum - j * scaled;
      sum += scaled;
    }
    elevated[0] = sum;
    int rank[D + 1] = {}, excess = 0;
    float nearest[D + 1], rest[D + 1], barycentric[D + 2] = {};
    for (int i = 0; i <= D; i++) {
      nearest[i] = std::floor(elevated[i] + 0.5f);
      if (!(std::abs(nearest[i]) < LIMIT - 2)) throw std::overflow_error("no key is that large");
      rest[i] = elevated[i] - nearest[i];
      excess += int(nearest[i]);
    }
    if (std::abs(excess) > D) throw std::overflow_error("float does not tell such points apart");
    for (int i = 0; i < D; i++)
      for (int j = i + 1; j <= D; j++) {
        const int less = rest[i] < rest[j];
        rank[i] += less;
        rank[j] += 1 - less;
      }
    Key key = 0, steps[D + 1];  // steps: from the corner of remainder r - 1 to that of r
    for (int i = 0; i <= D; i++) {  // back onto the plane where coordinates sum to 0
      rank[i] += excess;
      const int back = rank[i] < 0 ? 1 : rank[i] > D ? -1 : 0;
      rank[i] += back * (D + 1);
      rest[i] -= back;
      key += field(i) * Key(int(nearest[i]) + back + LIMIT);
      steps[D - rank[i]] = 1 - field(i);
      barycentric[D - rank[i]] += rest[i];
      barycentric[D - rank[i] + 1] -= rest[i];
    }
    barycentric[0] += 1 + barycentric[D + 1];
    for (int remainder = 0; remainder <= D; key += steps[remainder++]) {
      // most pixels lie in the simplex of the one before
      corners[p][remainder] = p && keys[corners[p - 1][remainder]] == key ? corners[p - 1][remainder] : point(key);
      weights[p][remainder] = barycentric[remainder];
    }
  }

  // One step along an axis: all coordinates +1, and this one -D.
  void link() {
    std::vector<int32_t> after(points);
    std::vector<bool> follows(points);
    for (int axis = 0; axis <= D; axis++) {
      std::fill(follows.begin(), follows.end(), false);
      for (int i = 0; i < points; i++) {
        const bool carry = (keys[i] & 15) == D;
        after[i] = slot(keys[i] + (carry ? all_fields() - D : 1) - field(axis)).point;
        if (after[i] >= 0) follows[after[i]] = true;
      }
      for (int first = 0; first < points; first++) {
        if (follows[first] || after[first] < 0) continue;
        for (int i = first; i >= 0; i = after[i]) chains[axis].push_back(i);
        chains[axis].back() |= ~NUMBER;
      }
      chains[axis].resize(chains[axis].size() + AHEAD);
    }
  }

  float scale[D + 1];
};

// Add what a pixel gets from its corners.
template <int W, int D>
inline void slice(const int32_t* corners, const float* weights, float factor, const Vector* values, Vector* logits) {
  Vector sum[W] = {};
  for (int c = 0; c <= D; c++)
    for (int v = 0; v < W; v++) sum[v] += weights[c] * values[size_t(corners[c]) * W + v];
  for (int v = 0; v < W; v++) logits[v] += factor * sum[v];
}

// Add what a pixel gives to its corners.
template <int W, int D>
inline void splat(const int32_t* corners, const float* weights, float factor, const Vector* q, Vector* values) {
  for (int c = 0; c <= D; c++)
    for (int v = 0; v < W; v++) values[size_t(corners[c]) * W + v] += weights[c] * factor * q[v];
}

// exp(x) for x <= 0, to some units in the last place: 2^n exp(r) with |r| <= ln(2) / 2, exp(r) by its series. What is nothing
// beside 1 becomes 0, as numbers near float's smallest would be slow to add.
inline Vector exponential(Vector x) {
  typedef int32_t Integers __attribute__((vector_size(sizeof(Vector))));
  const Vector kept = x > -60.f ? x : Vector{};
  const Integers n = __builtin_convertvector(kept * 1.44269504f - 0.5f, Integers);  // rounded, as x <= 0
  const Vector r = kept - __builtin_convertvector(n, Vector) * 0.69314718f;
  const Vector series = 1 + r * (1 + r * (1 / 2.f + r * (1 / 6.f + r * (1 / 24.f + r * (1 / 120.f + r * (1 / 720.f))))));
  return x > -60.f ? series * (Vector)((n + 127) << 23) : Vector{};
}

// Soft-max over each run of `labels` lanes of some pixels. (Pixel by pixel it would wait for its own stores.)
template <int W>
inline void soft_max(Vector* vectors, int count, int maps, int labels) {
  float* const x = (float*)vectors;
  const int stride = W * LANES, used = maps * labels;
  for (int p = 0; p < count; p++)
    for (int first = p * stride, n = 0; n < maps; n++, first += labels) {
      float most = x[first];
      for (int l = 1; l < labels; l++) most = std::max(most, x[first + l]);
      for (int l = 0; l < labels; l++) x[first + l] -= most;
    }
  for (int v = 0; v < count * W; v++) vectors[v] = exponential(vectors[v]);
  for (int p = 0; p < count; p++)
    for (int first = p * stride; first < p * stride + used; first += labels) {
      float sum = x[first];
      for (int l = 1; l < labels; l++) sum += x[first + l];
      const float share = 1 / sum;
      for (int l = 0; l < labels; l++) x[first + l] *= share;
    }
}

// Refine `maps` label maps, all of whose labels fit into W vectors. Unaries and result: (maps, labels, pixels).
template <int W>
void mean_field(const Lattice<2>& near, const Lattice<5>& like, const float* unaries, int maps, int labels, int iterations,
                float near_compat, float like_compat, float* result) {
  const int pixels = near.pixels, used = maps * labels;
  const float near_gain = near_compat * Lattice<2>::SCALE, like_gain = like_compat * Lattice<5>::SCALE;
  std::vector<Vector> energies(size_t(pixels) * W, Vector{} + NO_LABEL);
  float* plain = (float*)energies.data();
  for (int i = 0; i < used; i++)
    for (int p = 0; p < pixels; p++) plain[size_t(p) * W * LANES + i] = -unaries[size_t(i) * pixels + p];
  // What pixels read from the points of a lattice, and what they add to them.
  const size_t room_a = size_t(near.points) * W, room_b = size_t(like.points) * W;
  std::vector<Vector> from_a(room_a), into_a(room_a), from_b(room_b), into_b(room_b);
  for (int step = 0; step <= iterations; step++) {
    std::memset((void*)into_a.data(), 0, sizeof(Vector) * room_a);
    std::memset((void*)into_b.data(), 0, sizeof(Vector) * room_b);
    for (int first = 0; first < pixels; first += BLOCK) {
      const int count = std::min(BLOCK, pixels - first);
      Vector block[BLOCK * W];
      std::copy_n(&energies[size_t(first) * W], count * W, block);
      for (int p = first; step && p < first + count; p++) {
        Vector* q = block + (p - first) * W;
        slice<W, 2>(near.corners[p].data(), near.weights[p].data(), near_gain * near.norms[p], from_a.data(), q);
        slice<W, 5>(like.corners[p].data(), like.weights[p].data(), like_gain * like.norms[p], from_b.data(), q);
      }
      soft_max<W>(block, count, maps, labels);
      for (int p = first; p < first + count; p++) {
        const Vector* q = block + (p - first) * W;
        if (step == iterations) {
          for (int i = 0; i < used; i++) result[size_t(i) * pixels + p] = ((float*)q)[i];
        } else {
          splat<W, 2>(near.corners[p].data(), near.weights[p].data(), near.norms[p], q, into_a.data());
          splat<W, 5>(like.corners[p].data(), like.weights[p].data(), like.norms[p], q, into_b.data());
        }
      }
    }
    if (step == iterations) break;
    near.template blur<W>(into_a), from_a.swap(into_a);
    like.template blur<W>(into_b), from_b.swap(into_b);
  }
}

}  // namespace

// Q after some steps of mean field, float (maps, labels, height, width), from unary energies of that shape and a photograph
// (height, width, 3). Returns 0, or 1 where it cannot: more than 24 labels, colors too many deviations apart, no memory.
extern "C" int dense_crf(const uint8_t* image, int height, int width, const float* unaries, int maps, int labels, int iterations,
                         float gaussian_sxy, float gaussian_compat, float bilateral_sxy, float bilateral_srgb,
                         float bilateral_compat, float* result) {
  constexpr decltype(&mean_field<1>) BY_VECTORS[] = {mean_field<1>, mean_field<2>, mean_field<3>,
                                                     mean_field<4>, mean_field<5>, mean_field<6>};
  constexpr int MOST = LANES * std::size(BY_VECTORS);
  if (labels > MOST) return 1;
  try {
    const int pixels = height * width, together = MOST / labels;
    const Lattice<2> near(pixels, [=](int p) {
      return std::array<float, 2>{p % width / gaussian_sxy, p / width / gaussian_sxy};
    });
    const Lattice<5> like(pixels, [=](int p) {
      const uint8_t* color = image + size_t(3) * p;
      return std::array<float, 5>{p % width / bilateral_sxy, p / width / bilateral_sxy, color[0] / bilateral_srgb,
                                  color[1] / bilateral_srgb, color[2] / bilateral_srgb};
    });
    for (int first = 0; first < maps; first += together) {
      const int count = std::min(together, maps - first);
      const size_t offset = size_t(first) * labels * pixels;
      BY_VECTORS[(count * labels - 1) / LANES](near, like, unaries + offset, count, labels, iterations, gaussian_compat,
                                               bilateral_compat, result + offset);
    }
    return 0;
  } catch (const std::exception&) {
    return 1;
  }
}

// An extension module without members: ctypes calls the function above, and lets other threads run meanwhile.
PyMODINIT_FUNC PyInit__dense_crf() {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_dense_crf", nullptr, -1};
  return PyModule_Create(&module);
}
