// assert() of a kernel: what fails ends the launch with its line.
#include "cuda_host.h"
#undef assert
#ifdef NDEBUG
#define assert(condition) ((void)0)
#else
#define assert(...)                                                                                \
    ((__VA_ARGS__) ? (void)0                                                                       \
                   : cuda_host_fail("assertion `" #__VA_ARGS__ "` failed", __LINE__, __FILE__))
#endif
