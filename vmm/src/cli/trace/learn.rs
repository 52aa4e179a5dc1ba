//! `msr-vmm learn`.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use msr_bus::Document;
use msr_filter::{FilterConfig, FilterSpec, names};
use msr_kvm::load_profile;
use msr_trace::learn::{Check, Lesson, Profile};

use super::{LearnArgs, open, symbols, unreadable};
use crate::cli::{Failure, print};

/// Learns a profile, or holds one against what was recorded.
pub(crate) fn learn(args: &LearnArgs) -> Result<(), Failure> {
    if let Some(profile) = &args.check {
        return check(args, profile);
    }
    let mut lesson = Lesson::default();
    for path in &args.traces {
        let mut trace = open(path)?;
        let symbols = symbols::load(&args.symbols, trace.header(), trace.lstar())?;
        lesson
            .learn(&mut trace, symbols.as_ref(), args.with_losses)
            .map_err(|error| Failure::usage(format!("{} {error}", path.display())))?;
    }
    let profile = match &args.merge {
        None => lesson.profile(),
        Some(path) => {
            let file = Document::read(path).map_err(Failure::usage)?;
            let config: FilterConfig = file.parse().map_err(Failure::usage)?;
            lesson.merge_into(file.text(), &config)
        }
    };
    match &args.output {
        Some(path) => {
            fs::write(path, &profile.text).map_err(|error| Failure::cannot_write(path, &error))?;
        }
        None => print(&profile.text)?,
    }
    tell(&profile);
    Ok(())
}

/// Says what a person should know of the profile, on standard error.
fn tell(profile: &Profile) {
    let mut text = format!("{} MSRs are allowed by new rules\n", profile.msrs);
    for conflict in &profile.conflicts {
        let name = names::name(conflict.index).unwrap_or("-");
        text += &format!(
            "a {} of {:#x} {name} was used, and a rule of the profile denies it: it stays denied\n",
            conflict.kind, conflict.index
        );
    }
    if let Err(error) = profile.compiles() {
        text += &format!(
            "KVM does not take this filter: {error}. Widen a rule to a range, or do without some of them.\n"
        );
    }
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Prints what a profile would have denied.
fn check(args: &LearnArgs, profile: &Path) -> Result<(), Failure> {
    let config = load_profile(profile).map_err(Failure::usage)?;
    let spec = FilterSpec::from(&config);
    let mut text = String::new();
    for path in &args.traces {
        let mut trace = open(path)?;
        let header = trace.header().clone();
        let symbols = symbols::load(&args.symbols, &header, trace.lstar())?;
        let mut check = Check::new(&spec, &header, symbols.as_ref());
        for record in trace.records() {
            check.look(&record.map_err(|error| unreadable(path, &error))?);
        }
        for denied in check.denied() {
            text += &format!("{denied}\n");
        }
    }
    print(&text)?;
    if text.is_empty() {
        Ok(())
    } else {
        let lines = text.lines().count();
        Err(Failure::fault(format!(
            "{} denies {lines} kinds of access that were recorded",
            profile.display()
        )))
    }
}
