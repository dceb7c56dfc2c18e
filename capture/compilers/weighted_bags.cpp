/* `recreplay::weighted_bags`: see recreplay.runtime.row_bags. */
#include "rows.h"

RECREPLAY_CALLED
AOTITorchError aoti_torch_cpu_recreplay_weighted_bags_out(AtenTensorHandle out,
                                                          AtenTensorHandle table,
                                                          AtenTensorHandle ids,
                                                          AtenTensorHandle factors,
                                                          int64_t length, int32_t masks) {
  return recreplay::rows::call<true>("weighted_bags", out, table, ids, nullptr, factors, masks != 0,
                                     length, false);
}
