//! The handler of fatal signals: it notes which thread got one, and where, and lets the process die of it.

use std::{ffi::c_int, sync::atomic::Ordering::Relaxed};

use super::{
    notes::{remember_process, slot_number},
    page::{Text, page},
};

const FATAL: [c_int; 7] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGILL,
    libc::SIGFPE,
    libc::SIGABRT,
    libc::SIGTRAP,
    libc::SIGSYS,
];

/// Installs the handler. It runs on the stack that Rust keeps for it in each of its threads, so that the
/// overflow of any other is seen.
pub fn watch_faults() {
    remember_process();
    // The page is there before a handler needs it.
    page();
    for signal in FATAL {
        // SAFETY: the action is zeroed and filled; the handler does nothing that a signal forbids.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = note as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigemptyset(&mut action.sa_mask);
            libc::sigaction(signal, &action, std::ptr::null_mut());
        }
    }
}

extern "C" fn note(signal: c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let fault = &page().fault;
    // The first is the one that says something.
    if fault.signal.compare_exchange(0, signal as u32, Relaxed, Relaxed).is_ok() {
        fault.slot.store(slot_number(), Relaxed);
        // SAFETY: the system passes the signal's information. One that was sent has no address.
        let address = unsafe { if (*info).si_code > 0 { (*info).si_addr() as u64 } else { 0 } };
        fault.address.store(address, Relaxed);
        if signal == libc::SIGBUS {
            note_mapped(address, &fault.mapped);
        }
        if slot_number() == 0 {
            // SAFETY: the system passes the context of the thread.
            note_mapped(unsafe { program_counter(context) }, &fault.code);
        }
    }
    // SAFETY: what the signal does by itself is put back. An instruction that faults does so again when this
    // returns; a signal that was sent is sent again, and comes when this returns.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = libc::SIG_DFL;
        libc::sigaction(signal, &action, std::ptr::null_mut());
        libc::raise(signal);
    }
}

/// Where the thread was; 0 where that is not known.
///
/// # Safety
/// The context is that of a signal.
unsafe fn program_counter(context: *mut libc::c_void) -> u64 {
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    // SAFETY: as the caller says.
    return unsafe {
        (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs[libc::REG_RIP as usize] as u64
    };
    #[cfg(all(target_os = "linux", target_arch = "aarch64"))]
    // SAFETY: as the caller says.
    return unsafe { (*context.cast::<libc::ucontext_t>()).uc_mcontext.pc };
    #[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
    {
        let _ = context;
        0
    }
}

/// Notes the file that is mapped at an address, as /proc/self/maps has it.
fn note_mapped(address: u64, to: &Text<1024>) {
    // SAFETY: the path is NUL-terminated; reading goes to a buffer of that size.
    let file = unsafe { libc::open(c"/proc/self/maps".as_ptr(), libc::O_RDONLY) };
    let mut chunk = [0u8; 512];
    let mut line = [0u8; 1400];
    let mut length = 0;
    loop {
        // SAFETY: as above.
        let n = unsafe { libc::read(file, chunk.as_mut_ptr().cast(), chunk.len()) };
        if n <= 0 {
            return;
        }
        for &byte in &chunk[..n as usize] {
            if byte != b'\n' {
                if length < line.len() {
                    line[length] = byte;
                    length += 1;
                }
                continue;
            }
            if let Some(path) = mapped(&line[..length], address) {
                to.set(path);
                return;
            }
            length = 0;
        }
    }
}

/// The path of a line `start-end rights offset device inode path` of maps, if it has the address.
fn mapped(line: &[u8], address: u64) -> Option<&[u8]> {
    let mut fields = line.split(|&byte| byte == b' ').filter(|field| !field.is_empty());
    let range = fields.next()?;
    let dash = range.iter().position(|&byte| byte == b'-')?;
    let inside = (hex(&range[..dash])..hex(&range[dash + 1..])).contains(&address);
    let slash = line.iter().position(|&byte| byte == b'/')?;
    inside.then(|| &line[slash..])
}

fn hex(digits: &[u8]) -> u64 {
    let digit = |&byte: &u8| (byte as char).to_digit(16).map_or(0, u64::from);
    digits.iter().fold(0, |value, byte| value << 4 | digit(byte))
}

#[cfg(test)]
mod tests {
    use super::mapped;

    #[test]
    fn the_file_of_an_address_is_found_in_a_line_of_maps() {
        let line = b"7f00a000-7f00b000 r--s 00000000 fe:01 131 /a b/model.gguf";
        assert_eq!(mapped(line, 0x7f00_afff), Some(&b"/a b/model.gguf"[..]));
        assert_eq!(mapped(line, 0x7f00_b000), None);
        assert_eq!(mapped(b"7f00a000-7f00b000 rw-p 00000000 00:00 0 [stack]", 0x7f00_a000), None);
    }
}
