# How llama.cpp is built for firstdiff. CMake includes this file at each project() of llama.cpp and ggml
# (CMAKE_PROJECT_INCLUDE, see config.toml). docs/building.md says what each part saves.

# Chat templates, HTTP and argument parsing: nothing here calls them, and they are a third of the work.
# The crate's feature for them cannot be turned off, for llama-cpp-2 asks for it.
set(LLAMA_BUILD_COMMON OFF)

# The optimisation that ggml's numbers are made with. Without debug info, which no report of firstdiff shows.
set(CMAKE_C_FLAGS_RELEASE "-O2 -DNDEBUG")
set(CMAKE_CXX_FLAGS_RELEASE "-O2 -DNDEBUG")

# Where f32 products are made: with -O2 alone gcc keeps their sums in memory instead of registers. -O3 would change the
# sums. And where weights are widened, with the same numbers: with -O2 one after another.
if (PROJECT_NAME STREQUAL "ggml")
    cmake_language(DEFER CALL set_source_files_properties
        "${CMAKE_CURRENT_SOURCE_DIR}/src/ggml-cpu/llamafile/sgemm.cpp"
        "${CMAKE_CURRENT_SOURCE_DIR}/src/ggml-cpu/vec.cpp"
        DIRECTORY "${CMAKE_CURRENT_SOURCE_DIR}/src" PROPERTIES COMPILE_OPTIONS -funroll-loops)
    cmake_language(DEFER CALL set_source_files_properties
        "${CMAKE_CURRENT_SOURCE_DIR}/src/ggml-quants.c"
        DIRECTORY "${CMAKE_CURRENT_SOURCE_DIR}/src" PROPERTIES COMPILE_OPTIONS -O3)
endif()

# Layers of the reference on other machines (--rpc). Over TCP alone, whatever libraries this machine has.
set(GGML_RPC ON)
set(GGML_RPC_RDMA OFF)

# The instructions of the CPU that Rust compiles for, and no others: ggml's own default is AVX2.
foreach (extension SSE42 AVX AVX2 BMI2 FMA F16C)
    if (NOT DEFINED CACHE{GGML_${extension}})
        set(GGML_${extension} OFF)
    endif()
endforeach()

# The code that reads models and builds graphs does no arithmetic on tensors: it is compiled quickly, and
# its headers, most of the work, once.
if (PROJECT_NAME STREQUAL "llama.cpp")
    cmake_language(DEFER CALL firstdiff_compile_llama_quickly)
    function (firstdiff_compile_llama_quickly)
        target_compile_options(llama PRIVATE -O1 -fexpensive-optimizations)
        target_precompile_headers(llama PRIVATE
            <algorithm> <functional> <map> <memory> <regex> <string> <unordered_map> <vector>
            "${CMAKE_CURRENT_SOURCE_DIR}/src/llama-model.h")
    endfunction()
endif()
