/* `recreplay::gru`: see recreplay.runtime.recurrent. */
#include "recurrent.h"

RECREPLAY_CALLED
AOTITorchError aoti_torch_cpu_recreplay_gru_out(AtenTensorHandle out, AtenTensorHandle gates,
                                                AtenTensorHandle first,
                                                AtenTensorHandle turned,
                                                AtenTensorHandle *bias, int32_t reverse) {
  using namespace recreplay::recurrent;
  return call<Gru>("gru", out, gates, first, nullptr, turned, bias, reverse);
}
