/* How our functions are called, read the tensors that they are given, and say what went wrong. */
#ifndef RECREPLAY_CALLS
#define RECREPLAY_CALLS
#include <torch/csrc/inductor/aoti_include/cpu.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <limits>
#include <stdexcept>
#include <type_traits>
#include <vector>

#include "vector.h"
/* By the package that it is a part of, and by no other. */
#define RECREPLAY_CALLED extern "C" __attribute__((visibility("hidden")))
namespace recreplay {
/* What torch answers when it is asked for a property of a tensor. */
template <typename Found>
RECREPLAY_INLINE Found asked(AOTITorchError (*property)(AtenTensorHandle, Found *),
                             AtenTensorHandle tensor) {
  Found found;
  property(tensor, &found);
  return found;
}

template <typename T> static T *data(AtenTensorHandle of) {
  return (T *)asked(aoti_torch_get_data_ptr, of);
}

static inline int64_t *sizes(AtenTensorHandle of) { return asked(aoti_torch_get_sizes, of); }
static inline int64_t *strides(AtenTensorHandle of) { return asked(aoti_torch_get_strides, of); }
static inline int64_t numel(AtenTensorHandle of) { return asked(aoti_torch_get_numel, of); }
static inline int64_t dims(AtenTensorHandle of) { return asked(aoti_torch_get_dim, of); }
static inline int32_t dtype(AtenTensorHandle of) { return asked(aoti_torch_get_dtype, of); }

/* How far the rows of a result lie apart, whose columns lie side by side. */
static inline int64_t stride(AtenTensorHandle out) {
  const int64_t *apart = strides(out) + dims(out) - 2;
  if (apart[1] != 1) throw std::runtime_error("columns of the result lie apart");
  return apart[0];
}

/* `run(id)` with an id of the dtype that `ids` have. */
template <typename Run> static void by_ids(AtenTensorHandle ids, const Run &run) {
  if (dtype(ids) == aoti_torch_dtype_int64()) run(int64_t());
  else run(int32_t());
}

/* What `call` throws is said by the function's name: no exception leaves a package. */
template <typename Call> static AOTITorchError guarded(const char *name, const Call &call) {
  try {
    call();
    return AOTI_TORCH_SUCCESS;
  } catch (const std::exception &error) {
    fprintf(stderr, "%s: %s\n", name, error.what());
    return AOTI_TORCH_FAILURE;
  }
}
} // namespace recreplay
#endif
