// The runtime API, for the code around a kernel: it compiles, and is not called, for firstdiff allocates,
// copies and launches itself. Each call would fail.
#pragma once
#include "cuda_host.h"
#include <float.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>

enum cudaError {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorNotSupported = 801,
    cudaErrorUnknown = 999,
};
typedef cudaError cudaError_t;
enum cudaMemcpyKind {
    cudaMemcpyHostToHost,
    cudaMemcpyHostToDevice,
    cudaMemcpyDeviceToHost,
    cudaMemcpyDeviceToDevice,
    cudaMemcpyDefault,
};
enum cudaFuncAttribute {
    cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
    cudaFuncAttributePreferredSharedMemoryCarveout = 9,
};
enum cudaFuncCache { cudaFuncCachePreferNone, cudaFuncCachePreferShared, cudaFuncCachePreferL1 };
enum cudaDeviceAttr {
    cudaDevAttrMaxThreadsPerBlock = 1,
    cudaDevAttrMaxSharedMemoryPerBlock = 8,
    cudaDevAttrWarpSize = 10,
    cudaDevAttrMultiProcessorCount = 16,
    cudaDevAttrComputeCapabilityMajor = 75,
    cudaDevAttrComputeCapabilityMinor = 76,
    cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
    cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};
enum { cudaEventDefault, cudaEventBlockingSync, cudaEventDisableTiming };
enum { cudaStreamDefault, cudaStreamNonBlocking };
struct cudaDeviceProp {
    char name[256];
    size_t totalGlobalMem, sharedMemPerBlock, sharedMemPerBlockOptin, sharedMemPerMultiprocessor;
    int regsPerBlock, maxThreadsPerBlock, maxThreadsDim[3], maxGridSize[3], clockRate, major,
        minor, multiProcessorCount, maxThreadsPerMultiProcessor, l2CacheSize, memoryClockRate,
        memoryBusWidth;
};
typedef struct CUstream_st* cudaStream_t;
typedef struct CUevent_st* cudaEvent_t;
typedef cudaStream_t CUstream;

static inline const char* cudaGetErrorString(cudaError_t error) {
    return error == cudaSuccess ? "no error" : "firstdiff runs kernels, and no calls of the CUDA runtime";
}
static inline const char* cudaGetErrorName(cudaError_t error) {
    return error == cudaSuccess ? "cudaSuccess" : "cudaErrorNotSupported";
}
#define CUDA_HOST_CALL(NAME)                                                                       \
    template <class... A>                                                                          \
    static inline cudaError_t NAME(A&&...) { return cudaErrorNotSupported; }
CUDA_HOST_CALL(cudaDeviceGetAttribute)
CUDA_HOST_CALL(cudaDeviceReset)
CUDA_HOST_CALL(cudaDeviceSynchronize)
CUDA_HOST_CALL(cudaEventCreate)
CUDA_HOST_CALL(cudaEventCreateWithFlags)
CUDA_HOST_CALL(cudaEventDestroy)
CUDA_HOST_CALL(cudaEventElapsedTime)
CUDA_HOST_CALL(cudaEventRecord)
CUDA_HOST_CALL(cudaEventSynchronize)
CUDA_HOST_CALL(cudaFree)
CUDA_HOST_CALL(cudaFreeAsync)
CUDA_HOST_CALL(cudaFreeHost)
CUDA_HOST_CALL(cudaFuncSetAttribute)
CUDA_HOST_CALL(cudaFuncSetCacheConfig)
CUDA_HOST_CALL(cudaGetDevice)
CUDA_HOST_CALL(cudaGetDeviceCount)
CUDA_HOST_CALL(cudaGetDeviceProperties)
CUDA_HOST_CALL(cudaGetLastError)
CUDA_HOST_CALL(cudaGetSymbolAddress)
CUDA_HOST_CALL(cudaHostAlloc)
CUDA_HOST_CALL(cudaLaunchCooperativeKernel)
CUDA_HOST_CALL(cudaLaunchKernel)
CUDA_HOST_CALL(cudaMalloc)
CUDA_HOST_CALL(cudaMallocAsync)
CUDA_HOST_CALL(cudaMallocHost)
CUDA_HOST_CALL(cudaMallocManaged)
CUDA_HOST_CALL(cudaMemGetInfo)
CUDA_HOST_CALL(cudaMemcpy)
CUDA_HOST_CALL(cudaMemcpyAsync)
CUDA_HOST_CALL(cudaMemcpyFromSymbol)
CUDA_HOST_CALL(cudaMemcpyToSymbol)
CUDA_HOST_CALL(cudaMemcpyToSymbolAsync)
CUDA_HOST_CALL(cudaMemset)
CUDA_HOST_CALL(cudaMemsetAsync)
CUDA_HOST_CALL(cudaOccupancyMaxActiveBlocksPerMultiprocessor)
CUDA_HOST_CALL(cudaOccupancyMaxPotentialBlockSize)
CUDA_HOST_CALL(cudaPeekAtLastError)
CUDA_HOST_CALL(cudaSetDevice)
CUDA_HOST_CALL(cudaStreamCreate)
CUDA_HOST_CALL(cudaStreamCreateWithFlags)
CUDA_HOST_CALL(cudaStreamDestroy)
CUDA_HOST_CALL(cudaStreamSynchronize)
CUDA_HOST_CALL(cudaStreamWaitEvent)

// Textures and surfaces: they compile, and a fetch ends the launch.
typedef unsigned long long cudaTextureObject_t;
typedef unsigned long long cudaSurfaceObject_t;
#define CUDA_HOST_FETCH(NAME, ...)                                                                 \
    template <class T>                                                                             \
    static inline T NAME(cudaTextureObject_t, __VA_ARGS__, CUDA_HOST_HERE) {                       \
        cuda_host_fail(#NAME ", a texture fetch, which no CPU does; use --device cuda, or read the " \
                       "array by a pointer", line, file);                                          \
    }
CUDA_HOST_FETCH(tex1Dfetch, int)
CUDA_HOST_FETCH(tex1D, float)
CUDA_HOST_FETCH(tex2D, float, float)
CUDA_HOST_FETCH(tex3D, float, float, float)
CUDA_HOST_FETCH(tex2DLayered, float, float, int)
