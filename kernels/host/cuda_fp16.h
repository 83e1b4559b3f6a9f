// Stands in for NVIDIA's header when kernels are compiled for the CPU: cuda_host.h has it all.
#pragma once
#include "cuda_host.h"
