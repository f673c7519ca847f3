// The CPU engine's kernels: what torch lacks, or spends too many calls and too much memory on.
// A plain C ABI that native.py loads with ctypes; reference.py says in torch what each one does.
//
// Built once for each instruction set (pyproject.toml); library.py takes the best that the
// processor has. Vectors are the compiler's own (GCC, clang), so there are no intrinsics but for
// products of bfloat16.
//
// A row's result depends neither on other rows nor on the number of threads: the row alone
// decides in which order sums are taken.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

// library.py refuses a library with another number: count up with each change of the interface.
#define PIE_KERNELS_ABI 2

#define INLINE inline __attribute__((always_inline))

namespace {

// --------------------------------------------------------------------------------- vectors

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef int32_t IntVec __attribute__((vector_size(4 * LANES)));
typedef uint32_t BitVec __attribute__((vector_size(4 * LANES)));
typedef uint16_t HalfVec __attribute__((vector_size(2 * LANES)));
typedef uint8_t ByteVec __attribute__((vector_size(LANES)));

struct bf16 {
  uint16_t bits;  // the upper half of a float
};

INLINE Vec all(float x) { return Vec{} + x; }

INLINE float to_float(float x) { return x; }

INLINE float to_float(bf16 x) {
  const uint32_t bits = (uint32_t)x.bits << 16;
  float f;
  memcpy(&f, &bits, sizeof f);
  return f;
}

INLINE Vec load(const float* p) {
  Vec v;
  memcpy(&v, p, sizeof v);
  return v;
}

INLINE Vec load(const bf16* p) {
  HalfVec h;
  memcpy(&h, p, sizeof h);
  return (Vec)(__builtin_convertvector(h, BitVec) << 16);
}

INLINE void store(float* p, Vec v) { memcpy(p, &v, sizeof v); }

INLINE void store(bf16* p, Vec v) {
  const BitVec u = (BitVec)v;
  const BitVec nearest = (u + 0x7fff + ((u >> 16) & 1)) >> 16;  // ties to even
  const BitVec nan = BitVec{} + 0x7fc0;  // what rounding could carry over to zero
  const HalfVec h = __builtin_convertvector(v == v ? nearest : nan, HalfVec);
  memcpy(p, &h, sizeof h);
}

template <typename T>
__attribute__((noinline)) void load_some(const T* p, int64_t count, float* to) {
  for (int64_t i = 0; i < LANES; i++) to[i] = i < count ? to_float(p[i]) : 0.0f;
}

// Load up to `count` numbers: the end of a row may be less than a vector. Missing ones are 0.
template <typename T>
INLINE Vec load(const T* p, int64_t count) {
  if (count >= LANES) return load(p);
  float buffer[LANES];
  load_some(p, count, buffer);
  return load(buffer);
}

template <typename T>
INLINE void store(T* p, Vec v, int64_t count) {
  if (count >= LANES) return store(p, v);
  T buffer[LANES];
  store(buffer, v);
  for (int64_t i = 0; i < count; i++) p[i] = buffer[i];
}

INLINE Vec max(Vec a, Vec b) { return a > b ? a : b; }

INLINE float sum_of(Vec v) {
  float x[LANES];
  store(x, v);
  for (int n = LANES / 2; n; n /= 2)
    for (int i = 0; i < n; i++) x[i] += x[i + n];
  return x[0];
}

INLINE float max_of(Vec v) {
  float x[LANES];
  store(x, v);
  for (int n = LANES / 2; n; n /= 2)
    for (int i = 0; i < n; i++) x[i] = std::max(x[i], x[i + n]);
  return x[0];
}

// Adding it to a float of moderate size, and taking it away again, rounds to an integer.
constexpr float ROUNDER = 12582912.0f;  // 1.5 * 2^23

// e^x within 2 units in the last place; 0 below -87.3, 2e38 above 88.3, NaN for NaN.
INLINE Vec exp_of(Vec x) {
  Vec y = x > 88.3f ? all(88.3f) : x;
  y = y < -87.3f ? all(-87.3f) : y;
  const Vec shifted = y * 1.44269504f + ROUNDER;
  const Vec n = shifted - ROUNDER;
  Vec r = y - n * 0.693359375f;  // log 2 in two parts, the first exact
  r += n * 2.12194440e-4f;
  Vec p = all(1.9875691500e-4f);  // of the Cephes library, expf
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const IntVec i = (IntVec)shifted - (IntVec)all(ROUNDER);  // -126 to 127
  p *= (Vec)((i + 127) << 23);
  p = x < -87.3f ? all(0.0f) : p;
  return x == x ? p : x;
}

INLINE float exp_of(float x) { return exp_of(all(x))[0]; }

// --------------------------------------------------------------------------------- threads

// Waking a thread takes 5 to 50 microseconds: what takes less than this is done by one.
constexpr double WORTH_THREADS_US = 25.0;

int num_threads() {
#ifdef _OPENMP
  return omp_get_max_threads();  // torch's setting: the pool is torch's too
#else
  return 1;
#endif
}

// Run body(i) for 0 <= i < count, which takes about so many microseconds in all.
template <typename Body>
void for_each(int64_t count, double microseconds, const Body& body) {
#ifdef _OPENMP
  if (count > 1 && microseconds > WORTH_THREADS_US && num_threads() > 1) {
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t i = 0; i < count; i++) body(i);
    return;
  }
#endif
  (void)microseconds;
  for (int64_t i = 0; i < count; i++) body(i);
}

// The same over rows, handed out in blocks of some microseconds.
template <typename Body>
void for_rows(int64_t rows, double nanoseconds_each, const Body& body) {
  const int64_t block = std::max<int64_t>(1, (int64_t)(5000.0 / nanoseconds_each));
  for_each((rows + block - 1) / block, rows * nanoseconds_each / 1000.0, [&](int64_t b) {
    const int64_t stop = std::min(rows, (b + 1) * block);
    for (int64_t row = b * block; row < stop; row++) body(row);
  });
}

// ---------------------------------------------------------------------- operations on rows

// What to multiply a row with so that its root mean square is 1.
template <typename T>
INLINE float norm_factor(const T* x, int64_t width, float eps) {
  Vec sums = {};
  for (int64_t i = 0; i < width; i += LANES) {
    const Vec v = load(x + i, width - i);
    sums += v * v;
  }
  return 1.0f / std::sqrt(sum_of(sums) / (float)width + eps);
}

template <typename T>
INLINE void norm(const T* x, const float* weight, int64_t width, float eps, T* out) {
  const float factor = norm_factor(x, width, eps);
  for (int64_t i = 0; i < width; i += LANES) {
    const int64_t n = width - i;
    store(out + i, load(x + i, n) * factor * load(weight + i, n), n);
  }
}

template <typename T>
void rms_norm(const T* x, const float* weight, T* out, int64_t rows, int64_t width, float eps) {
  for_rows(rows, 20.0 + width * 0.15, [&](int64_t row) {
    norm(x + row * width, weight, width, eps, out + row * width);
  });
}

// The pairs (i, i + R / 2) of a head, turned by the token's angles.
template <typename T>
INLINE void rotate(T* x, const float* cos, const float* sin, int64_t half) {
  for (int64_t i = 0; i < half; i += LANES) {
    const int64_t n = half - i;
    const Vec a = load(x + i, n), b = load(x + half + i, n);
    const Vec c = load(cos + i, n), s = load(sin + i, n);
    store(x + i, a * c - b * s, n);
    store(x + half + i, b * c + a * s, n);
  }
}

template <typename T>
void norm_and_rotate(T* x, int64_t stride, int64_t rows, int64_t num_heads, int64_t dim,
                     const float* weights, float eps, const float* cos, const float* sin,
                     int64_t half) {
  for_rows(rows, num_heads * (5.0 + dim * 0.3), [&](int64_t row) {
    for (int64_t h = 0; h < num_heads; h++) {
      T* head = x + row * stride + h * dim;
      if (weights) norm(head, weights + h * dim, dim, eps, head);
      if (half) rotate(head, cos + row * half, sin + row * half, half);
    }
  });
}

template <typename T>
void gated(const T* gate_up, T* out, int64_t rows, int64_t width, bool is_gelu) {
  for_rows(rows, 20.0 + width * 0.6, [&](int64_t row) {
    const T* gate = gate_up + row * 2 * width;
    for (int64_t i = 0; i < width; i += LANES) {
      const int64_t n = width - i;
      const Vec g = load(gate + i, n), up = load(gate + width + i, n);
      // SiLU is x / (1 + e^-x); GELU's x (1 + tanh u) / 2 is x / (1 + e^-2u).
      const Vec u = is_gelu ? 1.59576912f * g * (1.0f + 0.044715f * g * g) : g;
      store(out + row * width + i, g / (1.0f + exp_of(-u)) * up, n);
    }
  });
}

// Bytes around 128, and for each row what they are multiplied by.
template <typename T>
void quantize(const T* x, uint8_t* out, float* scales, int64_t rows, int64_t width) {
  for_rows(rows, 20.0 + width * 0.2, [&](int64_t row) {
    const T* in = x + row * width;
    Vec sizes = {}, zeros = {};
    for (int64_t i = 0; i < width; i += LANES) {
      const Vec v = load(in + i, width - i);
      sizes = max(sizes, max(v, -v));
      zeros += v * 0.0f;
    }
    const float largest = std::max(max_of(sizes), 1e-30f);
    // No comparison finds a NaN, and a byte cannot be one: the scale tells that there was one.
    scales[row] = largest / 127.0f + sum_of(zeros);
    for (int64_t i = 0; i < width; i += LANES) {
      const Vec shifted = load(in + i, width - i) * (127.0f / largest) + ROUNDER;
      const IntVec q = (IntVec)shifted - (IntVec)all(ROUNDER) + 128;
      const ByteVec bytes = __builtin_convertvector(q, ByteVec);
      memcpy(out + row * width + i, &bytes, std::min<int64_t>(LANES, width - i));
    }
  });
}

template <typename T>
void scale_rows(T* x, const float* scales, int64_t rows, int64_t width) {
  for_rows(rows, 20.0 + width * 0.1, [&](int64_t row) {
    T* at = x + row * width;
    for (int64_t i = 0; i < width; i += LANES)
      store(at + i, load(at + i, width - i) * scales[row], width - i);
  });
}

}  // namespace

// The structures that native.py mirrors.
extern "C" {

// A layer's cache is [num_pages, num_kv_heads, 2, page_size * head_dim]: for each page and head
// the keys as [head_dim, page_size], then the values as [page_size, head_dim]. So the keys of
// several tokens are a vector, and what one head needs of a page lies together.
struct PieShape {
  int64_t num_heads, num_kv_heads, head_dim, page_size;
  float scale, softcap;  // a softcap of 0 is none
};

// As pie_trio.inference.metadata.BatchMetadata. Of the masks, which are [query_len, kv_len],
// each may be null, and all of them.
struct PieBatch {
  int64_t num_requests, num_tokens;
  const int32_t *page_ids, *page_indptr, *kv_lens, *qo_indptr;
  const int64_t* write_slots;
  const uint8_t* const* masks;
};

}  // extern "C"

namespace {

// ------------------------------------------------------------------------------- attention

constexpr int MAX_HEAD_DIM = 512;  // native.py checks it

// Tokens that share one rescaling of the running softmax.
constexpr int BLOCK = 64, TILES = BLOCK / LANES;

// Tokens that are summed before they are added to the total: another thread may do it.
constexpr int CHUNK = 1024;

// So many query heads are worked on at once, with this many sums in registers: enough of them
// to hide the latency of a multiplication.
constexpr int MAX_QUERIES = 8, SUMS = 8;

template <typename T>
INLINE T* keys_of(T* cache, const PieShape& s, int64_t page, int64_t head) {
  return cache + (page * s.num_kv_heads + head) * 2 * s.page_size * s.head_dim;
}

template <typename T>
void write(const T* keys, const T* values, int64_t stride, const PieShape& s, const PieBatch& batch,
           T* cache) {
  const int64_t dim = s.head_dim;
  for_rows(batch.num_tokens, s.num_kv_heads * dim * 1.0, [&](int64_t token) {
    const int64_t slot = batch.write_slots[token], offset = slot % s.page_size;
    for (int64_t h = 0; h < s.num_kv_heads; h++) {
      T* to = keys_of(cache, s, slot / s.page_size, h);
      const T *key = keys + token * stride + h * dim, *value = values + token * stride + h * dim;
      for (int64_t i = 0; i < dim; i++) to[i * s.page_size + offset] = key[i];
      memcpy(to + (s.page_size + offset) * dim, value, dim * sizeof(T));
    }
  });
}

// The running softmax over some tokens.
struct State {
  float largest, total;
  float sums[MAX_HEAD_DIM];

  void reset(int64_t dim) {
    largest = -1e30f;  // finite, for the difference of two infinities is NaN
    total = 0.0f;
    memset(sums, 0, (dim + LANES - 1) / LANES * LANES * sizeof(float));
  }

  void add(const State& other, int64_t dim) {
    const float most = std::max(largest, other.largest);
    const float a = exp_of(largest - most), b = exp_of(other.largest - most);
    largest = most;
    total = total * a + other.total * b;
    for (int64_t i = 0; i < dim; i += LANES)
      store(sums + i, load(sums + i) * a + load(other.sums + i) * b);
  }
};

// One head of one new token. It sees the slots [first, last) of its context, but for those that
// its mask hides.
struct Query {
  float vector[MAX_HEAD_DIM];  // scaled
  int64_t first, last;
  const uint8_t* mask;
};

// Where the keys and values of a block lie.
template <typename T>
struct Block {
  const T* keys[TILES];  // of LANES tokens each
  int64_t stride;        // from one dimension of a key to the next
  const T* values[BLOCK];

  // Pages that do not divide into vectors are copied to `copies`.
  void find(const T* cache, const PieShape& s, const int32_t* pages, int64_t head, int64_t start,
            int count, T (*copies)[MAX_HEAD_DIM * LANES]) {
    const int64_t size = s.page_size, dim = s.head_dim;
    const bool is_aligned = size % LANES == 0;
    stride = is_aligned ? size : LANES;
    int64_t index = start / size, offset = start % size;
    const T* page = nullptr;
    for (int j = 0; j < count; j++) {
      if (!page || offset == size) {
        if (page) index++, offset = 0;
        page = keys_of(cache, s, pages[index], head);
      }
      T* copy = copies[j / LANES];
      if (j % LANES == 0) keys[j / LANES] = is_aligned ? page + offset : copy;
      if (!is_aligned)
        for (int64_t d = 0; d < dim; d++) copy[d * LANES + j % LANES] = page[d * size + offset];
      values[j] = page + (size + offset) * dim;
      offset++;
    }
    // The rest is read too, or fetched ahead, but not used.
    for (int t = (count + LANES - 1) / LANES; t < TILES; t++) keys[t] = keys[0];
    for (int j = count; j < BLOCK; j++) values[j] = values[0];
  }
};

// Fetch ahead what the next block needs: pages lie anywhere, which no processor foresees.
INLINE void fetch(const void* p) { __builtin_prefetch(p); }

// The products of N queries with the keys of a block.
template <int N, typename T>
INLINE void score(const Block<T>& block, const Block<T>& next, const Query* const* queries,
                  int64_t dim, int num_tiles, Vec (*scores)[TILES]) {
  constexpr int AT_ONCE = std::min(TILES, SUMS / N);
  for (int t = 0; t < num_tiles; t += AT_ONCE) {
    Vec sums[N][AT_ONCE] = {};
    for (int64_t d = 0; d < dim; d++)
      for (int i = 0; i < AT_ONCE; i++) {
        fetch(next.keys[t + i] + d * next.stride);
        const Vec key = load(block.keys[t + i] + d * block.stride);
        for (int q = 0; q < N; q++) sums[q][i] += key * queries[q]->vector[d];
      }
    for (int q = 0; q < N; q++)
      for (int i = 0; i < AT_ONCE; i++) scores[q][t + i] = sums[q][i];
  }
}

// Turn the scores of one query into weights. Returns what to multiply earlier sums with.
INLINE float weigh(const Query& query, Vec* scores, float softcap, int64_t start, int count,
                   State& state, float* weights) {
  const int num_tiles = (count + LANES - 1) / LANES;
  const int first = (int)std::clamp<int64_t>(query.first - start, 0, BLOCK);
  const int last = (int)std::clamp<int64_t>(query.last - start, 0, count);
  IntVec lanes;
  for (int i = 0; i < LANES; i++) lanes[i] = i;
  Vec most = all(state.largest);
  for (int t = 0; t < num_tiles; t++) {
    Vec x = scores[t];
    if (softcap > 0.0f) x = softcap - 2.0f * softcap / (exp_of(x * (2.0f / softcap)) + 1.0f);
    const IntVec token = lanes + t * LANES;
    IntVec is_seen = (token >= first) & (token < last);
    if (query.mask) {
      ByteVec bytes = {};
      memcpy(&bytes, query.mask + start + t * LANES, std::min(LANES, count - t * LANES));
      is_seen &= __builtin_convertvector(bytes, IntVec) != 0;
    }
    scores[t] = is_seen ? x : all(-INFINITY);
    most = max(most, scores[t]);
  }
  const float largest = max_of(most), factor = exp_of(state.largest - largest);
  Vec total = {};
  for (int t = 0; t < num_tiles; t++) {
    const Vec weight = exp_of(scores[t] - largest);
    store(weights + t * LANES, weight);
    total += weight;
  }
  state.total = state.total * factor + sum_of(total);
  state.largest = largest;
  return factor;
}

// Add AT_ONCE vectors of the values of a block, each with its weight.
template <int N, int AT_ONCE, typename T>
INLINE void add_values(const Block<T>& block, const Block<T>& next, int64_t d, int count,
                       const float (*weights)[BLOCK], const float* factors, State* const* states) {
  Vec sums[N][AT_ONCE];
  for (int q = 0; q < N; q++)
    for (int i = 0; i < AT_ONCE; i++)
      sums[q][i] = load(states[q]->sums + d + i * LANES) * factors[q];
  for (int j = 0; j < count; j++)
    for (int i = 0; i < AT_ONCE; i++) {
      fetch(next.values[j] + d + i * LANES);
      const Vec value = load(block.values[j] + d + i * LANES);
      for (int q = 0; q < N; q++) sums[q][i] += value * weights[q][j];
    }
  for (int q = 0; q < N; q++)
    for (int i = 0; i < AT_ONCE; i++) store(states[q]->sums + d + i * LANES, sums[q][i]);
}

// Let N queries of one request attend to the slots [start, stop).
template <int N, typename T>
void attend(const T* cache, const PieShape& s, const int32_t* pages, int64_t head,
            const Query* const* queries, State* const* states, int64_t start, int64_t stop) {
  constexpr int AT_ONCE = SUMS / N;
  const int64_t dim = s.head_dim;
  T copies[2][TILES][MAX_HEAD_DIM * LANES];
  Block<T> blocks[2];
  auto find = [&](int64_t from, int which) {
    const int count = (int)std::min<int64_t>(BLOCK, stop - from);
    blocks[which].find(cache, s, pages, head, from, count, copies[which]);
    return count;
  };
  int which = 0, count = find(start, which);
  for (int64_t from = start; from < stop; from += BLOCK) {
    const bool is_last = from + BLOCK >= stop;
    const int next_count = is_last ? 0 : find(from + BLOCK, !which);
    const Block<T>&block = blocks[which], &next = blocks[is_last ? which : !which];
    Vec scores[N][TILES];
    float weights[N][BLOCK], factors[N];
    score<N>(block, next, queries, dim, (count + LANES - 1) / LANES, scores);
    for (int q = 0; q < N; q++)
      factors[q] = weigh(*queries[q], scores[q], s.softcap, from, count, *states[q], weights[q]);
    int64_t d = 0;
    for (; d + AT_ONCE * LANES <= dim; d += AT_ONCE * LANES)
      add_values<N, AT_ONCE>(block, next, d, count, weights, factors, states);
    for (; d + LANES <= dim; d += LANES)
      add_values<N, 1>(block, next, d, count, weights, factors, states);
    for (; d < dim; d++)
      for (int q = 0; q < N; q++) {
        float sum = states[q]->sums[d] * factors[q];
        for (int j = 0; j < count; j++) sum += to_float(block.values[j][d]) * weights[q][j];
        states[q]->sums[d] = sum;
      }
    which = !which, count = next_count;
  }
}

// Queries of one request that share a key head: so many from `query` on, counted token by token
// and then head by head. One of them sees some slot of [start, stop).
struct Item {
  int64_t request, head, query, num_queries, start, stop;

  int64_t num_chunks() const { return (stop - 1) / CHUNK - start / CHUNK + 1; }
};

template <typename T>
struct Attention {
  const T* queries;
  int64_t stride, window;
  const T* cache;
  T* out;
  PieShape shape;
  PieBatch batch;

  int64_t group() const { return shape.num_heads / shape.num_kv_heads; }
  int64_t query_len(int64_t r) const { return batch.qo_indptr[r + 1] - batch.qo_indptr[r]; }

  // The slots that a new token sees unless it has a mask.
  int64_t last_seen(int64_t r, int64_t token) const {
    return batch.kv_lens[r] - query_len(r) + token + 1;
  }
  int64_t first_seen(int64_t r, int64_t token) const {
    return window ? std::max<int64_t>(0, last_seen(r, token) - window) : 0;
  }

  Query query(const Item& item, int64_t index) const {
    const int64_t r = item.request, token = (item.query + index) / group();
    const int64_t head = item.head * group() + (item.query + index) % group();
    const T* from = queries + (batch.qo_indptr[r] + token) * stride + head * shape.head_dim;
    Query q;
    for (int64_t i = 0; i < shape.head_dim; i += LANES) {
      const int64_t n = shape.head_dim - i;
      store(q.vector + i, load(from + i, n) * shape.scale, n);
    }
    const uint8_t* mask = batch.masks ? batch.masks[r] : nullptr;
    q.mask = mask ? mask + token * batch.kv_lens[r] : nullptr;
    q.first = first_seen(r, token);
    q.last = mask ? batch.kv_lens[r] : last_seen(r, token);
    return q;
  }

  void finish(const Item& item, int64_t index, const State& state) const {
    const int64_t row = batch.qo_indptr[item.request] + (item.query + index) / group();
    const int64_t head = item.head * group() + (item.query + index) % group();
    T* to = out + (row * shape.num_heads + head) * shape.head_dim;
    const float factor = state.total == 0.0f ? 0.0f : 1.0f / state.total;  // saw nothing: zeros
    for (int64_t i = 0; i < shape.head_dim; i += LANES)
      store(to + i, load(state.sums + i) * factor, shape.head_dim - i);
  }

  // Fill one state for each query of an item with what it reads from one chunk.
  void read_chunk(const Item& item, int64_t chunk, State* states) const {
    Query own[MAX_QUERIES];
    const Query* q[MAX_QUERIES];
    State *s[MAX_QUERIES], spare;
    for (int64_t i = 0; i < MAX_QUERIES; i++) {
      const bool is_there = i < item.num_queries;  // else the first one is repeated
      if (is_there) own[i] = query(item, i);
      q[i] = own + (is_there ? i : 0);
      s[i] = is_there ? states + i : &spare;
      s[i]->reset(shape.head_dim);
    }
    const int32_t* pages = batch.page_ids + batch.page_indptr[item.request];
    const int64_t base = (item.start / CHUNK + chunk) * CHUNK;
    const int64_t start = std::max(item.start, base), stop = std::min(item.stop, base + CHUNK);
    if (item.num_queries > 4) attend<8>(cache, shape, pages, item.head, q, s, start, stop);
    else if (item.num_queries > 2) attend<4>(cache, shape, pages, item.head, q, s, start, stop);
    else attend<2>(cache, shape, pages, item.head, q, s, start, stop);
  }

  void run(const Item& item) const {
    State totals[MAX_QUERIES], parts[MAX_QUERIES];
    read_chunk(item, 0, totals);
    for (int64_t chunk = 1; chunk < item.num_chunks(); chunk++) {
      read_chunk(item, chunk, parts);
      for (int64_t i = 0; i < item.num_queries; i++) totals[i].add(parts[i], shape.head_dim);
    }
    for (int64_t i = 0; i < item.num_queries; i++) finish(item, i, totals[i]);
  }

  // As run() for all items, but with a thread for each chunk: for few and long contexts.
  void run_chunks(const std::vector<Item>& items, double microseconds) const {
    std::vector<std::pair<int64_t, int64_t>> chunks;  // item, chunk
    for (size_t i = 0; i < items.size(); i++)
      for (int64_t chunk = 0; chunk < items[i].num_chunks(); chunk++) chunks.push_back({i, chunk});
    std::vector<State> states(chunks.size() * MAX_QUERIES);
    for_each((int64_t)chunks.size(), microseconds, [&](int64_t i) {
      read_chunk(items[chunks[i].first], chunks[i].second, &states[i * MAX_QUERIES]);
    });
    State* part = states.data();
    for (const Item& item : items) {
      State* totals = part;
      for (int64_t chunk = 0; chunk < item.num_chunks(); chunk++, part += MAX_QUERIES)
        for (int64_t i = 0; chunk && i < item.num_queries; i++)
          totals[i].add(part[i], shape.head_dim);
      for (int64_t i = 0; i < item.num_queries; i++) finish(item, i, totals[i]);
    }
  }

  void run_all() const {
    std::vector<Item> items;
    int64_t most_chunks = 1;
    double work = 0.0;
    const int64_t at_once = std::max<int64_t>(1, MAX_QUERIES / group()) * group();
    for (int64_t r = 0; r < batch.num_requests; r++) {
      const bool is_masked = batch.masks && batch.masks[r];
      for (int64_t first = 0; first < query_len(r) * group(); first += at_once) {
        const int64_t stop = std::min(first + at_once, query_len(r) * group());
        const int64_t start = first_seen(r, first / group()) / BLOCK * BLOCK;  // whole blocks
        const int64_t end = is_masked ? batch.kv_lens[r] : last_seen(r, (stop - 1) / group());
        for (int64_t h = 0; h < shape.num_kv_heads; h++)
          for (int64_t q = first; q < stop; q += MAX_QUERIES)
            items.push_back({r, h, q, std::min<int64_t>(MAX_QUERIES, stop - q), start, end});
        most_chunks = std::max(most_chunks, items.back().num_chunks());
        work += (double)(end - start) * (stop - first) * shape.num_kv_heads;
      }
    }
    work *= shape.head_dim * 1e-4;  // about as many microseconds
    if (most_chunks > 1 && (int64_t)items.size() < 2 * num_threads()) return run_chunks(items, work);
    for_each((int64_t)items.size(), work, [&](int64_t i) { run(items[i]); });
  }
};

// --------------------------------------------------------------------------- linear layers

#ifdef __AVX512BF16__

// Weights lie in blocks of OUTPUTS outputs: for each pair of inputs, the two weights of each output.
constexpr int64_t OUTPUTS = 16;
constexpr int64_t MOST_ROWS = 8;     // of a tile: with 3 blocks of outputs, 24 of 32 registers
constexpr int64_t ROWS_EACH = 256;   // of a piece of work
constexpr int64_t INPUTS = 4096;     // whose weights for 3 blocks stay in the second cache

struct LinearShape {
  int64_t num_rows, row_stride, num_inputs, num_outputs;
};

// Add the products with `count` inputs to the sums of a tile. Of each sum the order is that of the
// inputs, however large tiles are. Sums are `[ROWS][BLOCKS][OUTPUTS]`; if `starts`, they are not read.
template <int ROWS, int BLOCKS>
INLINE void multiply(const bf16* x, int64_t stride, const bf16* weight, int64_t num_inputs,
                     int64_t count, bool starts, float* sums) {
  __m512 sum[ROWS][BLOCKS];
  for (int r = 0; r < ROWS; r++)
    for (int b = 0; b < BLOCKS; b++)
      sum[r][b] = starts ? _mm512_setzero_ps()
                         : _mm512_loadu_ps(sums + (r * BLOCKS + b) * OUTPUTS);
  for (int64_t i = 0; i < count; i += 2) {
    __m512bh w[BLOCKS];
    for (int b = 0; b < BLOCKS; b++)
      w[b] = (__m512bh)_mm512_loadu_si512(weight + (b * num_inputs + i) * OUTPUTS);
    for (int r = 0; r < ROWS; r++) {
      int32_t pair;
      memcpy(&pair, x + r * stride + i, sizeof pair);
      const __m512bh both = (__m512bh)_mm512_set1_epi32(pair);
      for (int b = 0; b < BLOCKS; b++) sum[r][b] = _mm512_dpbf16_ps(sum[r][b], w[b], both);
    }
  }
  for (int r = 0; r < ROWS; r++)
    for (int b = 0; b < BLOCKS; b++)
      _mm512_storeu_ps(sums + (r * BLOCKS + b) * OUTPUTS, sum[r][b]);
}

template <int BLOCKS>
void multiply(int64_t rows, const bf16* x, int64_t stride, const bf16* weight, int64_t num_inputs,
              int64_t count, bool starts, float* sums) {
#define CASE(ROWS)                                                                     \
  case ROWS:                                                                           \
    multiply<ROWS, BLOCKS>(x, stride, weight, num_inputs, count, starts, sums);        \
    break;
  switch (rows) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) }
#undef CASE
}

// The outputs of some blocks, for some rows.
template <int BLOCKS>
void linear_part(const bf16* x, const LinearShape& shape, const bf16* weight, const float* bias,
                 int64_t first_block, int64_t first_row, int64_t stop_row, bf16* out) {
  constexpr int64_t WIDTH = BLOCKS * OUTPUTS;
  const int64_t first = first_block * OUTPUTS, k = shape.num_inputs;
  const bf16* part = weight + first * k;
  // Of few rows the weights are read once, so that it does not matter where they are kept.
  const bool is_short = stop_row - first_row <= MOST_ROWS;
  const int64_t most = is_short ? k : INPUTS;
  const int64_t tile = MOST_ROWS * WIDTH;
  float one[MOST_ROWS * WIDTH];
  std::vector<float> many;
  float* sums = one;
  if (!is_short && k > most) {
    many.resize((stop_row - first_row + MOST_ROWS - 1) / MOST_ROWS * tile);
    sums = many.data();
  }
  for (int64_t i = 0; i < k; i += most) {
    float* to = sums;
    for (int64_t row = first_row; row < stop_row; row += MOST_ROWS) {
      const int64_t rows = std::min(MOST_ROWS, stop_row - row), count = std::min(most, k - i);
      multiply<BLOCKS>(rows, x + row * shape.row_stride + i, shape.row_stride, part + i * OUTPUTS, k,
                       count, i == 0, to);
      if (i + count == k)
        for (int64_t r = 0; r < rows; r++)
          for (int64_t j = 0; j < WIDTH; j += LANES) {
            const int64_t left = shape.num_outputs - first - j;
            if (left <= 0) break;
            Vec sum = load(to + r * WIDTH + j);
            if (bias) sum += load(bias + first + j, left);
            store(out + (row + r) * shape.num_outputs + first + j, sum, left);
          }
      if (sums != one) to += tile;
    }
  }
}

template <int BLOCKS>
void linear_with(const bf16* x, const LinearShape& shape, const bf16* weight, const float* bias,
                 bf16* out, double microseconds) {
  const int64_t num_blocks = (shape.num_outputs + OUTPUTS - 1) / OUTPUTS;
  const int64_t across = (num_blocks + BLOCKS - 1) / BLOCKS;
  const int64_t down = (shape.num_rows + ROWS_EACH - 1) / ROWS_EACH;
  for_each(across * down, microseconds, [&](int64_t i) {
    const int64_t block = i / down * BLOCKS, row = i % down * ROWS_EACH;
    const int64_t stop = std::min(row + ROWS_EACH, shape.num_rows);
    if (block + BLOCKS <= num_blocks)
      linear_part<BLOCKS>(x, shape, weight, bias, block, row, stop, out);
    else
      for (int64_t b = block; b < num_blocks; b++)
        linear_part<1>(x, shape, weight, bias, b, row, stop, out);
  });
}

void linear(const bf16* x, const LinearShape& shape, const bf16* weight, const float* bias,
            bf16* out) {
  const double weights = (double)shape.num_inputs * shape.num_outputs;
  const double microseconds = weights * 5e-5 + weights * shape.num_rows * 5e-6;
  // More blocks at once hide how long a sum takes; but each thread is to have some of them.
  const int64_t each = shape.num_outputs / OUTPUTS / (2 * num_threads());
  if (shape.num_rows <= 2 && each >= 8) linear_with<8>(x, shape, weight, bias, out, microseconds);
  else if (shape.num_rows <= 4 && each >= 4) linear_with<4>(x, shape, weight, bias, out, microseconds);
  else linear_with<3>(x, shape, weight, bias, out, microseconds);
}

// `[num_outputs, num_inputs]` as above; outputs that the last block lacks are 0.
void pack_linear(const bf16* weight, int64_t num_outputs, int64_t num_inputs, bf16* out) {
  const int64_t num_blocks = (num_outputs + OUTPUTS - 1) / OUTPUTS;
  for_each(num_blocks, num_outputs * num_inputs * 1e-3, [&](int64_t block) {
    bf16* to = out + block * OUTPUTS * num_inputs;
    for (int64_t i = 0; i < num_inputs; i += 2)
      for (int64_t j = 0; j < OUTPUTS; j++) {
        const int64_t row = block * OUTPUTS + j;
        for (int64_t n = 0; n < 2; n++)
          *to++ = row < num_outputs ? weight[row * num_inputs + i + n] : bf16{0};
      }
  });
}

#endif  // __AVX512BF16__

}  // namespace

// --------------------------------------------------------------------------- the interface

// Do something with T as the type of the numbers.
#define WITH_TYPE(IS_BF16, ...) \
  if (IS_BF16) {                \
    using T = bf16;             \
    __VA_ARGS__;                \
  } else {                      \
    using T = float;            \
    __VA_ARGS__;                \
  }

extern "C" {

int pie_abi() { return PIE_KERNELS_ABI; }

void pie_rms_norm(int is_bf16, const void* x, const float* weight, void* out, int64_t rows,
                  int64_t width, float eps) {
  WITH_TYPE(is_bf16, rms_norm((const T*)x, weight, (T*)out, rows, width, eps))
}

void pie_norm_and_rotate(int is_bf16, void* x, int64_t stride, int64_t rows, int64_t num_heads,
                         int64_t head_dim, const float* weights, float eps, const float* cos,
                         const float* sin, int64_t half) {
  WITH_TYPE(is_bf16, norm_and_rotate((T*)x, stride, rows, num_heads, head_dim, weights, eps, cos,
                                     sin, half))
}

void pie_gated(int is_bf16, const void* gate_up, void* out, int64_t rows, int64_t width,
               int is_gelu) {
  WITH_TYPE(is_bf16, gated((const T*)gate_up, (T*)out, rows, width, is_gelu))
}

void pie_quantize(int is_bf16, const void* x, uint8_t* out, float* scales, int64_t rows,
                  int64_t width) {
  WITH_TYPE(is_bf16, quantize((const T*)x, out, scales, rows, width))
}

void pie_scale_rows(int is_bf16, void* x, const float* scales, int64_t rows, int64_t width) {
  WITH_TYPE(is_bf16, scale_rows((T*)x, scales, rows, width))
}

// Whether the two functions below do anything. Numbers are bfloat16, but for the bias.
int pie_has_linear() {
#ifdef __AVX512BF16__
  return 1;
#else
  return 0;
#endif
}

void pie_pack_linear(const void* weight, void* out, int64_t num_outputs, int64_t num_inputs) {
#ifdef __AVX512BF16__
  pack_linear((const bf16*)weight, num_outputs, num_inputs, (bf16*)out);
#endif
}

void pie_linear(const void* x, int64_t rows, int64_t stride, const void* weight, const float* bias,
                int64_t num_outputs, int64_t num_inputs, void* out) {
#ifdef __AVX512BF16__
  linear((const bf16*)x, {rows, stride, num_inputs, num_outputs}, (const bf16*)weight, bias,
         (bf16*)out);
#endif
}

// Write the new keys and values, then attend. A window of 0 is none.
void pie_attention(int is_bf16, const PieShape* shape, const PieBatch* batch, void* cache,
                   int64_t window, const void* queries, int64_t query_stride, const void* keys,
                   const void* values, int64_t key_stride, void* out) {
  WITH_TYPE(is_bf16, {
    write((const T*)keys, (const T*)values, key_stride, *shape, *batch, (T*)cache);
    Attention<T>{(const T*)queries, query_stride, window, (const T*)cache, (T*)out, *shape, *batch}
        .run_all();
  })
}

}  // extern "C"
