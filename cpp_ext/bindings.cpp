// hybrid_k2._cpu: checks every argument, releases the GIL, calls. No arithmetic here.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>

#include "hk2/experts.h"
#include "hk2/handoff.h"
#include "hk2/linear.h"

namespace py = pybind11;

namespace hk2 {
namespace {

using Shape = std::vector<int64_t>;

std::string to_string(const Shape& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i)
    text += (i ? ", " : "") + (shape[i] < 0 ? std::string("*") : std::to_string(shape[i]));
  return text + (shape.size() == 1 ? ",)" : ")");
}

[[noreturn]] void reject(const std::string& name, const std::string& value,
                         const std::string& expected) {
  throw py::value_error(name + ": " + value + ", expected " + expected);
}

Shape shape_of(const py::array& array) {
  return Shape(array.shape(), array.shape() + array.ndim());
}

int64_t checked_product(const char* name, const Shape& factors) {
  int64_t product = 1;
  for (int64_t factor : factors)
    if (__builtin_mul_overflow(product, factor, &product))
      reject(name, to_string(factors), "a size below 2^63 bytes");
  return product;
}

// A C-contiguous array of exactly T; -1 in `expected` matches any length. Throws a ValueError that
// names the argument.
template <class T>
const T* check_array(const char* name, const py::object& object, const Shape& expected) {
  if (!py::isinstance<py::array>(object))
    reject(name, std::string(py::str(py::type::of(object))), "a numpy array");
  const py::array array = py::reinterpret_borrow<py::array>(object);
  if (!py::isinstance<py::array_t<T>>(array))
    reject(name, "dtype " + std::string(py::str(array.dtype())),
           std::string(py::str(py::dtype::of<T>())));
  const Shape shape = shape_of(array);
  bool matches = shape.size() == expected.size();
  for (size_t i = 0; matches && i < shape.size(); ++i)
    matches = expected[i] < 0 || shape[i] == expected[i];
  if (!matches) reject(name, "shape " + to_string(shape), to_string(expected));
  if (!(array.flags() & py::array::c_style)) reject(name, "strided", "a C-contiguous array");
  return static_cast<const T*>(array.data());
}

float* check_output(const char* name, const py::object& object, const Shape& expected) {
  const float* data = check_array<float>(name, object, expected);
  if (!py::reinterpret_borrow<py::array>(object).writeable())
    reject(name, "read-only", "a writeable array");
  return const_cast<float*>(data);
}

const QuantInfo& check_quant(const std::string& quant) { return quant_by_name(quant); }

struct PyMatrix {
  Matrix matrix;
  py::object data;  // keeps the bytes alive

  PyMatrix(py::object bytes, const std::string& quant, const Shape& shape)
      : data(std::move(bytes)) {
    const QuantInfo& info = check_quant(quant);
    if (shape.size() != 2 && shape.size() != 3)
      reject("shape", to_string(shape), "(rows, cols) or (stack, rows, cols)");
    for (int64_t length : shape)
      if (length < 1) reject("shape", to_string(shape), "lengths of at least 1");
    const int64_t stack = shape.size() == 3 ? shape[0] : 1, rows = shape[shape.size() - 2],
                  cols = shape.back();
    if (cols % info.block_size)
      reject("shape", to_string(shape),
             "columns in a multiple of " + std::to_string(info.block_size) +
                 ", the block size of " + quant);
    const int64_t size =
        checked_product("shape", {stack, rows, cols / info.block_size, info.block_bytes});
    matrix = {check_array<uint8_t>("data", data, {size}), &info, stack, rows, cols};
  }

  Shape shape() const { return {matrix.stack, matrix.rows, matrix.cols}; }
};

void check_shape(const char* name, const PyMatrix& matrix, const Shape& expected) {
  if (matrix.shape() != expected)
    reject(name, "shape " + to_string(matrix.shape()), to_string(expected));
}

// The number of rows of x, whose last axis must be `cols`.
int64_t count_tokens(const char* name, const py::object& x, size_t axis, const Shape& expected) {
  check_array<float>(name, x, expected);
  return shape_of(py::reinterpret_borrow<py::array>(x))[axis];
}

void py_linear(ThreadPool& pool, const KernelTable& kernels, const PyMatrix& weights,
               const py::object& x, const py::object& y) {
  const Matrix& m = weights.matrix;
  if (m.stack != 1)
    reject("matrix", "a stack of " + std::to_string(m.stack), "one matrix (see batched_linear)");
  const int64_t tokens = count_tokens("x", x, 0, {-1, m.cols});
  const float* input = check_array<float>("x", x, {tokens, m.cols});
  float* output = check_output("y", y, {tokens, m.rows});
  py::gil_scoped_release release;
  linear(pool, kernels, m, input, output, tokens);
}

void py_batched_linear(ThreadPool& pool, const KernelTable& kernels, const PyMatrix& weights,
                       const py::object& x, const py::object& y) {
  const Matrix& m = weights.matrix;
  const int64_t tokens = count_tokens("x", x, 1, {m.stack, -1, m.cols});
  const float* input = check_array<float>("x", x, {m.stack, tokens, m.cols});
  float* output = check_output("y", y, {m.stack, tokens, m.rows});
  py::gil_scoped_release release;
  linear(pool, kernels, m, input, output, tokens);
}

void py_moe(ThreadPool& pool, const KernelTable& kernels, const PyMatrix& gate, const PyMatrix& up,
            const PyMatrix& down, const py::object& x, const py::object& expert_ids,
            const py::object& weights, const py::object& y, bool add, int64_t packed_bytes) {
  const int64_t experts = gate.matrix.stack, width = gate.matrix.rows, hidden = gate.matrix.cols;
  check_shape("up", up, {experts, width, hidden});
  check_shape("down", down, {experts, hidden, width});
  MoeCall call;
  call.gate = gate.matrix;
  call.up = up.matrix;
  call.down = down.matrix;
  call.tokens = count_tokens("x", x, 0, {-1, hidden});
  call.x = check_array<float>("x", x, {call.tokens, hidden});
  call.expert_ids = check_array<int32_t>("expert_ids", expert_ids, {call.tokens, -1});
  call.top_k = shape_of(py::reinterpret_borrow<py::array>(expert_ids))[1];
  call.weights = check_array<float>("weights", weights, {call.tokens, call.top_k});
  call.y = check_output("y", y, {call.tokens, hidden});
  call.add = add;
  if (packed_bytes < 0) reject("packed_bytes", std::to_string(packed_bytes), "at least 0");
  call.packed_bytes = packed_bytes;
  for (int64_t i = 0; i < call.tokens * call.top_k; ++i)
    if (call.expert_ids[i] < -1 || call.expert_ids[i] >= experts)
      reject("expert_ids",
             std::to_string(call.expert_ids[i]) + " at token " + std::to_string(i / call.top_k),
             "-1 or an expert below " + std::to_string(experts));
  py::gil_scoped_release release;
  moe(pool, kernels, call);
}

py::array_t<float> py_dequantise(const KernelTable& kernels, const py::object& data,
                                 const std::string& quant, int64_t n) {
  const QuantInfo& info = check_quant(quant);
  if (n < 0 || n % info.block_size)
    reject("n", std::to_string(n),
           "a multiple of " + std::to_string(info.block_size) + ", the block size of " + quant);
  const uint8_t* blocks = check_array<uint8_t>(
      "data", data, {checked_product("n", {n / info.block_size, info.block_bytes})});
  checked_product("n", {n, static_cast<int64_t>(sizeof(float))});
  py::array_t<float> out(n);
  float* values = out.mutable_data();
  py::gil_scoped_release release;
  kernels[info].dequantise(blocks, n, values);
  return out;
}

uint32_t* check_flags(const char* name, const py::object& object, int64_t layers) {
  const uint32_t* flags = check_array<uint32_t>(name, object, {layers, kFlagStride});
  if (!py::reinterpret_borrow<py::array>(object).writeable())
    reject(name, "read-only", "a writeable array");
  return const_cast<uint32_t*>(flags);
}

struct PyHandoff {
  py::list kept;  // pool, kernels, matrices and mapped arrays: a step uses them
  ThreadPool& pool;
  const KernelTable& kernels;
  int64_t max_tokens = 0;
  std::unique_ptr<Handoff> handoff;

  PyHandoff(const py::object& pool_object, const py::object& kernels_object, const py::list& layers,
            const py::object& published, const py::object& answered, const py::object& x,
            const py::object& expert_ids, const py::object& weights, const py::object& y)
      : pool(pool_object.cast<ThreadPool&>()), kernels(kernels_object.cast<const KernelTable&>()) {
    std::vector<LayerExperts> experts;
    for (const py::handle& layer : layers) {
      const auto [gate, up, down] = layer.cast<std::tuple<PyMatrix&, PyMatrix&, PyMatrix&>>();
      experts.push_back({gate.matrix, up.matrix, down.matrix});
    }
    if (experts.empty()) reject("layers", "none", "at least one (gate, up, down)");
    const int64_t count = static_cast<int64_t>(experts.size());
    const int64_t hidden = experts[0].gate.cols;
    max_tokens = count_tokens("x", x, 0, {-1, hidden});
    HandoffMemory memory;
    memory.published = check_flags("published", published, count);
    memory.answered = check_flags("answered", answered, count);
    memory.x = check_array<float>("x", x, {max_tokens, hidden});
    memory.expert_ids = check_array<int32_t>("expert_ids", expert_ids, {max_tokens, -1});
    memory.top_k = shape_of(py::reinterpret_borrow<py::array>(expert_ids))[1];
    memory.weights = check_array<float>("weights", weights, {max_tokens, memory.top_k});
    memory.y = check_output("y", y, {max_tokens, hidden});
    handoff = std::make_unique<Handoff>(memory, std::move(experts));
    for (const py::object& object : {pool_object, kernels_object, py::object(layers), published,
                                     answered, x, expert_ids, weights, y})
      kept.append(object);
  }

  py::array_t<double> serve(uint32_t step, int64_t tokens, double timeout_s) {
    if (tokens < 1 || tokens > max_tokens)
      reject("tokens", std::to_string(tokens), "1.." + std::to_string(max_tokens));
    std::vector<LayerTimes> times(handoff->num_layers());
    {
      py::gil_scoped_release release;
      handoff->serve(pool, kernels, step, tokens, timeout_s, times.data());
    }
    py::array_t<double> result({handoff->num_layers(), int64_t{2}});
    std::memcpy(result.mutable_data(), times.data(), times.size() * sizeof(LayerTimes));
    return result;
  }
};

void py_first_touch(ThreadPool& pool, const py::object& data, int64_t stack, int64_t rows) {
  const int64_t size = shape_of(py::reinterpret_borrow<py::array>(data))[0];
  check_array<uint8_t>("data", data, {size});
  py::array array = py::reinterpret_borrow<py::array>(data);
  if (!array.writeable()) reject("data", "read-only", "a writeable array");
  if (stack < 1 || rows < 1 || size % (stack * rows))
    reject("data", std::to_string(size) + " bytes",
           "a multiple of " + std::to_string(stack) + " x " + std::to_string(rows) + " rows");
  uint8_t* bytes = static_cast<uint8_t*>(array.mutable_data());
  py::gil_scoped_release release;
  first_touch(pool, bytes, stack, rows, size / (stack * rows));
}

double py_read_bandwidth(ThreadPool& pool, int64_t num_bytes, int64_t repeats) {
  if (num_bytes < 1 << 20) reject("num_bytes", std::to_string(num_bytes), "at least 1048576");
  if (repeats < 1) reject("repeats", std::to_string(repeats), "at least 1");
  py::gil_scoped_release release;
  return read_bandwidth(pool, num_bytes, repeats);
}

std::vector<std::string> names_of(const std::vector<TierInfo>& tiers) {
  std::vector<std::string> names;
  for (const TierInfo& info : tiers) names.push_back(info.name);
  return names;
}

}  // namespace
}  // namespace hk2

PYBIND11_MODULE(_cpu, m) {
  using namespace hk2;
  m.doc() = "Expert and linear layers on the CPU, computed on GGUF blocks where they lie.";

  m.def(
      "tiers", [] { return names_of(supported_tiers()); },
      "Tiers this machine can run, lowest first.");
  m.def("all_tiers", [] { return names_of(all_tiers()); }, "Every tier of this build.");
  m.def(
      "quant_types",
      [] {
        std::vector<std::string> names;
        for (const QuantInfo& info : quant_types()) names.push_back(info.name);
        return names;
      },
      "Every quant type that has kernels.");

  py::class_<ThreadPool>(m, "ThreadPool", "Persistent workers; the calling thread is worker 0.")
      .def(py::init<int, const std::vector<int>&, const std::vector<int>&>(),
           py::arg("num_threads"), py::arg("cpus") = std::vector<int>{},
           py::arg("nodes") = std::vector<int>{},
           "Workers 1.. are pinned to cpus[1..] if cpus is given; nodes: each worker's NUMA node, "
           "from 0 without gaps (num_threads entries each).",
           py::call_guard<py::gil_scoped_release>())
      .def_property_readonly("num_threads", &ThreadPool::size)
      .def_property_readonly("num_nodes", &ThreadPool::nodes)
      .def(
          "counters",
          [](ThreadPool& pool) {
            const PoolCounters& counters = pool.counters();
            py::dict result;
            result["busy_ns"] = counters.busy_ns.load();
            result["weight_bytes"] = counters.weight_bytes.load();
            result["experts"] = counters.experts.load();
            result["skipped"] = counters.skipped.load();
            return result;
          },
          "Since the pool was made: nanoseconds of use, bytes of stored weights read, experts of "
          "tokens computed, and those given as -1, which are computed elsewhere.");

  m.def(
      "node_rows",
      [](int64_t rows, int node, int nodes) {
        if (rows < 0 || node < 0 || node >= nodes)
          reject("node", std::to_string(node), "0 to " + std::to_string(nodes - 1));
        const NodeRows share(rows, node, nodes);
        return std::make_pair(share.begin, share.end);
      },
      py::arg("rows"), py::arg("node"), py::arg("nodes"),
      "The rows [begin, end) of an expert's matrix that workers of a NUMA node compute first.");
  m.def("first_touch", py_first_touch, py::arg("pool"), py::arg("data"), py::arg("stack"),
        py::arg("rows"),
        "Touches uint8 data of a [stack, rows, ...] matrix that was not written to yet, each page "
        "by a worker of the node whose rows lie there. Releases the GIL.");

  py::class_<KernelTable>(m, "Kernels", "The kernel chosen for every quant type on one tier.")
      .def(py::init([](const std::string& tier) { return KernelTable(choose_tier(tier)); }),
           py::arg("tier") = "",
           "tier '' is the best this machine runs; unknown or unsupported names are a ValueError.")
      .def_property_readonly("tier", [](const KernelTable& table) { return table.tier().name; })
      .def(
          "table",
          [](const KernelTable& table) {
            py::dict result;
            for (const QuantInfo& info : quant_types()) result[info.name] = table.source(info);
            return result;
          },
          "{quant type: the tier whose kernel serves it}.");

  py::class_<PyMatrix>(m, "Matrix",
                       "Stored blocks seen as (rows, cols) or (stack, rows, cols); no copy.")
      .def(py::init<py::object, const std::string&, const Shape&>(), py::arg("data"),
           py::arg("quant"), py::arg("shape"))
      .def_property_readonly("quant", [](const PyMatrix& self) { return self.matrix.quant->name; })
      .def_property_readonly(
          "shape", [](const PyMatrix& self) { return py::tuple(py::cast(self.shape())); },
          "(stack, rows, cols)");

  m.def("linear", &py_linear, py::arg("pool"), py::arg("kernels"), py::arg("matrix"), py::arg("x"),
        py::arg("y"), "y[T, rows] = x[T, cols] @ matrix.T, float32.");
  m.def("batched_linear", &py_batched_linear, py::arg("pool"), py::arg("kernels"),
        py::arg("matrix"), py::arg("x"), py::arg("y"),
        "y[S, T, rows] = x[S, T, cols] @ matrix[S].T, float32.");
  m.def("moe", &py_moe, py::arg("pool"), py::arg("kernels"), py::arg("gate"), py::arg("up"),
        py::arg("down"), py::arg("x"), py::arg("expert_ids"), py::arg("weights"), py::arg("y"),
        py::arg("add") = false, py::arg("packed_bytes") = kPackedBytes,
        "y[T, H] = sum over k of weights[T, k] * down(silu(gate x) * up x) of expert_ids[T, k]; -1 "
        "skips; one parallel region. add: to what y holds. packed_bytes bounds the scratch memory "
        "for packed tokens, where the tier has tiles.");
  py::class_<PyHandoff>(m, "Handoff",
                        "Routed experts for a GPU in the middle of a step; see hk2/handoff.h.")
      .def(py::init<const py::object&, const py::object&, const py::list&, const py::object&,
                    const py::object&, const py::object&, const py::object&, const py::object&,
                    const py::object&>(),
           py::arg("pool"), py::arg("kernels"), py::arg("layers"), py::arg("published"),
           py::arg("answered"), py::arg("x"), py::arg("expert_ids"), py::arg("weights"),
           py::arg("y"),
           "layers: (gate, up, down) of each. published, answered: uint32 [layers, 16]. The arrays "
           "lie in memory that the GPU maps too.")
      .def("serve", &PyHandoff::serve, py::arg("step"), py::arg("tokens"), py::arg("timeout_s"),
           "Answers every layer of a step that was launched. Returns float64 [layers, 2]: seconds "
           "waited, seconds computed. HandoffError (RuntimeError) where the GPU does not come.")
      .def(
          "release", [](PyHandoff& self, uint32_t step) { self.handoff->release(step); },
          py::arg("step"),
          "Lets the GPU through a step that will not be served; its results are worthless.");
  m.attr("FLAG_STRIDE") = kFlagStride;

  m.def("dequantise", &py_dequantise, py::arg("kernels"), py::arg("data"), py::arg("quant"),
        py::arg("n"), "float32[n] of n stored weights.");
  m.def("read_bandwidth", &py_read_bandwidth, py::arg("pool"), py::arg("num_bytes"),
        py::arg("repeats"), "The best rate at which all workers read fresh memory, GB/s.");
}
