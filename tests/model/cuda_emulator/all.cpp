#include "emu.h"
#include "model/cuda/elementwise.cu"
#define kThreads kThreadsIndex
#include "model/cuda/index_rows.cu"
#undef kThreads
