#pragma once
// One child process and the signals around it (Linux).

#include <signal.h>
#include <sys/types.h>

#include <chrono>
#include <string>
#include <vector>

namespace plimsoll {

/// While one lives, SIGTERM, SIGINT, SIGHUP, SIGUSR1 and SIGCHLD of this thread are held for wait_for_signal(), and
/// orphans of the children become children of this process (so that none is lost sight of). Main thread only.
class SignalWatch {
 public:
  SignalWatch();
  ~SignalWatch();
  SignalWatch(const SignalWatch&) = delete;
  SignalWatch& operator=(const SignalWatch&) = delete;

 private:
  sigset_t before_;
};

/// The next of those signals, or 0 after `timeout` (at most a minute; at least nothing).
int wait_for_signal(std::chrono::steady_clock::duration timeout);

/// A command in a process group of its own, so that Ctrl-C in the terminal reaches only this process. It reads nothing,
/// ignores SIGUSR1 until it handles it, and is sent SIGTERM should this process die. Killed with its group when
/// destroyed.
class Child {
 public:
  /// Throws Error(kUsage) when the program cannot be started, naming it.
  explicit Child(const std::vector<std::string>& command);
  ~Child();
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  /// Never waits.
  bool ended();
  void send(int signal);
  /// "exit code 1", "signal 9 (Killed)"; once it has ended.
  std::string ending() const;
  /// The exit code, -1 when a signal ended it; once it has ended.
  int exit_code() const;

 private:
  pid_t pid_ = -1;
  int status_ = 0;
  bool ended_ = false;
};

/// Processes that an ended child left behind: waits for them for `grace`, then kills them. Needs a SignalWatch.
void kill_orphans(std::chrono::steady_clock::duration grace);

}  // namespace plimsoll
