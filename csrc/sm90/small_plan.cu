// Which chains are small, and where their matrices lie in shared memory.
//
// What a buffer holds between two products that write it, a value, gets memory of its own from the first to the last
// product that touches it, whatever memory the buffer shares with others in the workspace.
//
// After the chain the workspace holds what it would hold after product upon product, as far as anybody may ask (api.h):
// the last value of each buffer, unless a later product has overwritten its memory, or it is scratch and has been read.
// So a factor and an X that a chain leaves are stored, and a Gram matrix in a spare X only if it is the result.
//
// Norms of Gram matrices are scratch: a block keeps the gain that they tell.
//
// Blocks do not wait for each other: what one stores may overlap with what another loads only if both are the same
// buffer, where each matrix has a place of its own.
#include "small_launch.h"

#include <algorithm>
#include <numeric>

#include "orient.h"

namespace muon_kernels::sm90 {
namespace {

struct Value {
  int buffer;
  int first, last;  // products that write it and that touch it last; -1: loaded, number of products: stored
  int read;         // the last product that reads it, or -1
  SharedMatrix place;
};

struct Uses {
  int a, b, c, out;  // values of a product
};

int filled(int64_t extent) { return static_cast<int>((extent + 63) / 64 * 64); }

bool overlap(const ChainItem& item, int x, int y) {
  const ChainBuffer &one = item.buffers[x], &other = item.buffers[y];
  return one.offset < other.offset + item.batch * other.batch_stride &&
         other.offset < one.offset + item.batch * one.batch_stride;
}

// Whether a product after `first` and before `end` writes memory of the buffer.
bool overwritten(const ChainItem& item, int buffer, int first, int end) {
  for (int t = first + 1; t < end; ++t) {
    if (overlap(item, buffer, item.products[t].out.buffer)) return true;
  }
  return false;
}

bool begins_inside_an_earlier_one(const ChainItem& item, int buffer) {
  const int64_t offset = item.buffers[buffer].offset;
  return std::any_of(item.buffers.begin(), item.buffers.begin() + buffer, [&](const ChainBuffer& other) {
    return other.offset <= offset && offset < other.offset + item.batch * other.batch_stride;
  });
}

std::vector<Value> find_values(const ChainItem& item, std::vector<Uses>& uses) {
  std::vector<Value> values;
  std::vector<int> held(item.buffers.size(), -1);  // the value that each buffer holds
  const auto begin = [&](int buffer, int first) {
    values.push_back({buffer, first, first, -1, {0, 128 * filled(item.buffers[buffer].rows)}});
    return held[buffer] = static_cast<int>(values.size()) - 1;
  };
  const int count = static_cast<int>(item.products.size());
  for (int t = 0; t < count; ++t) {
    const ChainProduct& p = item.products[t];
    const auto read = [&](const ChainOperand& operand) {
      if (operand.buffer < 0) return -1;
      const int value = held[operand.buffer] < 0 ? begin(operand.buffer, -1) : held[operand.buffer];
      values[value].last = values[value].read = t;
      return value;
    };
    const int a = read(p.a), b = read(p.b), c = read(p.c);
    // A gain stays in registers.
    uses.push_back({a, b, c, p.kind == ProductKind::kGramNorms ? -1 : begin(p.out.buffer, t)});
  }
  for (const int last : held) {
    if (last < 0) continue;
    Value& value = values[last];
    const bool scratch = value.read >= 0 && begins_inside_an_earlier_one(item, value.buffer);
    if (value.first >= 0 && !scratch && !overwritten(item, value.buffer, value.first, count)) value.last = count;
  }
  return values;
}

// Large values first, each where there is room as low as possible. Returns the bytes needed.
int place(const ChainItem& item, std::vector<Value>& values) {
  const auto bytes = [&](int i) { return filled(item.buffers[values[i].buffer].cols) / 64 * values[i].place.box_stride; };
  std::vector<int> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int i, int j) { return bytes(i) > bytes(j); });
  int total = 0;
  std::vector<int> placed;  // by offset
  for (const int i : order) {
    int offset = 0;
    for (const int j : placed) {
      const bool together = values[i].first <= values[j].last && values[j].first <= values[i].last;
      if (!together || values[j].place.offset + bytes(j) <= offset) continue;
      if (values[j].place.offset >= offset + bytes(i)) break;
      offset = values[j].place.offset + bytes(j);
    }
    values[i].place.offset = offset;
    total = std::max(total, offset + bytes(i));
    const auto lower = [&](int at, int j) { return at < values[j].place.offset; };
    placed.insert(std::upper_bound(placed.begin(), placed.end(), offset, lower), i);
  }
  return total;
}

SmallTransfer transfer(const ChainItem& item, const Value& value) {
  const ChainBuffer& buffer = item.buffers[value.buffer];
  return {value.place,   static_cast<int>(buffer.rows), static_cast<int>(buffer.cols),
          buffer.offset, buffer.batch_stride,           buffer.row_stride};
}

}  // namespace

std::optional<SmallChain> plan_small_chain(const ChainItem& item) {
  for (const ChainBuffer& buffer : item.buffers) {
    if (std::min(buffer.rows, buffer.cols) > kSmallSide || buffer.rows * buffer.cols > kSmallBytes / 2) return {};
  }
  std::vector<Uses> uses;
  std::vector<Value> values = find_values(item, uses);
  SmallChain chain{item.batch, place(item, values), {}, {}, {}};
  if (chain.shared_bytes > kSmallBytes) return {};
  const int count = static_cast<int>(item.products.size());
  for (const Value& value : values) {
    if (overwritten(item, value.buffer, value.first, value.read)) return {};  // it came through another buffer
    if (value.first < 0) chain.loads.push_back(transfer(item, value));
    if (value.last == count) chain.stores.push_back(transfer(item, value));
  }
  for (const Value& stored : values) {
    for (const Value& loaded : values) {
      if (stored.last == count && loaded.first < 0 && stored.buffer != loaded.buffer &&
          overlap(item, stored.buffer, loaded.buffer)) {
        return {};
      }
    }
  }
  if (count > kSmallProducts || chain.loads.size() + chain.stores.size() > kSmallTransfers) return {};
  int gain = -1;  // the buffer that has the norms of the gain that was found last
  for (int t = 0; t < count; ++t) {
    if (item.products[t].kind == ProductKind::kGramNorms) {
      const ChainProduct& p = item.products[t];
      SmallProduct product{values[uses[t].a].place};
      product.m = product.n = static_cast<int>(item.buffers[p.a.buffer].rows);
      product.finds_gain = true;
      chain.products.push_back(product);
      gain = p.out.buffer;
      continue;
    }
    const ChainProduct p = oriented(item.products[t]);
    if (p.norms.buffer >= 0 && p.norms.buffer != gain) return {};
    const bool flipped = p.out.transposed != item.products[t].out.transposed;
    const int a = flipped ? uses[t].b : uses[t].a, b = flipped ? uses[t].a : uses[t].b;
    if (p.c.transposed || (p.a.transposed && p.b.transposed)) return {};
    const ChainBuffer &out = item.buffers[p.out.buffer], &inner = item.buffers[p.a.buffer];
    chain.products.push_back({values[a].place,
                              values[b].place,
                              uses[t].c < 0 ? SharedMatrix{} : values[uses[t].c].place,
                              values[uses[t].out].place,
                              static_cast<int>(out.rows),
                              static_cast<int>(out.cols),
                              static_cast<int>(p.a.transposed ? inner.rows : inner.cols),
                              p.alpha,
                              p.beta,
                              p.delta,
                              p.a.transposed,
                              !p.b.transposed,
                              uses[t].c >= 0 && p.beta != 0.0f,
                              p.kind == ProductKind::kSymmGemm,
                              false,
                              {p.powers[0], p.powers[1], p.powers[2]}});
  }
  return chain;
}

}  // namespace muon_kernels::sm90
