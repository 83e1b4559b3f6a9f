// Switches from the stack of one fiber to that of another.
#pragma once

// Where a fiber goes on.
#if defined(__x86_64__)
struct Context { void *sp, *bp, *pc; };
// Inlined, and by a jump: all fibers come from one place and go on at one place, which the processor
// learns. A `ret` to another stack it would predict wrongly each time.
__attribute__((always_inline)) static inline void switch_to(Context* save, const Context* to) {
    asm volatile(
        "lea 1f(%%rip), %%rax\n"
        "mov %%rsp, (%%rdi)\n"
        "mov %%rbp, 8(%%rdi)\n"
        "mov %%rax, 16(%%rdi)\n"
        "mov (%%rsi), %%rsp\n"
        "mov 8(%%rsi), %%rbp\n"
        "jmp *16(%%rsi)\n"
        "1:"
        : "+D"(save), "+S"(to)
        :
        : "rax", "rbx", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "xmm0",
          "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",
          "xmm12", "xmm13", "xmm14", "xmm15", "cc", "memory");
}
static Context begin_at(void** top, void (*function)()) {
    top[-1] = nullptr;
    return {top - 1, nullptr, (void*)function};
}
#elif defined(__aarch64__)
extern "C" HIDDEN void cuda_host_switch(void** save, void* to);
asm(R"(
.text
.hidden cuda_host_switch
.globl cuda_host_switch
.type cuda_host_switch,%function
cuda_host_switch:
    sub sp,sp,#160
    stp x19,x20,[sp]
    stp x21,x22,[sp,#16]
    stp x23,x24,[sp,#32]
    stp x25,x26,[sp,#48]
    stp x27,x28,[sp,#64]
    stp x29,x30,[sp,#80]
    stp d8,d9,[sp,#96]
    stp d10,d11,[sp,#112]
    stp d12,d13,[sp,#128]
    stp d14,d15,[sp,#144]
    mov x9,sp
    str x9,[x0]
    mov sp,x1
    ldp x19,x20,[sp]
    ldp x21,x22,[sp,#16]
    ldp x23,x24,[sp,#32]
    ldp x25,x26,[sp,#48]
    ldp x27,x28,[sp,#64]
    ldp x29,x30,[sp,#80]
    ldp d8,d9,[sp,#96]
    ldp d10,d11,[sp,#112]
    ldp d12,d13,[sp,#128]
    ldp d14,d15,[sp,#144]
    add sp,sp,#160
    ret
.size cuda_host_switch,.-cuda_host_switch
)");
struct Context { void* sp; };
static inline void switch_to(Context* save, const Context* to) {
    cuda_host_switch(&save->sp, to->sp);
}
static Context begin_at(void** top, void (*function)()) {
    void** frame = top - 20;
    memset(frame, 0, sizeof(void*) * 20);
    frame[11] = (void*)function;
    return {frame};
}
#else
#error "the host device runs on x86-64 and aarch64"
#endif
