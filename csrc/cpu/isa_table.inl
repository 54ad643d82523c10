// The table of an instruction set, from its panel kinds and the functions of the files above. Included last by
// isa_*.cpp.
namespace {

template <int COUNT>
constexpr IsaTable isa_table(const char* name, const PanelKind (&kinds)[COUNT], int alternative,
                             void (*gemv)(const GemvArgs&)) {
  return {name,           Full::W,           kinds,       COUNT,        alternative,   gemv,
          &depthwise_row, &depthwise_pixels, &gather_row, &scatter_row, &scale_blocks, &sum_blocks};
}

}  // namespace
