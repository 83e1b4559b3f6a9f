//! The program for this CPU. A package has one for every x86-64 from v2 up, and beside it the same built for v3.

/// Goes on as the program for a newer CPU, if this is one and that lies beside this program.
#[cfg(all(target_arch = "x86_64", not(target_feature = "avx2")))]
pub fn become_the_fastest() {
    use std::{env, os::unix::process::CommandExt, process::Command};

    let Ok(own) = env::current_exe() else { return };
    let mut name = own.file_name().unwrap_or_default().to_os_string();
    name.push("-x86-64-v3");
    let faster = own.with_file_name(name);
    if is_v3() && faster.is_file() {
        let mut arguments = env::args_os();
        let called = arguments.next().unwrap_or_default();
        // It comes back only where the file cannot be run: this program does the same.
        let _ = Command::new(faster).arg0(called).args(arguments).exec();
    }
}

/// This program is not for an old CPU alone.
#[cfg(not(all(target_arch = "x86_64", not(target_feature = "avx2"))))]
pub fn become_the_fastest() {}

/// Whether this CPU has all that x86-64-v3 is, and the system keeps the wide registers.
#[cfg(all(target_arch = "x86_64", not(target_feature = "avx2")))]
fn is_v3() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("lzcnt")
        && is_x86_feature_detected!("movbe")
}
