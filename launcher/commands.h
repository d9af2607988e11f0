#pragma once
// The subcommands. Each takes the arguments after its name and returns the program's exit code; what goes wrong is
// thrown as Error. One file each: <name>_command.cpp.

#include <string>
#include <vector>

namespace plimsoll {

int run_launch(std::vector<std::string> args);
int run_train(std::vector<std::string> args);
int run_doctor(std::vector<std::string> args);
int run_init_model(std::vector<std::string> args);
int run_features(std::vector<std::string> args);
int run_config(std::vector<std::string> args);
int run_demo_data(std::vector<std::string> args);
int run_dataset(std::vector<std::string> args);
int run_tune(std::vector<std::string> args);
int run_plan(std::vector<std::string> args);
int run_simulate(std::vector<std::string> args);

}  // namespace plimsoll
