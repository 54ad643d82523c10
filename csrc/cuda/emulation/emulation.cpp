#include "emulation.h"

#include <cxxabi.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <numeric>
#include <random>

namespace mobilenet_ext {
namespace cuda {

uint16_t float_to_half(float v) {
  uint32_t u;
  std::memcpy(&u, &v, 4);
  const uint16_t sign = static_cast<uint16_t>(u >> 16 & 0x8000);
  u &= 0x7fffffffu;
  if (u > 0x7f800000u) return sign | 0x7fff;
  if (u >= 0x477ff000u) return sign | 0x7c00;  // rounds to 65536 or more
  if (u < 0x38800000u) {                       // a denormal of binary16: a multiple of 2^-24
    float magnitude;
    std::memcpy(&magnitude, &u, 4);
    return sign | static_cast<uint16_t>(std::nearbyint(std::ldexp(magnitude, 24)));
  }
  return sign | static_cast<uint16_t>((u - 0x38000000u + 0xfff + (u >> 13 & 1)) >> 13);
}

namespace emulation {
namespace {

constexpr size_t kStack = 64 * 1024, kSector = 32;
enum class State { kReady, kBlockBarrier, kWarpBarrier, kDone };

struct Buffer {
  std::string name;
  uintptr_t begin, end;
  Traffic read, write;
  std::vector<uint32_t> last_read, last_write;  // the last block that touched each sector, counted from one
};

struct Fibre {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  State state = State::kDone;
  Dim index;
};

std::vector<Buffer> buffers;
std::vector<Fibre> fibres;
std::function<void()> kernel;
ucontext_t scheduler;
Order order = Order::kForwards;
std::mt19937 random_engine;
Dim threads;
int64_t bx;
int by;
uint32_t block_number;
int current;
unsigned char* shared = nullptr;
unsigned char* shared_map = nullptr;
size_t shared_map_bytes = 0;

void entry() {
  kernel();
  fibres[current].state = State::kDone;
  swapcontext(&fibres[current].context, &scheduler);
}

void wait(State state) {
  const int self = current;
  fibres[self].state = state;
  swapcontext(&fibres[self].context, &scheduler);
}

void on_fault(int) {
  static const char message[] = "emulation: an access outside shared memory, or through a wild pointer\n";
  if (write(STDERR_FILENO, message, sizeof message - 1) < 0) _exit(4);
  _exit(3);
}

// Shared memory that ends where a page without access begins.
void place_shared(size_t bytes) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t rounded = (bytes + 127) / 128 * 128, pages = (rounded + page - 1) / page * page;
  if (shared_map) munmap(shared_map, shared_map_bytes);
  shared_map_bytes = pages + page;
  void* map = mmap(nullptr, shared_map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (map == MAP_FAILED) fail("no memory for shared memory");
  shared_map = static_cast<unsigned char*>(map);
  mprotect(shared_map + pages, page, PROT_NONE);
  shared = shared_map + pages - rounded;
}

std::vector<Kernel>& known_kernels() {
  static std::vector<Kernel> list;  // registered while other statics are made
  return list;
}

std::vector<int> ready_fibres() {
  std::vector<int> list;
  for (int t = 0; t < static_cast<int>(fibres.size()); ++t)
    if (fibres[t].state == State::kReady) list.push_back(t);
  if (order == Order::kBackwards) std::reverse(list.begin(), list.end());
  if (order == Order::kShuffled) std::shuffle(list.begin(), list.end(), random_engine);
  return list;
}

// Lets waiting fibres go on where everybody who must has arrived; false when no fibre is left.
bool release() {
  const int count = static_cast<int>(fibres.size());
  bool released = false, alive = false, all_at_barrier = true, any_at_barrier = false;
  for (int w = 0; w < count; w += 32) {
    const int end = std::min(w + 32, count);
    int waiting = 0;
    for (int t = w; t < end; ++t) waiting += fibres[t].state == State::kWarpBarrier;
    if (waiting == end - w) {
      for (int t = w; t < end; ++t) fibres[t].state = State::kReady;
      released = true;
    }
  }
  for (const Fibre& f : fibres) {
    alive = alive || f.state != State::kDone;
    any_at_barrier = any_at_barrier || f.state == State::kBlockBarrier;
    all_at_barrier = all_at_barrier && f.state == State::kBlockBarrier;
  }
  if (released) return true;
  if (any_at_barrier && all_at_barrier) {
    for (Fibre& f : fibres) f.state = State::kReady;
    return true;
  }
  if (alive) fail("a barrier that not every thread reaches");
  return false;
}

void run_block() {
  std::memset(shared_map, 0xff, shared_map_bytes - static_cast<size_t>(sysconf(_SC_PAGESIZE)));
  for (size_t t = 0; t < fibres.size(); ++t) {
    Fibre& f = fibres[t];
    f.state = State::kReady;
    const int i = static_cast<int>(t);
    f.index = {i % threads.x, i / threads.x % threads.y, i / threads.x / threads.y};
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack.get();
    f.context.uc_stack.ss_size = kStack;
    f.context.uc_link = nullptr;
    makecontext(&f.context, entry, 0);
  }
  do {
    for (int t : ready_fibres()) {
      current = t;
      swapcontext(&scheduler, &fibres[t].context);
    }
  } while (release());
}

}  // namespace

void fail(const char* what) {
  std::fprintf(stderr, "emulation: %s (block %lld, %d; thread %d)\n", what, static_cast<long long>(bx), by, current);
  std::fflush(stdout);
  std::_Exit(3);
}

void set_order(Order o, unsigned seed) {
  order = o;
  random_engine.seed(seed);
}

int register_kernel(const std::type_info& tag) {
  const std::unique_ptr<char, void (*)(void*)> text(abi::__cxa_demangle(tag.name(), nullptr, nullptr, nullptr),
                                                    std::free);
  std::string name = text ? text.get() : tag.name();
  // "KernelTag<&(void mobilenet_ext::cuda::name<mobilenet_ext::cuda::Half, 8>(mobilenet_ext::cuda::Params))>"
  const std::string space = "mobilenet_ext::cuda::";
  for (size_t at; (at = name.find(space)) != std::string::npos;) name.erase(at, space.size());
  name.erase(0, name.find('&') + 1);
  name.erase(0, name.find_first_not_of("( "));
  if (name.compare(0, 5, "void ") == 0) name.erase(0, 5);
  name.erase(std::min(name.find('('), name.size() - 1));  // without parameters the tag's own bracket is left
  known_kernels().push_back({name});
  return static_cast<int>(known_kernels().size()) - 1;
}

const std::vector<Kernel>& kernels() { return known_kernels(); }

void clear_buffers() { buffers.clear(); }

void add_buffer(const std::string& name, const void* data, size_t bytes) {
  Buffer b;
  b.name = name;
  b.begin = reinterpret_cast<uintptr_t>(data);
  b.end = b.begin + bytes;
  b.last_read.assign(bytes / kSector + 2, 0);
  b.last_write = b.last_read;
  buffers.push_back(std::move(b));
}

std::vector<Traffic> traffic() {
  std::map<std::string, Traffic> sums;
  for (const Buffer& b : buffers) {
    for (bool write : {false, true}) {
      const Traffic& from = write ? b.write : b.read;
      if (!from.requested) continue;
      Traffic& to = sums[b.name + (write ? " (w)" : "")];
      to.requested += from.requested;
      to.per_block += from.per_block;
      to.distinct += from.distinct;
    }
  }
  std::vector<Traffic> list;
  for (auto& [name, t] : sums) {
    t.name = name;
    list.push_back(t);
  }
  return list;
}

void touch(const void* p, size_t bytes, bool write) {
  const uintptr_t a = reinterpret_cast<uintptr_t>(p);
  if (a % bytes) fail("a misaligned access to global memory");
  for (Buffer& b : buffers) {
    if (a < b.begin || a + bytes > b.end) continue;
    Traffic& t = write ? b.write : b.read;
    std::vector<uint32_t>& last = write ? b.last_write : b.last_read;
    t.requested += static_cast<int64_t>(bytes);
    for (uintptr_t s = a / kSector - b.begin / kSector; s <= (a + bytes - 1) / kSector - b.begin / kSector; ++s) {
      if (last[s] == block_number) continue;
      t.distinct += last[s] == 0 ? static_cast<int64_t>(kSector) : 0;
      t.per_block += static_cast<int64_t>(kSector);
      last[s] = block_number;
    }
    return;
  }
  fail(write ? "a store outside every buffer" : "a load outside every buffer");
}

void run(int kernel_number, int64_t blocks_x, int blocks_y, Dim size, size_t shared_bytes,
         const std::function<void()>& body) {
  if (kernel_number >= 0 && blocks_x * blocks_y > 0)
    ++known_kernels()[static_cast<size_t>(kernel_number)].runs[static_cast<int>(order)];
  struct sigaction action = {};
  action.sa_handler = on_fault;
  sigaction(SIGSEGV, &action, nullptr);
  threads = size;
  kernel = body;
  block_number = 0;
  place_shared(std::max<size_t>(shared_bytes, 128));
  for (Buffer& b : buffers) {
    std::fill(b.last_read.begin(), b.last_read.end(), 0);
    std::fill(b.last_write.begin(), b.last_write.end(), 0);
  }
  fibres.resize(static_cast<size_t>(size.x) * size.y * size.z);
  for (Fibre& f : fibres)
    if (!f.stack) f.stack.reset(new char[kStack]);
  for (by = 0; by < blocks_y; ++by) {
    for (bx = 0; bx < blocks_x; ++bx) {
      ++block_number;
      run_block();
    }
  }
}

unsigned char* shared_memory() { return shared; }
void block_barrier() { wait(State::kBlockBarrier); }
void warp_barrier() { wait(State::kWarpBarrier); }
const Dim& thread() { return fibres[current].index; }
const Dim& block_size() { return threads; }
int64_t block_x() { return bx; }
int block_y() { return by; }

}  // namespace emulation
}  // namespace cuda
}  // namespace mobilenet_ext
