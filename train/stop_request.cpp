#include "train/stop_request.h"

#include <csignal>
#include <initializer_list>

namespace plimsoll::train {
namespace {

volatile std::sig_atomic_t requested = 0;

void on_signal(int number) {
  if (number == SIGINT && requested != 0) std::signal(SIGINT, SIG_DFL);
  requested = 1;
}

}  // namespace

void watch_for_stop_requests() {
  for (const int number : {SIGTERM, SIGINT, SIGUSR1}) {
    struct sigaction action = {};
    action.sa_handler = on_signal;
    action.sa_flags = SA_RESTART;
    sigaction(number, &action, nullptr);
  }
}

bool stop_requested() { return requested != 0; }

}  // namespace plimsoll::train
