// The functions that -fsanitize=thread,undefined makes the compiler call, without the runtimes that
// usually have them. The names and data layouts are the compilers'.
#pragma once

#define HOOK extern "C" HIDDEN
#define HERE __builtin_return_address(0)

#define ACCESS_HOOKS(N)                                                                            \
    HOOK void __tsan_read##N(void* p) { check_access(p, N, READ, true, HERE); }                    \
    HOOK void __tsan_write##N(void* p) { check_access(p, N, WRITE, false, HERE); }                 \
    HOOK void __tsan_unaligned_read##N(void* p) { check_access(p, N, READ, true, HERE); }          \
    HOOK void __tsan_unaligned_write##N(void* p) { check_access(p, N, WRITE, false, HERE); }       \
    HOOK void __tsan_read_write##N(void* p) {                                                      \
        check_access(p, N, READ, true, HERE);                                                      \
        check_access(p, N, WRITE, false, HERE);                                                    \
    }
ACCESS_HOOKS(1)
ACCESS_HOOKS(2)
ACCESS_HOOKS(4)
ACCESS_HOOKS(8)
ACCESS_HOOKS(16)
HOOK void __tsan_read_range(void* p, size_t n) { if (n) check_access(p, n, READ, true, HERE); }
HOOK void __tsan_write_range(void* p, size_t n) { if (n) check_access(p, n, WRITE, false, HERE); }
// What clang++ makes of memcpy and its like; g++ leaves these calls as they are, unseen.
HOOK void* __tsan_memcpy(void* to, const void* from, size_t n) {
    __tsan_read_range((void*)from, n);
    __tsan_write_range(to, n);
    return memcpy(to, from, n);
}
HOOK void* __tsan_memmove(void* to, const void* from, size_t n) {
    __tsan_read_range((void*)from, n);
    __tsan_write_range(to, n);
    return memmove(to, from, n);
}
HOOK void* __tsan_memset(void* to, int value, size_t n) {
    __tsan_write_range(to, n);
    return memset(to, value, n);
}
// g++ guards a shared array of a class as if it had a constructor to call: that is done, always.
HOOK char __tsan_atomic8_load(const volatile char*, int) { return 1; }
HOOK void __tsan_init() {}
HOOK void __tsan_func_entry(void*) {}
HOOK void __tsan_func_exit() {}

// The two halves of an atomic of cuda_host.h: the check, and a copy that is not checked again.
HOOK void cuda_host_check_atomic(void* p, size_t n, int reads) {
    check_access(p, n, ATOMIC, reads, HERE);
    publish(p);
}
HOOK void cuda_host_check_fence() { fence(); }
HOOK void cuda_host_copy(void* to, const void* from, size_t n) { memcpy(to, from, n); }

// ---- undefined behaviour -----------------------------------------------------------------------

// What the compiler knows of a place, and of a type: its name follows kind and info.
struct Place { const char* file; uint32_t line, column; };
struct Type { uint16_t kind, info; char name[1]; };
struct Bounds { Place place; const Type *array, *index; };
struct Mismatch { Place place; const Type* type; uint8_t log_alignment, kind; };

__attribute__((noreturn, format(printf, 3, 4))) static void undefined(const char* what,
                                                                      const Place& place,
                                                                      const char* format, ...) {
    char text[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    report_unwritten(false);  // such a read can send a thread anywhere
    set_error("%s: %s at %s:%u: %s", what, name_of(threads[self.current]), base_name(place.file),
              place.line, text);
    leave();
}

#define UNDEFINED(NAME) "undefined behaviour", *(const Place*)NAME
#define UNDEFINED_HOOK(NAME, TEXT)                                                                 \
    HOOK void __ubsan_handle_##NAME##_abort(void* data) { undefined(UNDEFINED(data), TEXT); }
UNDEFINED_HOOK(shift_out_of_bounds, "a shift by a negative amount or by the whole width")
UNDEFINED_HOOK(divrem_overflow, "an integer division by zero, or its overflow")
UNDEFINED_HOOK(add_overflow, "a signed overflow of +")
UNDEFINED_HOOK(sub_overflow, "a signed overflow of -")
UNDEFINED_HOOK(mul_overflow, "a signed overflow of *")
UNDEFINED_HOOK(negate_overflow, "a signed overflow of a negation")
UNDEFINED_HOOK(pointer_overflow, "a pointer moved past the end of the address space, or a null one")
UNDEFINED_HOOK(load_invalid_value, "a bool or enum with a value that it cannot have")
UNDEFINED_HOOK(float_cast_overflow, "a float that does not fit the integer")
UNDEFINED_HOOK(vla_bound_not_positive, "an array whose size is not positive")
UNDEFINED_HOOK(nonnull_arg, "a null argument")
UNDEFINED_HOOK(nonnull_return_v1, "a null result")
UNDEFINED_HOOK(invalid_builtin, "an argument that a builtin does not take")
UNDEFINED_HOOK(function_type_mismatch, "a call through a pointer of the wrong type")
UNDEFINED_HOOK(function_type_mismatch_v1, "a call through a pointer of the wrong type")
// These two have no recoverable form, and no _abort in their names.
HOOK void __ubsan_handle_missing_return(void* data) { undefined(UNDEFINED(data), "no return"); }
HOOK void __ubsan_handle_builtin_unreachable(void* data) {
    undefined(UNDEFINED(data), "a place that is said to be unreachable");
}

HOOK void __ubsan_handle_out_of_bounds_abort(Bounds* data, uintptr_t index) {
    int width = 1 << (data->index->info >> 1);
    bool is_signed = data->index->info & 1;
    long long value = is_signed && width == 32 ? (int)index : (long long)index;
    undefined("out of bounds", data->place, "index %lld of %s", value, data->array->name);
}

HOOK void __ubsan_handle_type_mismatch_v1_abort(Mismatch* data, uintptr_t pointer) {
    uintptr_t alignment = (uintptr_t)1 << data->log_alignment;
    if (!pointer) undefined("out of bounds", data->place, "a null pointer to %s", data->type->name);
    if (pointer & (alignment - 1)) {
        undefined(UNDEFINED(data), "a %s at an address that is no multiple of %zu",
                  data->type->name, (size_t)alignment);
    }
    undefined("out of bounds", data->place, "past the end of an object, as %s", data->type->name);
}
