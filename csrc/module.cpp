// mobilenet_ext._C: what Python asks of the library beside the operators.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "api.h"
#include "tensor_watch.h"
#include "watch.h"

namespace py = pybind11;
namespace api = mobilenet_ext::api;

PYBIND11_MODULE(_C, m) {
  m.doc() = "CPU features, instruction sets, kernels, plans and the packed-weight cache of mobilenet_ext";
  m.def(
      "isas",
      [] {
        py::list list;
        for (const auto& i : api::isas()) {
          py::dict d;
          d["name"] = i.name;
          d["description"] = i.description;
          d["supported"] = i.supported;
          d["active"] = i.active;
          d["reason"] = i.supported ? std::string() : "needs " + i.needs;
          list.append(d);
        }
        return list;
      },
      "Every instruction set of this build, best first: name, description, supported, active, reason if not "
      "supported.");
  m.def(
      "isa",
      [] {
        for (const auto& i : api::isas()) {
          if (i.active) return i.name;
        }
        return std::string();
      },
      "The instruction set in use.");
  m.def("isa_is_capped", &api::isa_is_capped, "Whether MOBILENET_EXT_ISA or set_isa_cap chose the instruction set.");
  m.def(
      "set_isa_cap", [](const std::optional<std::string>& name) { api::set_isa_cap(name.value_or("")); },
      py::arg("name"), "Cap dispatch at a named instruction set; None removes the cap.");
  m.def(
      "kernels",
      [] {
        py::list list;
        for (const auto& k : api::kernels()) {
          py::dict d;
          d["op"] = k.op;
          d["dtype"] = k.dtype;
          d["isa"] = k.isa;
          d["tile"] = k.tile;
          list.append(d);
        }
        return list;
      },
      "Every kernel: op, dtype, isa, tile.");
  m.def(
      "plan",
      [](const std::vector<int64_t>& program, const std::vector<double>& constants, int h, int w, int threads) {
        py::list list;
        for (const auto& p : api::plan(program, constants, h, w, threads)) {
          py::dict d;
          d["kernel"] = p.kernel;
          d["kind"] = p.kind;
          d["split"] = p.split;
          d["rows_per_step"] = p.rows_per_step;
          d["column_parts"] = p.column_parts;
          d["out_size"] = py::make_tuple(p.out_h, p.out_w);
          d["scratch_bytes"] = p.scratch_bytes;
          d["multiply_adds"] = p.multiply_adds;
          list.append(d);
        }
        return list;
      },
      py::arg("program"), py::arg("constants"), py::arg("height"), py::arg("width"), py::arg("threads"),
      "How each item of a program runs on one image of height x width pixels.");
  m.def("cpu_features", &api::cpu_features);
  m.def("cache_sizes", &api::cache_sizes, "Bytes of l1d, l2 and l3.");
  m.def("counters", &api::counters, "How often each kind of kernel ran: block, conv, linear, and each with .<isa>.");
  m.def("reset_counters", &api::reset_counters);
  m.def("set_verbose", &api::set_verbose, py::arg("on"));
  m.def("peak_flops", &api::peak_flops, py::arg("seconds"), py::call_guard<py::gil_scoped_release>(),
        "fp32 FLOP/s of one core on the instruction set in use, measured.");
  using mobilenet_ext::Watch;
  py::class_<Watch>(m, "Watch",
                    "Whether dicts still hold the very objects, and objects have the classes, that they had. Keeps no "
                    "reference: whoever makes one keeps its arguments alive.")
      .def(py::init([](const py::list& entries, const py::list& sizes, const py::list& classes) {
             std::vector<Watch::Entry> e;
             for (const auto& item : entries) {
               const auto t = item.cast<py::tuple>();
               e.push_back({t[0].cast<py::dict>().ptr(), t[1].ptr(), t[2].ptr()});
             }
             std::vector<Watch::Size> s;
             for (const auto& item : sizes) s.push_back({item.cast<py::dict>().ptr(), PyDict_Size(item.ptr())});
             std::vector<Watch::Class> c;
             for (const auto& item : classes) c.push_back({item.ptr(), Py_TYPE(item.ptr())});
             return Watch(std::move(e), std::move(s), std::move(c));
           }),
           py::arg("entries"), py::arg("sizes"), py::arg("classes"),
           "entries: (dict, key, object it holds); sizes: dicts whose number of entries counts; classes: objects.")
      .def("holds", &Watch::holds);
  using mobilenet_ext::TensorWatch;
  py::class_<TensorWatch>(
      m, "TensorWatch",
      "Whether tensors still have the storages and versions they had. Keeps no reference. The layout "
      "must be right: mobilenet_ext/layout.py finds it.")
      .def(py::init([](const py::list& tensors, const std::array<int, 6>& l) {
             std::vector<PyObject*> t;
             for (const auto& tensor : tensors) t.push_back(tensor.ptr());
             return TensorWatch(t, {l[0], l[1], l[2], l[3], l[4], l[5]});
           }),
           py::arg("tensors"), py::arg("layout"),
           "layout: offsets of implementation, storage, counter, storage offset, data and version, in bytes.")
      .def("storage_data", &TensorWatch::storage_data, py::arg("index"))
      .def("version", &TensorWatch::version, py::arg("index"))
      .def("unchanged", &TensorWatch::unchanged);
  m.def("read_words", &mobilenet_ext::read_words, py::arg("address"), py::arg("count"),
        "64-bit words in this process; the address must be of an object that lives and is as large.");
  m.def("new_slot", &api::new_slot);
  m.def("free_slot", &api::free_slot, py::arg("slot"));
  m.def("slot_count", &api::slot_count);
  m.def("pack_count", &api::pack_count);
  m.def("bump_epoch", &api::bump_epoch);
  m.def(
      "slot_info",
      [](int64_t slot) -> py::object {
        const auto info = api::slot_info(slot);
        if (!info) return py::none();
        py::dict d;
        d["isa"] = info->isa;
        d["packed_bytes"] = info->packed_bytes;
        d["denormals_flushed"] = info->denormals_flushed;
        return d;
      },
      py::arg("slot"));
}
