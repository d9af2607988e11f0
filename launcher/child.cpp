#include "launcher/child.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>

#include "core/error.h"

namespace plimsoll {
namespace {

sigset_t watched() {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGCHLD}) sigaddset(&set, signal);
  return set;
}

/// Between fork and exec: only what is safe there.
[[noreturn]] void become(char* const* argv, pid_t parent, int report) {
  ::setpgid(0, 0);
  ::prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (::getppid() != parent) ::_exit(1);  // it died before prctl
  for (const int signal : {SIGTERM, SIGINT, SIGHUP, SIGCHLD}) std::signal(signal, SIG_DFL);
  std::signal(SIGUSR1, SIG_IGN);
  sigset_t none;
  sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  const int null = ::open("/dev/null", O_RDONLY);
  if (null >= 0) ::dup2(null, STDIN_FILENO);
  ::execvp(argv[0], argv);
  const int error = errno;
  [[maybe_unused]] const ssize_t sent = ::write(report, &error, sizeof error);
  ::_exit(127);
}

/// Children of this process, zombies included, from /proc.
std::vector<pid_t> children() {
  std::vector<pid_t> result;
  std::ifstream file("/proc/self/task/" + std::to_string(::getpid()) + "/children");
  for (pid_t pid = 0; file >> pid;) result.push_back(pid);
  return result;
}

void reap() {
  while (::waitpid(-1, nullptr, WNOHANG) > 0) {
  }
}

}  // namespace

SignalWatch::SignalWatch() {
  const sigset_t set = watched();
  ::pthread_sigmask(SIG_BLOCK, &set, &before_);
  ::prctl(PR_SET_CHILD_SUBREAPER, 1);
}
SignalWatch::~SignalWatch() {
  ::prctl(PR_SET_CHILD_SUBREAPER, 0);
  ::pthread_sigmask(SIG_SETMASK, &before_, nullptr);
}

int wait_for_signal(std::chrono::steady_clock::duration timeout) {
  using namespace std::chrono;
  const auto bounded = std::clamp<steady_clock::duration>(timeout, milliseconds(0), minutes(1));
  const auto whole = duration_cast<std::chrono::seconds>(bounded);
  const timespec wait{whole.count(), duration_cast<nanoseconds>(bounded - whole).count()};
  const sigset_t set = watched();
  return std::max(0, ::sigtimedwait(&set, nullptr, &wait));
}

Child::Child(const std::vector<std::string>& command) {
  std::vector<char*> argv;
  for (const std::string& word : command) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  int report[2];  // closed by a successful exec, holds errno otherwise
  if (::pipe2(report, O_CLOEXEC) != 0) fail(ExitCode::kUsage, "cannot make a pipe: {}", std::strerror(errno));
  const pid_t parent = ::getpid();
  pid_ = ::fork();
  if (pid_ == 0) become(argv.data(), parent, report[1]);
  ::close(report[1]);
  int error = pid_ < 0 ? errno : 0;
  if (pid_ > 0 && ::read(report[0], &error, sizeof error) > 0) ::waitpid(pid_, nullptr, 0);
  ::close(report[0]);
  if (error == 0) return;
  fail(ExitCode::kUsage, "cannot start {}: {}; install it or set PATH (`plimsoll doctor` says what is missing)",
       command.at(0), std::strerror(error));
}

Child::~Child() {
  if (ended()) return;
  ::kill(-pid_, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
}

bool Child::ended() {
  if (!ended_) ended_ = ::waitpid(pid_, &status_, WNOHANG) == pid_;
  return ended_;
}

void Child::send(int signal) {
  if (ended()) return;
  // A kill is for everything it started; other signals are mpirun's to hand on.
  ::kill(signal == SIGKILL ? -pid_ : pid_, signal);
}

std::string Child::ending() const {
  if (WIFSIGNALED(status_)) return fmt::format("signal {} ({})", WTERMSIG(status_), ::strsignal(WTERMSIG(status_)));
  return fmt::format("exit code {}", WEXITSTATUS(status_));
}

int Child::exit_code() const { return WIFEXITED(status_) ? WEXITSTATUS(status_) : -1; }

void kill_orphans(std::chrono::steady_clock::duration grace) {
  const auto deadline = std::chrono::steady_clock::now() + grace;
  for (reap(); !children().empty(); reap()) {
    if (std::chrono::steady_clock::now() >= deadline) {
      for (const pid_t pid : children()) ::kill(pid, SIGKILL);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

}  // namespace plimsoll
