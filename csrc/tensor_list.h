// A list of tensors that is read once, for all that asks about it in a step.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "python.h"

namespace muon_kernels {

// Of what was read, shapes and strides point into the tensors: neither they nor the list may change while this is in use.
class TensorList {
 public:
  // Null if a tensor is of none of the `types`, or has no memory of its own to point to.
  static std::unique_ptr<TensorList> read(const py::list& tensors, const py::set& types) {
    std::unique_ptr<TensorList> list(new TensorList(tensors));
    list->tensors_.reserve(tensors.size());
    PyTypeObject* known = nullptr;  // most lists hold one type
    for (const py::handle object : tensors) {
      if (Py_TYPE(object.ptr()) != known) {
        if (!types.contains(py::type::of(object))) return nullptr;
        known = Py_TYPE(object.ptr());
      }
      dlpack::Tensor tensor;
      if (dlpack::exchange_api().to_tensor(object.ptr(), &tensor)) {
        PyErr_Clear();
        return nullptr;
      }
      list->add(tensor);
    }
    return list;
  }

  const dlpack::Tensor& operator[](int64_t i) const { return tensors_.at(i); }

  // Shapes, dtypes and devices, to be compared.
  py::bytes like() const { return like_; }

  bool any_empty() const { return any_empty_; }

 private:
  explicit TensorList(py::list list) : list_(std::move(list)) {}

  void add(const dlpack::Tensor& tensor) {
    tensors_.push_back(tensor);
    const auto append = [this](const void* data, size_t size) { like_.append(static_cast<const char*>(data), size); };
    const int32_t numbers[] = {tensor.ndim, tensor.device_type, tensor.device_id, tensor.dtype_code << 8 | tensor.dtype_bits};
    append(numbers, sizeof numbers);
    append(tensor.shape, sizeof(int64_t) * tensor.ndim);
    any_empty_ = any_empty_ || std::find(tensor.shape, tensor.shape + tensor.ndim, 0) != tensor.shape + tensor.ndim;
  }

  py::list list_;
  std::vector<dlpack::Tensor> tensors_;
  std::string like_;
  bool any_empty_ = false;
};

inline void bind_tensor_list(py::module_& m) {
  py::class_<TensorList>(m, "TensorList", py::module_local())
      .def("like", &TensorList::like)
      .def("any_empty", &TensorList::any_empty);
  m.def("read", &TensorList::read, py::arg("tensors"), py::arg("types"));
}

}  // namespace muon_kernels
