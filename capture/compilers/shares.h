/* How rows or bags are shared among threads. */
#ifndef RECREPLAY_SHARES
#define RECREPLAY_SHARES
namespace recreplay {
/* `part(begin, end)` for all of `total`, from `least` of them on by the threads of the package. What
   one of them throws is thrown when all have ended. */
template <typename Part>
static void in_parts(int64_t total, int64_t least, const Part &part) {
#if RECREPLAY_THREADS > 1
  constexpr int64_t threads = RECREPLAY_THREADS;
  if (total >= least) {
    std::exception_ptr failed; /* may not leave a parallel loop */
    #pragma omp parallel for num_threads(threads)
    for (int64_t i = 0; i < threads; i++) {
      try {
        part(total * i / threads, total * (i + 1) / threads);
      } catch (...) {
        #pragma omp critical
        failed = std::current_exception();
      }
    }
    if (failed) std::rethrow_exception(failed);
    return;
  }
#endif
  part(0, total);
}
} // namespace recreplay
#endif
