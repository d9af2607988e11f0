#pragma once
// The subcommands. Each takes the arguments after its name and returns the program's exit code; what goes wrong is
// thrown as Error. One file each: <name>_command.cpp.

#include <string>
#include <vector>

namespace plimsoll {

int run_launch(const std::vector<std::string>& args);
int run_train(const std::vector<std::string>& args);
int run_doctor(const std::vector<std::string>& args);
int run_init_model(const std::vector<std::string>& args);
int run_features(const std::vector<std::string>& args);
int run_config(const std::vector<std::string>& args);
int run_demo_data(const std::vector<std::string>& args);
int run_dataset(const std::vector<std::string>& args);
int run_tune(const std::vector<std::string>& args);
int run_plan(const std::vector<std::string>& args);
int run_simulate(const std::vector<std::string>& args);
int run_cache(const std::vector<std::string>& args);
int run_eval(const std::vector<std::string>& args);
int run_report(const std::vector<std::string>& args);

}  // namespace plimsoll
