AOTITorchError aoti_torch_cpu_recreplay_row_bags_out(AtenTensorHandle, AtenTensorHandle,
                                                    AtenTensorHandle, AtenTensorHandle *, int64_t,
                                                    int32_t);
/* `recreplay::row_bags`: see recreplay.runtime.row_bags. Copied into a package's source behind
   `extern`, inside of extern "C". */
extern "C++" {
#include "rows.h"
} // extern "C++"

inline AOTITorchError aoti_torch_cpu_recreplay_row_bags_out(AtenTensorHandle out,
                                                           AtenTensorHandle table,
                                                           AtenTensorHandle ids,
                                                           AtenTensorHandle *first, int64_t length,
                                                           int32_t mean) {
  return recreplay::rows::call<false>("row_bags", out, table, ids, first, nullptr, false, length,
                                      mean != 0);
}
