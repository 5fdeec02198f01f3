// Stands in for csrc/module.cpp where a test is about the way to a build, not about what is built: compiles in a second.
#include <Python.h>

#if !__has_include(<pybind11/pybind11.h>) || !__has_include(<torch/csrc/stable/library.h>)
#error "headers are missing"
#endif

extern "C" unsigned long long aoti_torch_abi_version();
extern "C" const char* const micron_sources;

static PyObject* instruction_set(PyObject*, PyObject*) {
  return PyUnicode_FromString(aoti_torch_abi_version() != 0 ? "portable" : "");
}
static PyObject* supported_instruction_sets(PyObject*, PyObject*) { return Py_BuildValue("[s]", "portable"); }

static PyMethodDef functions[] = {{"instruction_set", instruction_set, METH_NOARGS, nullptr},
                                  {"supported_instruction_sets", supported_instruction_sets, METH_NOARGS, nullptr},
                                  {nullptr, nullptr, 0, nullptr}};
static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_native", nullptr, -1, functions};

PyMODINIT_FUNC PyInit__native() {
  PyObject* m = PyModule_Create(&definition);
  PyModule_AddStringConstant(m, "compiler", __VERSION__);
  PyModule_AddStringConstant(m, "flags", MICRON_BUILD_FLAGS);
  PyModule_AddStringConstant(m, "torch", MICRON_TORCH_VERSION);
  PyModule_AddStringConstant(m, "cuda_architectures", MICRON_CUDA_ARCHITECTURES);
  PyModule_AddStringConstant(m, "no_cuda_reason", MICRON_NO_CUDA_REASON);
  PyModule_AddStringConstant(m, "sources", micron_sources);
  return m;
}
