//! Shared arrays in the assembly of a kernel file: gaps between them, and a table that names them.

/// Bytes after each shared array (`STATIC_GAP` in `cuda_host_check.h`).
const GAP: usize = 64;

/// Makes each shared array longer by a gap, and adds a table of (address, size, name).
///
/// A zero-initialised static is one line in what g++ and clang++ write, `.comm name,bytes,align`.
pub fn with_gaps(assembly: &str) -> String {
    let mut out = String::with_capacity(assembly.len() + 1024);
    let mut table = String::new();
    for line in assembly.lines() {
        match variable(line) {
            Some((name, bytes, align)) => {
                out += &format!("\t.comm\t{name},{},{align}\n", bytes + GAP);
                table += &row(name, bytes);
            }
            None => {
                out += line;
                out.push('\n');
            }
        }
    }
    out + &table
}

fn variable(line: &str) -> Option<(&str, usize, &str)> {
    let mut parts = line.trim().strip_prefix(".comm")?.trim().split(',');
    let (name, bytes, align) = (parts.next()?, parts.next()?, parts.next()?);
    Some((name, bytes.trim().parse().ok()?, align))
}

fn row(name: &str, bytes: usize) -> String {
    format!(
        "\t.section\tcudashm_vars,\"aw\"\n\t.balign 8\n\t.quad {name}\n\t.quad {bytes}\n\
         \t.quad 9f\n\t.section\t.rodata.cudashm_names,\"a\"\n9:\t.string \"{name}\"\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_shared_array_has_a_gap_and_a_row() {
        let text = with_gaps("\t.text\n\t.local\t_ZZ1kE1a\n\t.comm\t_ZZ1kE1a,512,32\n\tret\n");
        assert!(text.starts_with("\t.text\n\t.local\t_ZZ1kE1a\n\t.comm\t_ZZ1kE1a,576,32\n\tret\n"));
        assert!(text.contains("\t.quad _ZZ1kE1a\n\t.quad 512\n"), "{text}");
        assert!(text.ends_with("9:\t.string \"_ZZ1kE1a\"\n"), "{text}");
    }
}
