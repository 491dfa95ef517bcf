// A filter around plan_small_chain (csrc/sm90/small_plan.cu), for tests: a chain as numbers in, its plan as lines out.
//
// In: batch, number of buffers and of products; per buffer its five fields; per product its kind, then
// buffer and transposed of a, b, c, out and norms, then its powers, then alpha, beta, delta. Out: nothing if the chain is not small.
#include <iostream>

#include "../../csrc/sm90/small_launch.h"

using namespace muon_kernels;

namespace {

void print(const sm90::SharedMatrix& x) { std::cout << ' ' << x.offset << ' ' << x.box_stride; }

void print(const char* kind, const std::vector<sm90::SmallTransfer>& list) {
  for (const auto& x : list) {
    std::cout << kind;
    print(x.shared);
    std::cout << ' ' << x.rows << ' ' << x.cols << ' ' << x.offset << ' ' << x.batch_stride << ' ' << x.row_stride;
    std::cout << '\n';
  }
}

}  // namespace

int main() {
  ChainItem item;
  size_t buffers, products;
  std::cin >> item.batch >> buffers >> products;
  item.buffers.resize(buffers);
  item.products.resize(products);
  for (auto& x : item.buffers) std::cin >> x.offset >> x.rows >> x.cols >> x.batch_stride >> x.row_stride;
  for (auto& p : item.products) {
    int kind;
    std::cin >> kind;
    p.kind = static_cast<ProductKind>(kind);
    for (auto* x : {&p.a, &p.b, &p.c, &p.out, &p.norms}) std::cin >> x->buffer >> x->transposed;
    for (int& power : p.powers) std::cin >> power;
    std::cin >> p.alpha >> p.beta >> p.delta;
  }
  const auto chain = sm90::plan_small_chain(item);
  if (!std::cin || !chain) return std::cin ? 0 : 1;
  std::cout.precision(9);
  std::cout << "shared " << chain->shared_bytes << '\n';
  print("load", chain->loads);
  print("store", chain->stores);
  for (const auto& p : chain->products) {
    if (p.finds_gain) {
      std::cout << "gain";
      print(p.a);
      std::cout << ' ' << p.m << '\n';
      continue;
    }
    std::cout << "product";
    for (const auto* x : {&p.a, &p.b, &p.c, &p.out}) print(*x);
    std::cout << ' ' << p.m << ' ' << p.n << ' ' << p.k << ' ' << p.a_is_mn_major << ' ' << p.b_is_mn_major << ' '
              << p.has_c << ' ' << p.symmetric << ' ' << p.alpha << ' ' << p.beta << ' ' << p.delta;
    for (const int power : p.powers) std::cout << ' ' << power;
    std::cout << '\n';
  }
}
