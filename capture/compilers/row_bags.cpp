/* `recreplay::row_bags`: see recreplay.runtime.row_bags. */
#include "rows.h"

RECREPLAY_CALLED
AOTITorchError aoti_torch_cpu_recreplay_row_bags_out(AtenTensorHandle out,
                                                     AtenTensorHandle table,
                                                     AtenTensorHandle ids,
                                                     AtenTensorHandle *first, int64_t length,
                                                     int32_t mean) {
  return recreplay::rows::call<false>("row_bags", out, table, ids, first, nullptr, false, length,
                                      mean != 0);
}
