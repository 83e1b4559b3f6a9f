//! `--help`: the commands by what they are for, and examples of each.

use clap::{Command, CommandFactory};

use super::args::Cli;

/// The commands, by what a user has.
const GROUPS: [(&str, &[&str]); 4] = [
    (
        "Your engine, through a recorded trace",
        &["plan", "capture", "validate", "explain", "diff", "sites", "align", "import"],
    ),
    (
        "Your CUDA kernel, in firstdiff's own engine",
        &["run", "kernels", "variants", "faults", "progress"],
    ),
    ("Continuous integration", &["check", "bless", "merge", "bisect"]),
    ("This machine", &["doctor", "cut", "synth", "rpc-server", "completions"]),
];

/// Ways to call each command.
const EXAMPLES: [(&str, &[&str]); 22] = [
    ("cut", &["firstdiff cut llama-70b.gguf --layers 2 -o two-layers.gguf"]),
    (
        "run",
        &[
            "firstdiff run -m model.gguf -p 'Once upon a time'",
            "firstdiff run --kernels my_kernels --watch",
            "firstdiff run --lengths auto --json report.json",
            "firstdiff run --html report.html",
        ],
    ),
    (
        "capture",
        &[
            "firstdiff capture reference -m model.gguf -p 'Once upon a time' -o ref",
            "firstdiff capture reference -m model.gguf --tokens-of mine -o ref",
            "firstdiff capture reference -m big.gguf --reference native --rpc node1:50052,node2:50052 -o ref",
            "firstdiff capture engine --fault rope-pairs-interleaved -o faulty",
        ],
    ),
    (
        "plan",
        &[
            "firstdiff plan -m model.gguf -p 'Once upon a time' -n 4 -o plan.txt",
            "firstdiff plan -m model.gguf --tokens 1,5,9 --decoded 7,2",
            "firstdiff plan -m model.gguf -f prompt.txt --chunks 16",
        ],
    ),
    (
        "diff",
        &[
            "firstdiff diff mine ref",
            "firstdiff diff mine ref --sites 'q_rope,blk.0.*' --json report.json",
            "firstdiff diff whole chunked --same-engine -m model.gguf",
        ],
    ),
    (
        "explain",
        &[
            "firstdiff explain mine -m model.gguf",
            "firstdiff explain mine --reference ref -m model.gguf",
            "firstdiff explain batch -m model.gguf --sequence 1 --json report.json",
            "firstdiff explain mine --reference ref -m model.gguf --html report.html",
        ],
    ),
    (
        "sites",
        &[
            "firstdiff sites",
            "firstdiff sites -m model.gguf",
            "firstdiff sites -m model.gguf --json",
        ],
    ),
    ("validate", &["firstdiff validate mine"]),
    (
        "align",
        &[
            "firstdiff align dump --reference ref",
            "firstdiff align dump --reference ref -o map.toml",
        ],
    ),
    (
        "import",
        &[
            "firstdiff import dump --map map.toml --reference ref -o mine",
            "firstdiff import dump --map map.toml --reference ref -o mine --dtype f16",
        ],
    ),
    ("progress", &["firstdiff progress before.json after.json"]),
    (
        "variants",
        &[
            "firstdiff variants",
            "firstdiff variants -m model.gguf --dtype f16",
            "firstdiff variants --kernels my_kernels --json table.json",
        ],
    ),
    (
        "check",
        &[
            "firstdiff check",
            "firstdiff check --config ci.toml --baseline firstdiff.lock.json",
            "firstdiff check --partition hash:2/3 --json part2.json",
            "firstdiff check --html check.html",
        ],
    ),
    (
        "bless",
        &[
            "firstdiff bless",
            "firstdiff bless --all",
            "firstdiff bless --config ci.toml --improved",
        ],
    ),
    (
        "bisect",
        &[
            "firstdiff bisect v1.0 HEAD",
            "firstdiff bisect v1.0 HEAD --folder src/kernels",
            "firstdiff bisect HEAD~20 HEAD -m model.gguf --dtype f16",
        ],
    ),
    (
        "merge",
        &[
            "firstdiff merge part1.json part2.json",
            "firstdiff merge part1.json part2.json --json all.json --junit junit.xml",
        ],
    ),
    (
        "kernels",
        &[
            "firstdiff kernels check",
            "firstdiff kernels check rope.cu --kernels my_kernels",
            "firstdiff kernels check --kernel attention=my.toml --shuffle-threads 10",
        ],
    ),
    ("faults", &["firstdiff faults"]),
    (
        "synth",
        &[
            "firstdiff synth --shape tiny-qwen3 -o random.gguf",
            "firstdiff synth --arch gemma3 --set block_count=2 -o random.gguf",
            "firstdiff synth --list-archs",
        ],
    ),
    (
        "rpc-server",
        &["firstdiff rpc-server", "firstdiff rpc-server --host 192.168.1.7 --port 50052"],
    ),
    ("doctor", &["firstdiff doctor", "firstdiff doctor --json", "firstdiff doctor --prune"]),
    (
        "completions",
        &["firstdiff completions bash > ~/.local/share/bash-completion/completions/firstdiff"],
    ),
];

const EXIT_CODES: &str = "\
Exit codes: 0 equal within the floor · 1 diverged · 2 usage or bad input · 3 incomparable ·
4 nothing or not enough measured · 5 device or engine failure · 70 internal error";

/// The command line with its help.
pub fn command() -> Command {
    let command = Cli::command();
    let groups = groups(&command);
    let template =
        format!("{{about}}\n\nUsage: firstdiff <COMMAND>\n{groups}\n{{options}}{{after-help}}");
    let command = command.help_template(template).after_help(EXIT_CODES);
    EXAMPLES.iter().fold(command, |command, (name, examples)| {
        let help = format!("Examples:\n  {}\n\n{EXIT_CODES}", examples.join("\n  "));
        command.mut_subcommand(name, |one| one.after_help(help))
    })
}

fn groups(command: &Command) -> String {
    let about = |name: &str| {
        let found = command.find_subcommand(name).and_then(Command::get_about);
        found.map_or(String::new(), ToString::to_string)
    };
    let mut text = String::new();
    for (title, names) in GROUPS {
        text += &format!("\n{title}:\n");
        for name in names {
            text += &format!("  {name:<12} {}\n", about(name));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_command_is_in_a_group_and_its_examples_are_calls_of_it() {
        let command = command();
        let shown = command.get_subcommands().filter(|one| !one.is_hide_set());
        let all: BTreeSet<&str> = shown.map(Command::get_name).collect();
        let grouped: BTreeSet<&str> =
            GROUPS.iter().flat_map(|(_, names)| names.iter().copied()).collect();
        let explained: BTreeSet<&str> = EXAMPLES.iter().map(|(name, _)| *name).collect();
        assert_eq!(all, grouped);
        assert_eq!(all, explained);
        for example in EXAMPLES.iter().flat_map(|(_, examples)| *examples) {
            let call = example.split(" > ").next().unwrap_or(example).replace('\'', "");
            let call = call.replace("Once upon a time", "text");
            let parsed = super::command().try_get_matches_from(call.split(' '));
            assert!(parsed.is_ok(), "{example}: {}", parsed.unwrap_err());
        }
    }
}
