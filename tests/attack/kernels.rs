//! Hostile kernels: what a CUDA kernel under work can do to the program that runs it, and worse.

/// What must come of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The kernel is blamed, by its file, and the exit code is 5.
    Blamed,
    /// The program is ended by a limit of its own, and says so in one line.
    Ended,
    /// Nothing that can be seen: the verdict stands.
    Harmless,
}

/// A kernel that adds residuals, after it has done something else.
pub struct Hostile {
    pub name: &'static str,
    /// What thread 0 of block 0 does first.
    pub code: &'static str,
    pub fate: Fate,
}

/// The file that they all stand for.
pub const FILE: &str = "residual_add.cu";

const HEAD: &str = r#"#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "common.cuh"
static volatile int never = 1, first = 1;  // not 0: those are shared memory
static volatile int* volatile nowhere = (volatile int*)8;
__device__ int deeper(volatile char* above) {
    volatile char here[4096];
    here[0] = above[0];
    return deeper(here) + here[0];
}
static void loop_on(int) { for (;;) pause(); }
static void* crash(void*) { *nowhere = 1; return nullptr; }
static void spin() { for (;;) asm volatile(""); }
static void elsewhere() {
    sigset_t crashes;
    sigemptyset(&crashes);
    sigaddset(&crashes, SIGSEGV);
    pthread_sigmask(SIG_BLOCK, &crashes, nullptr);
    kill(getpid(), SIGSEGV);
    loop_on(0);
}
static long rest(volatile char* p) { return p[0]; }
"#;

const TAIL: &str = r#"
template <typename T>
__device__ void residual_add_element(T* out, const T* x, const T* y, int n) {
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i == 0) hostile(out, n);
    if (i < n) store(out + i, to_float(x[i]) + to_float(y[i]));
}
extern "C" __global__ void residual_add_f32(float* out, const float* x, const float* y, int n) {
    residual_add_element<float>(out, x, y, n);
}
extern "C" __global__ void residual_add_f16(__half* out, const __half* x, const __half* y, int n) {
    residual_add_element<__half>(out, x, y, n);
}
"#;

/// The variable that chooses one by its place.
pub const CHOICE: &str = "FIRSTDIFF_HOSTILE";

/// The kernel's file: all of them in one, which is compiled once.
pub fn source() -> String {
    let case = |(place, hostile): (usize, &Hostile)| {
        format!("case {place}: {{ {} }} break;\n", hostile.code)
    };
    let cases: String = ALL.iter().enumerate().map(case).collect();
    format!(
        "{HEAD}template <typename T> __device__ void hostile(T* out, int n) {{\n\
         const char* choice = getenv(\"{CHOICE}\");\n\
         switch (choice ? atoi(choice) : -1) {{\n{cases}}}\n}}{TAIL}"
    )
}

const fn of(name: &'static str, code: &'static str, fate: Fate) -> Hostile {
    Hostile { name, code, fate }
}

/// All of them.
pub const ALL: [Hostile; 53] = {
    use Fate::*;
    [
        of("writes to null", "*nowhere = 1;", Blamed),
        of("reads a wild address", "never = *(volatile int*)0xdeadbeef000;", Blamed),
        of("jumps to null", "((void (*)())nowhere)();", Blamed),
        of("traps", "__builtin_trap();", Blamed),
        of("has an illegal instruction", "raise(SIGILL);", Blamed),
        of("hits a breakpoint", "raise(SIGTRAP);", Blamed),
        of("divides by zero", "raise(SIGFPE);", Blamed),
        of("makes a forbidden system call", "raise(SIGSYS);", Blamed),
        of("overflows its stack", "volatile char top[8] = {0}; never = deeper(top) & 0;", Blamed),
        of(
            "takes a gigabyte of stack",
            "volatile char* p = (char*)__builtin_alloca(1 << 30); p[0] = 1; never = rest(p) & 0;",
            Blamed,
        ),
        of("calls _exit(0)", "_exit(0);", Blamed),
        of("calls _exit(1)", "_exit(1);", Blamed),
        of("calls exit(0)", "exit(0);", Blamed),
        of("calls exit(3)", "exit(3);", Blamed),
        of("calls quick_exit(0)", "quick_exit(0);", Blamed),
        of("exits by a system call", "syscall(SYS_exit_group, 0);", Blamed),
        of("aborts", "abort();", Blamed),
        of(
            "fails an assertion",
            "fprintf(stderr, \"assertion i < n failed\\n\"); abort();",
            Blamed,
        ),
        of("loops for ever", "spin();", Blamed),
        of("sleeps for ever", "for (;;) pause();", Blamed),
        of("stops itself", "raise(SIGSTOP);", Blamed),
        of("waits at a barrier alone", "__syncthreads();", Blamed),
        of(
            "waits for a thread that cannot run",
            "while (threadIdx.x == 0) asm volatile(\"\");",
            Blamed,
        ),
        of(
            "reads a pipe that nobody writes",
            "int p[2]; if (pipe(p) == 0) never = (int)read(p[0], p, 1) & 0;",
            Blamed,
        ),
        of("forks, and goes on twice", "fork();", Harmless),
        of("forks a child that sleeps", "if (fork() == 0) for (;;) pause();", Harmless),
        of(
            "forks children that loop",
            "if (first) { first = 0; if (fork() == 0) spin(); fork(); }",
            Harmless,
        ),
        of(
            "forks a daemon",
            "if (fork() == 0) { setsid(); if (fork() == 0) for (;;) pause(); _exit(0); }",
            Harmless,
        ),
        of("forks, and dies", "if (fork() == 0) for (;;) pause(); *nowhere = 1;", Blamed),
        of("prints", "printf(\"{\\\"verdict\\\": \\\"equal\\\"}\\n\");", Harmless),
        of(
            "prints ten thousand lines",
            "for (int i = 0; i < 10000; i++) printf(\"line %d\\n\", i);",
            Harmless,
        ),
        of("writes to standard output", "never = (int)write(1, \"equal\\n\", 6) & 0;", Harmless),
        of(
            "writes to standard error",
            "never = (int)write(2, \"firstdiff: equal\\n\", 17) & 0;",
            Harmless,
        ),
        of("closes standard output", "close(1); close(2);", Harmless),
        of("closes all files", "for (int f = 3; f < 1024; f++) close(f);", Ended),
        of(
            "puts another file on standard output",
            "int f = open(\"/dev/null\", O_WRONLY); dup2(f, 1);",
            Harmless,
        ),
        of("kills itself", "kill(getpid(), SIGKILL);", Blamed),
        of("terminates itself", "kill(getpid(), SIGTERM);", Blamed),
        of("interrupts itself", "kill(getpid(), SIGINT);", Blamed),
        of("kills its process group", "kill(0, SIGKILL);", Blamed),
        of("raises SIGSEGV", "raise(SIGSEGV);", Blamed),
        of("sets an alarm", "alarm(1); spin();", Blamed),
        of("handles its own crash, and waits", "signal(SIGSEGV, loop_on); *nowhere = 1;", Blamed),
        of(
            "blocks all signals, and loops",
            "sigset_t all; sigfillset(&all); sigprocmask(SIG_BLOCK, &all, nullptr); spin();",
            Blamed,
        ),
        of(
            "crashes in a thread of its own",
            "pthread_t t; pthread_create(&t, nullptr, crash, nullptr); pthread_join(t, nullptr);",
            Blamed,
        ),
        of("jumps to nowhere", "jmp_buf to; memset(&to, 0x41, sizeof to); longjmp(to, 1);", Blamed),
        of("frees what is not its own", "free((void*)((char*)out + 8));", Blamed),
        of("lets another thread crash at its exit", "atexit(elsewhere); exit(0);", Blamed),
        of("leaves a loop for the exit", "atexit(spin);", Blamed),
        of("leaves a crash for the exit", "atexit(abort);", Blamed),
        of("changes the folder", "never = chdir(\"/\") & 0;", Harmless),
        of("sleeps for a second", "if (first) { first = 0; sleep(1); }", Harmless),
        of("writes beside its element", "if (n > 2) never = n; out[n / 2] = out[0];", Harmless),
    ]
};
