#pragma once
// SIGTERM, SIGINT and SIGUSR1 ask a rank to stop. A handler may only set a flag; the flag travels in the rank's next
// report, and all ranks write a checkpoint at the same step.

namespace plimsoll::train {

/// Installs the handlers. A second SIGINT ends the process at once.
void watch_for_stop_requests();
/// True once any of the signals has come.
bool stop_requested();

}  // namespace plimsoll::train
