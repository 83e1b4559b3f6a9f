//! Holds an equal case to its baseline.

use crate::{
    ci::check::{
        Case, CheckError, Config, Lock,
        cases::Ran,
        ratchet::{Changes, accuracies_of, inputs},
    },
    core::exit::Exit,
    report::ci::{CaseResult, Change, Guilty, Place},
};

/// What a baseline makes of a case. One that is not equal says more by itself.
pub fn hold(
    config: &Config,
    case: &Case,
    result: &mut CaseResult,
    ran: &Ran<'_>,
    lock: &Lock,
) -> Result<(), CheckError> {
    if result.exit != Exit::Equal {
        return Ok(());
    }
    let mut end = |exit, why: String| {
        (result.exit, result.text) = (exit, format!("{why}; {}", result.text));
    };
    let Some(locked) = lock.cases.get(&case.id) else {
        end(Exit::NotMeasured, "it has no baseline; `firstdiff bless` writes one".to_string());
        return Ok(());
    };
    let own = (ran.model.hash(), inputs(ran.engine, ran.steps));
    for (was, now, what) in [
        (&locked.model, &own.0, "a different model"),
        (&locked.inputs, &own.1, "a different engine or other tokens"),
    ] {
        if was != now {
            let why = format!("its baseline is for {what} ({was}, not {now})");
            end(Exit::Refused, format!("{why}; `firstdiff bless` renews it"));
            return Ok(());
        }
    }
    let now = accuracies_of(ran.model, ran.engine, ran.steps, ran.recorded)?;
    let changes = Changes::of(locked, &now);
    if let Some(operation) = changes.unmatched.first() {
        let why = format!("{operation} is only in the baseline or only in the run");
        end(Exit::NotMeasured, format!("{why}; `firstdiff bless` renews it"));
    } else if let Some(worst) = changes.regressed.first() {
        let more = more(changes.regressed.len() - 1);
        let text = format!("{}, still within bound: {worst}{more}", headword(worst));
        (result.exit, result.text) = (Exit::Diverged, text);
        result.guilty = guilty(config, case, ran, &changes.regressed);
    }
    (result.regressed, result.improved) = (changes.regressed, changes.improved);
    Ok(())
}

/// `regressed 14 x`.
fn headword(change: &Change) -> String {
    if change.was > 0.0 {
        format!("regressed {} x", significant(change.times()))
    } else {
        "regressed from exact".to_string()
    }
}

/// Two digits are enough to see how much.
fn significant(times: f64) -> String {
    if times < 9.95 { format!("{times:.1}") } else { format!("{times:.0}") }
}

fn more(count: usize) -> String {
    match count {
        0 => String::new(),
        1 => "; 1 more operation".to_string(),
        more => format!("; {more} more operations"),
    }
}

/// What got worse, once a kernel: the worst of its operations.
fn guilty(config: &Config, case: &Case, ran: &Ran<'_>, regressed: &[Change]) -> Vec<Guilty> {
    let mut kernels: Vec<(Option<Place>, &Change, usize)> = Vec::new();
    for change in regressed {
        let place = config.place(ran.model, case, ran.steps, 0, change.operation.stage);
        match kernels.iter_mut().find(|(same, ..)| *same == place) {
            Some((_, _, count)) => *count += 1,
            None => kernels.push((place, change, 0)),
        }
    }
    let guilty = |(place, change, count): (Option<Place>, &Change, usize)| Guilty {
        text: format!("{}: {change}{}", headword(change), more(count)),
        place,
    };
    kernels.into_iter().map(guilty).collect()
}
