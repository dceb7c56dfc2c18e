/* What a package makes of a lane's workspace (workspace.h), which comes as the stream that a package
   for the CPU does not have. Where none comes, as from torch's own loader, buffers are torch's. */
struct Workspace {
  void *(*take)(Workspace *, int64_t);
  void (*give)(void *, void *);
};

/* Of torch's stable C interface, from 2.11 on. */
extern "C" AOTITorchError torch_from_blob(
    void *, int64_t, const int64_t *, const int64_t *, int64_t, int32_t, int32_t, int32_t,
    AtenTensorHandle *, int32_t, const uint8_t *, int64_t, void (*)(void *, void *), void *);

/* As aoti_torch_empty_strided. */
static AOTITorchError empty_strided(
    DeviceStreamType stream, int64_t dims, const int64_t *sizes, const int64_t *strides,
    int32_t dtype, int32_t device, int32_t index, AtenTensorHandle *made) {
  auto *workspace = reinterpret_cast<Workspace *>(stream);
  if (workspace != nullptr) {
    int64_t reach = 1;
    bool empty = false;
    for (int64_t i = 0; i < dims; i++) {
      reach += (sizes[i] - 1) * strides[i];
      empty |= sizes[i] == 0;
    }
    const int64_t bytes = empty ? 0 : reach * int64_t(aoti_torch_dtype_element_size(dtype));
    void *data = workspace->take(workspace, bytes);
    if (data != nullptr) {
      const auto code = torch_from_blob(data, dims, sizes, strides, 0, dtype, device, index, made,
                                        0, nullptr, 0, workspace->give, workspace);
      if (code != AOTI_TORCH_SUCCESS) workspace->give(data, workspace);
      return code;
    }
  }
  return aoti_torch_empty_strided(dims, sizes, strides, dtype, device, index, made);
}

