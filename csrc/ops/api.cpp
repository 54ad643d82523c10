#include "api.h"

#include "cpu/detect.h"
#include "cpu/peak.h"
#include "cpu/registry.h"
#include "cpu/run.h"

namespace mobilenet_ext {
namespace api {

std::vector<IsaInfo> isas() {
  std::vector<IsaInfo> list;
  const IsaTable& active = active_isa();
  for (const Isa& isa : mobilenet_ext::isas())
    list.push_back({isa.table->name, isa.description, isa.needs, isa.supported, isa.table == &active});
  return list;
}

bool isa_is_capped() { return mobilenet_ext::isa_is_capped(); }
void set_isa_cap(const std::string& name) { mobilenet_ext::set_isa_cap(name); }

std::vector<KernelInfo> kernels() {
  std::vector<KernelInfo> list;
  for (const Isa& isa : mobilenet_ext::isas()) {
    const IsaTable& t = *isa.table;
    for (int k = 0; k < t.kind_count; ++k) list.push_back({"pointwise", "fp32", t.name, t.kinds[k].name});
    list.push_back({"linear", "fp32", t.name, "1x" + std::to_string(t.kinds[0].width)});
    for (const char* tile : {"3x3s1", "3x3s2", "5x5s1", "5x5s2", "7x7s1", "7x7s2", "any"})
      list.push_back({"depthwise", "fp32", t.name, tile});
  }
  return list;
}

std::map<std::string, bool> cpu_features() {
  const CpuFeatures f = detect_cpu();
  return {{"avx2", f.avx2},
          {"avx512", f.avx512},
          {"avx512_bf16", f.avx512_bf16},
          {"avx512_vnni", f.avx512_vnni},
          {"neon", f.neon}};
}

std::map<std::string, int64_t> cache_sizes() {
  const CacheSizes& c = mobilenet_ext::cache_sizes();
  return {{"l1d", static_cast<int64_t>(c.l1d)}, {"l2", static_cast<int64_t>(c.l2)}, {"l3", static_cast<int64_t>(c.l3)}};
}

std::map<std::string, int64_t> counters() { return mobilenet_ext::counters(); }
void reset_counters() { mobilenet_ext::reset_counters(); }
void set_verbose(bool on) { mobilenet_ext::set_verbose(on); }
double peak_flops(double seconds) { return mobilenet_ext::peak_flops(seconds); }

std::vector<PlanInfo> plan(const std::vector<int64_t>& program, const std::vector<double>& constants, int h, int w,
                           int threads) {
  const ChainDesc desc = decode(program, constants);
  const IsaTable& isa = active_isa();
  const PackedChain layout = lay_out(desc, isa);
  const Input in{nullptr,
                 1,
                 desc.items.front().in(),
                 h,
                 w,
                 0,
                 1,
                 static_cast<ptrdiff_t>(w) * desc.items.front().in(),
                 desc.items.front().in()};
  const TaskList list = make_tasks(layout, in, {nullptr, 0, 1, desc.items.back().out()}, threads);
  const std::vector<ItemShape> placed = shapes(desc, h, w);
  std::vector<PlanInfo> result;
  for (size_t i = 0; i < desc.items.size(); ++i) {
    const ItemPlan& p = list.shared[i];
    result.push_back({kernel_name(desc.items[i]), desc.items[i].kind(), split_name(p.split), p.rows_per_step,
                      p.column_parts, placed[i].out_h, placed[i].out_w,
                      static_cast<int64_t>(list.worker_scratch * sizeof(float)), placed[i].multiply_adds});
  }
  return result;
}

}  // namespace api
}  // namespace mobilenet_ext
