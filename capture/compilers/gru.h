AOTITorchError aoti_torch_cpu_recreplay_gru_out(AtenTensorHandle, AtenTensorHandle,
                                               AtenTensorHandle, AtenTensorHandle,
                                               AtenTensorHandle *, int32_t);
/* `recreplay::gru`: see recreplay.runtime.recurrent. Copied into a package's source behind `extern`,
   inside of extern "C". */
extern "C++" {
#include "recurrent.h"
} // extern "C++"

inline AOTITorchError aoti_torch_cpu_recreplay_gru_out(AtenTensorHandle out, AtenTensorHandle gates,
                                                      AtenTensorHandle first,
                                                      AtenTensorHandle turned,
                                                      AtenTensorHandle *bias, int32_t reverse) {
  using namespace recreplay::recurrent;
  return call<Gru>("gru", out, gates, first, nullptr, turned, bias, reverse);
}
