//! python/firstdiff_pt.py reads what torch.save writes, and refuses what is no tensor.

use std::process::Command;

use super::support::project;
use crate::trace::python::python;

/// What `pt.py` prints of each file that it has written.
const SAID: &str = r#"good.pt layers/0/q float32 (3, 4) 66
good.pt layers/0/k float16 (3, 4) 66
good.pt v float32 (4, 3) 66
good.pt last float32 (4,) 38
good.pt bits uint16 (1,) 16256
good.pt one float32 () 0
good.pt many float32 (5,) 0
good.pt 7 int64 (1,) 3
alone.pt tensor float32 (3, 4) 66
system.pt: asks for posix.system, which is not supported; save a dict of tensors, of 8 to 64 bits as numpy has them, or bfloat16
module.pt: asks for torch.nn.Module, which is not supported; save a dict of tensors, of 8 to 64 bits as numpy has them, or bfloat16
past.pt: has a tensor of shape (4, 4) that ends after its storage of 12 elements
negative.pt: has a tensor that is not part of a storage
huge.pt: has a tensor of shape (1073741824, 1073741824), which has too many elements
short.pt: says 12 elements of the storage 0, which has 11
big.pt: was written on a big-endian machine; write it on a little-endian one
zipped.pt: has a compressed archive/data/0; torch.save writes it as it is
memo.pt: its pickle has LONG_BINPUT 2147483647, which no tensor needs
extension.pt: its pickle has EXT1 1, which no tensor needs
halved.pt is damaged
deep.pt: has dicts or lists nested 16 deep; save a flatter one
laughs.pt: has more than 1048576 values in its dicts and lists; save fewer in a file
axes.pt: has a tensor that is not part of a storage
old.pt is not a zip file of torch.save; save it with torch 1.6 or later
empty.pt: has no data.pkl, so torch.save did not write it
damaged: True
harmed: False
wrote 1 files to out; next: firstdiff align out --reference REF -o map.toml
0 2
True
"#;

#[test]
fn files_of_torch_are_read_without_torch_and_nothing_else_of_them_is_called() {
    let folder = tempfile::tempdir().unwrap();
    let script = project().join("tests/bring/pt.py");
    let mut command = Command::new(python());
    command.arg("-B").arg(script).arg(folder.path()).env("PYTHONPATH", project().join("python"));
    let output = command.output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), SAID);
    let complaint = "firstdiff_pt.py: out has no .pt or .pth file; name the folder of the dump\n";
    assert_eq!(String::from_utf8_lossy(&output.stderr), complaint);
}
