//! The profile as a file: TOML that people read and change.

use std::collections::BTreeMap;
use std::fmt::Write;

use msr_filter::{
    Access, CompileError, FilterConfig, FilterSpec, MsrRange, RuleConfig, Verdict, names,
};

use super::{Lesson, Use};
use crate::record::Kind;

/// How many callers a line names.
const CALLERS: usize = 3;

/// A learnt profile.
#[derive(Clone, Debug)]
pub struct Profile {
    /// Its text, to be written to a file.
    pub text: String,
    /// The filter that it means, with that of the profile it was merged into.
    pub spec: FilterSpec,
    /// How many MSRs the new rules allow to be read or written.
    pub msrs: usize,
    /// What the profile that it was merged into denies by a rule of its own, although guests used it. The rule stays.
    pub conflicts: Vec<Conflict>,
}

/// A use that a profile denies on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The MSR.
    pub index: u32,
    /// The kind of access.
    pub kind: Kind,
}

/// One rule to be written.
struct Line {
    msrs: MsrRange,
    access: Access,
    comment: String,
}

impl Lesson {
    /// The profile that allows what was used, for itself.
    pub fn profile(&self) -> Profile {
        let mut text = format!(
            "# Learnt from {} of a guest by msr-vmm learn. It allows what KVM answered and denies everything else;\n\
             # devices answer what they claim in any case.\n\ndefault = \"deny\"\n",
            if self.traces == 1 {
                "one recording".to_owned()
            } else {
                format!("{} recordings", self.traces)
            }
        );
        let spec = FilterSpec::new(Verdict::Deny);
        let (lines, conflicts) = self.lines(&spec, None);
        append(&mut text, &lines);
        Profile {
            spec: with(spec, &lines),
            msrs: count(&lines),
            text,
            conflicts,
        }
    }

    /// `text`, a profile that `config` was read from, with rules added for what it does not allow yet.
    pub fn merge_into(&self, text: &str, config: &FilterConfig) -> Profile {
        let spec = FilterSpec::from(config);
        let (lines, conflicts) = self.lines(&spec, Some(config));
        let mut text = text.trim_end().to_owned() + "\n";
        append(&mut text, &lines);
        Profile {
            spec: with(spec, &lines),
            msrs: count(&lines),
            text,
            conflicts,
        }
    }

    /// The rules that `spec` lacks.
    fn lines(
        &self,
        spec: &FilterSpec,
        config: Option<&FilterConfig>,
    ) -> (Vec<Line>, Vec<Conflict>) {
        let mut lines = Vec::new();
        let mut conflicts = Vec::new();
        let denied_on_purpose = |rule: &RuleConfig, index: u32, access: Access| {
            rule.verdict == Verdict::Deny
                && rule.access.contains(access)
                && rule.msrs.iter().any(|msrs| msrs.contains(index))
        };
        let mut by_msr: BTreeMap<u32, Vec<(Kind, &Use)>> = BTreeMap::new();
        for ((index, kind), used) in &self.used {
            let access = kind.access();
            if spec.verdict(*index, access) == Verdict::Allow {
                continue;
            }
            if config.is_some_and(|c| c.rules.iter().any(|r| denied_on_purpose(r, *index, access)))
            {
                conflicts.push(Conflict {
                    index: *index,
                    kind: *kind,
                });
                continue;
            }
            by_msr.entry(*index).or_default().push((*kind, used));
        }
        for (index, uses) in by_msr {
            let access = uses
                .iter()
                .fold(Access::empty(), |all, (kind, _)| all | kind.access());
            let comment = uses
                .iter()
                .map(|(kind, used)| describe(*kind, used))
                .collect::<Vec<_>>()
                .join("; ");
            lines.push(Line {
                msrs: MsrRange::single(index),
                access,
                comment,
            });
        }
        for (msrs, why) in self.not_seen() {
            let all = (msrs.first()..=msrs.last()).all(|index| {
                [Access::READ, Access::WRITE]
                    .iter()
                    .all(|access| spec.verdict(index, *access) == Verdict::Allow)
            });
            if !all {
                lines.push(Line {
                    msrs,
                    access: Access::all(),
                    comment: format!("not seen by any run: {why}"),
                });
            }
        }
        (lines, conflicts)
    }
}

fn describe(kind: Kind, used: &Use) -> String {
    let mut callers: Vec<(&String, &u64)> = used.callers.iter().collect();
    callers.sort_by_key(|(name, count)| (std::cmp::Reverse(**count), name.as_str()));
    let more = callers.len().saturating_sub(CALLERS);
    let mut text = format!("{kind} {}", used.count);
    if !callers.is_empty() {
        let names: Vec<&str> = callers
            .iter()
            .take(CALLERS)
            .map(|(name, _)| name.as_str())
            .collect();
        let _ = write!(text, " by {}", names.join(", "));
    }
    if more > 0 {
        let _ = write!(text, " and {more} more");
    }
    text
}

fn append(text: &mut String, lines: &[Line]) {
    for line in lines {
        // Names of the guest's functions come from its kernel's image: no line may end before its time.
        let comment: String = line
            .comment
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        let name = if line.msrs.len() == 1 {
            names::name(line.msrs.first()).map_or(String::new(), |name| format!("{name}: "))
        } else {
            String::new()
        };
        let access = match (
            line.access.contains(Access::READ),
            line.access.contains(Access::WRITE),
        ) {
            (true, true) => "rw",
            (true, false) => "r",
            _ => "w",
        };
        let msrs = line.msrs;
        let _ = write!(
            text,
            "\n[[rule]] # {name}{comment}\nmsrs = [\"{msrs}\"]\naccess = \"{access}\"\nverdict = \"allow\"\n"
        );
    }
}

fn with(mut spec: FilterSpec, lines: &[Line]) -> FilterSpec {
    let rules = lines
        .iter()
        .map(|line| msr_filter::Rule::new(line.msrs, line.access, Verdict::Allow));
    spec.rules.extend(rules);
    spec
}

/// How many MSRs rules allow to be read or written.
fn count(lines: &[Line]) -> usize {
    let mut indices: Vec<u32> = lines
        .iter()
        .flat_map(|line| line.msrs.first()..=line.msrs.last())
        .collect();
    indices.sort_unstable();
    indices.dedup();
    indices.len()
}

impl Profile {
    /// Whether KVM takes the filter.
    ///
    /// # Errors
    ///
    /// The compiler's, which says how many ranges are needed, what for, and which rules to do without or to widen.
    pub fn compiles(&self) -> Result<(), CompileError> {
        self.spec.compile().map(drop)
    }
}
