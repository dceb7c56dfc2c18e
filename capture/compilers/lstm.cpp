/* `recreplay::lstm`: see recreplay.runtime.recurrent. */
#include "recurrent.h"

RECREPLAY_CALLED
AOTITorchError aoti_torch_cpu_recreplay_lstm_out(AtenTensorHandle out, AtenTensorHandle gates,
                                                 AtenTensorHandle first,
                                                 AtenTensorHandle cells,
                                                 AtenTensorHandle turned,
                                                 AtenTensorHandle *bias, int32_t reverse) {
  using namespace recreplay::recurrent;
  return call<Lstm>("lstm", out, gates, first, cells, turned, bias, reverse);
}
