//! Plans that are none are refused by name, by the reader here and by the writers for C and Python alike.

use std::{fs, path::Path, path::PathBuf, process::Command};

use firstdiff::trace::Plan;

use super::{
    header::PLAN,
    support::{compile, project, run},
};
use crate::trace::{python::python, support::Random};

/// What is replaced in a plan by what, what is said of it, and what the header says.
const REFUSED: [(&str, &str, &str, &str); 43] = [
    (
        "tokens 6",
        "tokens 13",
        "tokens has id 13, n_vocab is 13",
        "tokens has an id that is not below",
    ),
    (
        "tokens 6",
        "tokens -1",
        "tokens is \"-1\", not token ids",
        "tokens has a word that is not an id",
    ),
    ("tokens 6", "tokens", "tokens is \"\", not token ids", "tokens is not a line of a plan"),
    ("tokens 6", "tokens ", "tokens is \"\", not token ids", "tokens has a word that is not an id"),
    (
        "tokens 6",
        "tokens 6 ",
        "tokens is \"6 \", not token ids",
        "tokens has a word that is not an id",
    ),
    ("tokens 6", "tokens 6  5", "not token ids", "tokens has a word that is not an id"),
    ("tokens 6", "tokens +6", "not token ids", "tokens has a word that is not an id"),
    ("tokens 6", "tokens 6.0", "not token ids", "tokens has a word that is not an id"),
    ("tokens 6", "tokens 0x6", "not token ids", "tokens has a word that is not an id"),
    ("tokens 6", "tokens 4294967302", "not token ids", "tokens has a word that is not an id"),
    (
        "tokens 6",
        "tokens 99999999999999999999999",
        "not token ids",
        "tokens has a word that is not an id",
    ),
    ("tokens 6", "tokens 6\0", "line 30 has a NUL byte", "it has a NUL byte"),
    ("tokens 6", "token 6", "line 30 is not a line of a plan", "token is not a line of a plan"),
    ("tokens 1 2 3 4 5\ntokens 6\n", "", "tokens is missing", "it has no tokens"),
    ("tokens 6\n", "tokens 6", "line 30 is truncated", "it is truncated"),
    ("tokens 6\n", "tok", "line 30 is truncated", "it is truncated"),
    (
        "tokens 6\n",
        "tokens 6\ndecode -1\n",
        "decode is \"-1\", not a number",
        "decode is not a number",
    ),
    (
        "tokens 6\n",
        "tokens 6\ndecode 65537\n",
        "not a number of steps",
        "decode is not a number, or is too large",
    ),
    (
        "tokens 6\n",
        "tokens 6\ndecode 1\ndecode 1\n",
        "decode appears twice",
        "decode appears twice",
    ),
    ("n_vocab 13\n", "", "n_vocab is missing", "n_vocab is missing"),
    ("n_vocab 13", "n_vocab many", "n_vocab is not a number", "n_vocab is not a number"),
    ("blake3 ", "blake4 ", "line 2 is not a line of a plan", "blake4 is not a line of a plan"),
    ("n_vocab 13", "n_vocab 0", "n_vocab is 0", "n_vocab is not a number"),
    ("n_vocab 13", "n_vocab +13", "n_vocab is not a number", "n_vocab is not a number"),
    (
        "n_vocab 13",
        "n_vocab 16777217",
        "states 16777217 entries",
        "n_vocab is not a number, or is too large",
    ),
    ("n_vocab 13\n", "n_vocab 13\nn_vocab 13\n", "n_vocab appears twice", "n_vocab appears twice"),
    ("blake3 ab", "blake3 AB", "not 64 lowercase hex", "blake3 is not 64 lowercase hex"),
    ("architecture qwen3\n", "", "architecture is missing", "architecture is missing"),
    ("model small", "model\nmodel small", "line 1 is not a line", "model is not a line of a plan"),
    ("site k 0-1", "site q 0-1", "has blk.0.q twice", "q appears twice"),
    ("site k 0-1", "site q 1-1", "has blk.1.q twice", "q appears twice"),
    (
        "site q 0-1 token,head,dim T,6,4",
        "site q 0-1 token,head,dim T,6",
        "different numbers of axes",
        "different numbers of axes",
    ),
    (
        "site q 0-1 token,head,dim T,6,4",
        "site q 0-1 token,head,dim T,6,0",
        "not a site",
        "an invalid size",
    ),
    (
        "site q 0-1 token,head,dim T,6,4",
        "site q 0-1 token,head,dim T,6,T-T",
        "not a site",
        "an invalid size",
    ),
    (
        "site q 0-1 token,head,dim T,6,4",
        "site q 0-1 token,head,dim T,6,T*T*T",
        "not a site",
        "an invalid size",
    ),
    (
        "site q 0-1 token,head,dim T,6,4",
        "site q 0-1 token,head,dim T,6,9999999999999",
        "not a site",
        "an invalid size",
    ),
    (
        "site q 0-1 token,head,dim T,6,4",
        "site q 0-1 token,heads,dim T,6,4",
        "not a site",
        "an unknown axis",
    ),
    (
        "site q 0-1 token,head,dim T,6,4",
        "site q 0-1 token,head,dim",
        "not a site",
        "a site does not have four words",
    ),
    ("site q 0-1", "site q 1-0", "not a site", "layers that are invalid or do not ascend"),
    ("site q 0-1", "site q 0,0", "not a site", "layers that are invalid or do not ascend"),
    ("site q 0-1", "site q 0-1024", "not a site", "layers that are invalid or do not ascend"),
    ("site q 0-1", "site q -", "should be in one", "no layer and should be in one"),
    ("site embd -", "site embd 0", "should be in one", "no layer and should be in one"),
];

/// Which plans Python takes.
const SCRIPT: &str = "
import sys, firstdiff
for path in open(sys.argv[1]).read().split():
    try:
        firstdiff.Plan(path)
        print('taken')
    except ValueError as error:
        assert str(error).startswith(f'{path} is not a firstdiff plan: '), error
        print('refused')
";

/// The programs that read plans, and plans in a folder of their own.
struct Readers {
    folder: tempfile::TempDir,
    plans: Vec<PathBuf>,
}

impl Readers {
    fn new() -> Readers {
        let folder = tempfile::tempdir().unwrap();
        let compiler = ["gcc", "-std=c99", "-O1", "-x", "c"];
        compile(&compiler, &project().join("tests/bring/plans.c"), &folder.path().join("program"));
        Readers { folder, plans: Vec::new() }
    }

    /// Adds a plan: whether it is read here.
    fn add(&mut self, text: &[u8]) -> Result<Plan, String> {
        let path = self.folder.path().join(format!("{}.txt", self.plans.len()));
        fs::write(&path, text).unwrap();
        let plan = Plan::open(&path).map_err(|error| error.to_string());
        self.plans.push(path);
        plan
    }

    /// Whether C and Python take each plan, and what the header says of one that it refuses.
    fn others(&self) -> (Vec<bool>, Vec<bool>, Vec<String>) {
        let names: Vec<&str> = self.plans.iter().map(|path| path.to_str().unwrap()).collect();
        let trace = self.folder.path().join("trace");
        let program = self.folder.path().join("program");
        let output = run(&program, &[&[trace.to_str().unwrap()], &names[..]].concat());
        assert_eq!(output.status.code(), Some(0));
        let list = self.folder.path().join("list");
        fs::write(&list, names.join("\n")).unwrap();
        let mut command = Command::new(python());
        command.args(["-B", "-c", SCRIPT]).arg(&list).env("PYTHONPATH", project().join("python"));
        let of_python = command.output().unwrap();
        assert!(of_python.status.success(), "{}", String::from_utf8_lossy(&of_python.stderr));
        let taken = |out: &[u8]| -> Vec<bool> {
            String::from_utf8_lossy(out).lines().map(|line| line == "taken").collect()
        };
        let said = String::from_utf8_lossy(&output.stderr).lines().map(str::to_string).collect();
        (taken(&output.stdout), taken(&of_python.stdout), said)
    }
}

#[test]
fn each_malformed_plan_is_refused_by_name_by_every_reader() {
    let none = Plan::open(Path::new("no/such/plan.txt")).unwrap_err().to_string();
    assert!(none.contains("cannot read no/such/plan.txt"), "{none}");
    let mut readers = Readers::new();
    for (from, to, says, _) in REFUSED {
        assert!(PLAN.contains(from), "{from}");
        let error = readers.add(PLAN.replacen(from, to, 1).as_bytes()).unwrap_err();
        let path = readers.plans[readers.plans.len() - 1].display().to_string();
        assert!(error.contains(says) && error.contains(&path), "{to:?}: {error}");
    }
    let not_utf8 = [&b"model \xff\n"[..], PLAN.split_once('\n').unwrap().1.as_bytes()].concat();
    assert!(readers.add(&not_utf8).unwrap_err().contains("UTF-8"));
    let many = PLAN.to_string() + &"tokens 1\n".repeat(1 << 16);
    assert!(readers.add(many.as_bytes()).unwrap_err().contains("more than 65536 steps"));
    // Long before it would fill the memory.
    let layers = PLAN.replacen("site q 0-1", &format!("site q {}0", "0-1023,".repeat(1 << 20)), 1);
    assert!(readers.add(layers.as_bytes()).unwrap_err().contains("not a site"));
    let sites: String = (0..100_000).map(|n| format!("site a{n} 0-1023 token T\n")).collect();
    let sites = PLAN.replacen("site q 0-1", &format!("{sites}site q 0-1"), 1);
    assert!(readers.add(sites.as_bytes()).unwrap_err().contains("more than 131072 sites"));
    let (c, python, said) = readers.others();
    assert_eq!(c, vec![false; REFUSED.len() + 4]);
    assert_eq!(python, c);
    assert_eq!(said.len(), c.len(), "{said:?}");
    let more = [
        "it is not UTF-8 text",
        "it has no tokens, or too many",
        "do not ascend",
        "it has too many sites",
    ];
    for (line, says) in said.iter().zip(REFUSED.iter().map(|one| one.3).chain(more)) {
        assert!(line.contains(says) && line.contains("is not a firstdiff plan"), "{says}: {line}");
    }
}

#[test]
fn lines_may_end_as_on_windows_and_be_empty() {
    let mut readers = Readers::new();
    let right = readers.add(PLAN.as_bytes()).unwrap();
    let more = PLAN.to_string() + "decode 3\n";
    assert_eq!(readers.add(more.as_bytes()).unwrap().decode, 3);
    for text in [PLAN.replace('\n', "\r\n"), PLAN.replace("tokens 1", "\ntokens 1") + "\n"] {
        assert_eq!(readers.add(text.as_bytes()).unwrap(), right);
    }
    let (c, python, said) = readers.others();
    assert_eq!((c, python, said), (vec![true; 4], vec![true; 4], vec![]));
}

/// A plan with something in it that another one has not.
fn damaged(random: &mut Random) -> Vec<u8> {
    let mut text = PLAN.as_bytes().to_vec();
    for _ in 0..=random.below(3) {
        let at = random.below(text.len());
        let line_start = text[..at].iter().rposition(|&byte| byte == b'\n').map_or(0, |n| n + 1);
        let line_end = text[at..].iter().position(|&byte| byte == b'\n').map_or(at, |n| at + n + 1);
        let line = text[line_start..line_end].to_vec();
        match random.below(7) {
            0 => text[at] = b"0123456789-+, \r\nTPFqsx*\0"[random.below(24)],
            1 => drop(text.drain(at..(at + 1 + random.below(4)).min(text.len()))),
            2 => text.truncate(at.max(1)),
            3 => drop(text.drain(line_start..line_end)),
            4 => drop(text.splice(line_start..line_start, line)),
            5 => text.insert(at, b"0123456789-+, \n"[random.below(15)]),
            _ => drop(text.splice(at..at, PLAN.bytes().skip(random.below(PLAN.len())).take(20))),
        }
        if text.is_empty() {
            return text;
        }
    }
    text
}

#[test]
fn damaged_plans_are_refused_or_fit_and_all_readers_agree() {
    let (mut readers, mut random, mut taken) = (Readers::new(), Random(18), Vec::new());
    for round in 0..2000 {
        let plan = readers.add(&damaged(&mut random));
        taken.push(plan.is_ok());
        let Ok(plan) = plan else { continue };
        let ids = || plan.steps.iter().flatten();
        assert!(
            !plan.steps.is_empty() && plan.steps.iter().all(|step| !step.is_empty()),
            "{round}"
        );
        assert!(ids().all(|&id| id >= 0 && (id as usize) < plan.model.n_vocab), "{round}");
        assert_eq!(plan.model.blake3.len(), 64, "{round}");
        let written = readers.folder.path().join("written");
        fs::write(&written, plan.to_string()).unwrap();
        let again = Plan::open(Path::new(&written)).unwrap();
        assert_eq!(again.steps, plan.steps, "{round}");
        assert_eq!(again.model.sites, plan.model.sites, "{round}");
    }
    let count = taken.iter().filter(|&&is_taken| is_taken).count();
    assert!((100..1900).contains(&count), "{count} of 2,000 are still plans");
    let (c, python, _) = readers.others();
    for (round, &here) in taken.iter().enumerate() {
        let text = || fs::read_to_string(&readers.plans[round]).unwrap_or_default();
        assert!(c[round] == here && python[round] == here, "{round}: {here} here, {}", text());
    }
}
