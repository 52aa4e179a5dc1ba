//! The guest's answers: one a console line, marked, in JSON.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::plan::{Plan, Step};

/// What a step came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// It was done; there is nothing to say.
    Done,
    /// A register's value.
    Value(u64),
    /// Values by MSR index or CPU number, ascending.
    Values(Vec<(u32, u64)>),
    /// EAX, EBX, ECX and EDX of CPUID.
    Cpuid([u32; 4]),
    /// Text as it was read.
    Text(String),
    /// A program ended.
    Exited {
        /// Its exit status, or 128 and the signal's number.
        status: i32,
        /// Its standard output.
        stdout: String,
        /// Its standard error.
        stderr: String,
    },
    /// Linux refused, with this error number. EIO from the msr driver is #GP.
    Errno(i32),
    /// The step failed otherwise.
    Failed(String),
}

/// A line of the guest's for the test, marked so that it stands out of the console's text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Line {
    /// The init runs.
    Up,
    /// The answer to the step of this number, from 0.
    Answer(usize, Answer),
    /// The plan cannot be followed.
    Failed(String),
    /// All steps have been taken; the guest ends as planned.
    End,
}

const MARK: &str = "@ ";

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Strings and integers always serialize; JSON escapes what would end the line.
        let json = serde_json::to_string(self).map_err(|_| fmt::Error)?;
        write!(f, "{MARK}{json}")
    }
}

/// Why a console's text is no report on a plan.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ReportError {
    /// The guest's init was not reached.
    #[error("the guest did not reach its init; its console:\n{0}")]
    NotUp(String),
    /// The init could not follow the plan.
    #[error("the guest cannot follow its plan: {0}")]
    Failed(String),
    /// A marked line is not one of ours.
    #[error("cannot read the guest's line {0:?}")]
    Garbled(String),
    /// A step has no answer.
    #[error("the guest did not get to step {number}, {step:?}; its console:\n{console}")]
    Unanswered {
        /// The first such step's number.
        number: usize,
        /// The step.
        step: Step,
        /// The console.
        console: String,
    },
    /// Every step has its answer, but the guest did not go on to its end.
    #[error("the guest did not get to its end; its console:\n{0}")]
    NoEnd(String),
}

/// A guest's answers to its plan, complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    steps: Vec<(Step, Answer)>,
}

impl Report {
    /// Finds the answers to `plan` in a console's text, which must hold all of them, in order.
    pub fn parse(plan: &Plan, console: &str) -> Result<Self, ReportError> {
        let mut lines = marked(console);
        match lines.next().transpose()? {
            Some(Line::Up) => {}
            Some(Line::Failed(text)) => return Err(ReportError::Failed(text)),
            _ => return Err(ReportError::NotUp(console.to_owned())),
        }
        let mut steps = Vec::new();
        for (number, step) in plan.steps.iter().enumerate() {
            match lines.next().transpose()? {
                Some(Line::Answer(n, answer)) if n == number => steps.push((step.clone(), answer)),
                Some(Line::Failed(text)) => return Err(ReportError::Failed(text)),
                _ => {
                    return Err(ReportError::Unanswered {
                        number,
                        step: step.clone(),
                        console: console.to_owned(),
                    });
                }
            }
        }
        match lines.next().transpose()? {
            Some(Line::End) => Ok(Self { steps }),
            _ => Err(ReportError::NoEnd(console.to_owned())),
        }
    }

    /// The steps with their answers.
    pub fn steps(&self) -> &[(Step, Answer)] {
        &self.steps
    }

    /// The answer to the step of this number, if the plan has one.
    pub fn answer(&self, number: usize) -> Option<&Answer> {
        self.steps.get(number).map(|(_, answer)| answer)
    }

    /// The value that a step read, if it read one.
    pub fn value(&self, number: usize) -> Option<u64> {
        match self.answer(number)? {
            Answer::Value(value) => Some(*value),
            _ => None,
        }
    }

    /// The text that a step read, if it read any.
    pub fn text(&self, number: usize) -> Option<&str> {
        match self.answer(number)? {
            Answer::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Whether an access of an MSR ended in #GP: Linux's msr driver makes EIO of it.
    pub fn faulted(&self, number: usize) -> bool {
        self.answer(number) == Some(&Answer::Errno(libc::EIO))
    }
}

/// The marked lines of a console's text.
fn marked(console: &str) -> impl Iterator<Item = Result<Line, ReportError>> {
    console.lines().filter_map(|line| {
        let json = line.trim_end().strip_prefix(MARK)?;
        Some(serde_json::from_str(json).map_err(|_| ReportError::Garbled(line.to_owned())))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan::new([Step::read_msr(0, 0x10), Step::KernelLog])
    }

    fn console(lines: &[Line]) -> String {
        let mut text = String::from("[    0.0] Linux version 6.1\r\n");
        for line in lines {
            text += &format!("{line}\r\nsomething else\r\n");
        }
        text
    }

    fn full() -> [Line; 4] {
        [
            Line::Up,
            Line::Answer(0, Answer::Errno(libc::EIO)),
            Line::Answer(1, Answer::Text("two\nlines @ \"quoted\"".to_owned())),
            Line::End,
        ]
    }

    #[test]
    fn answers_of_every_kind_survive_the_console() {
        let answers = [
            Answer::Done,
            Answer::Value(u64::MAX),
            Answer::Values(vec![(0, 1), (u32::MAX, u64::MAX)]),
            Answer::Cpuid([1, 2, 3, u32::MAX]),
            Answer::Text("a\r\n\0\u{fffd}".to_owned()),
            Answer::Exited {
                status: 134,
                stdout: "o\n".to_owned(),
                stderr: String::new(),
            },
            Answer::Errno(5),
            Answer::Failed("why".to_owned()),
        ];
        for answer in answers {
            let text = Line::Answer(7, answer.clone()).to_string();
            assert_eq!(text.lines().count(), 1);
            let lines: Vec<_> = marked(&text).collect();
            assert_eq!(lines, [Ok(Line::Answer(7, answer))]);
        }
    }

    #[test]
    fn a_complete_report_gives_each_steps_answer() {
        let report = Report::parse(&plan(), &console(&full())).unwrap();
        assert!(report.faulted(0));
        assert_eq!(report.value(0), None);
        assert_eq!(report.text(1), Some("two\nlines @ \"quoted\""));
        assert_eq!(report.answer(2), None);
    }

    #[test]
    fn what_is_missing_is_named() {
        let parse = |lines: &[Line]| Report::parse(&plan(), &console(lines)).unwrap_err();
        let full = full();
        assert!(matches!(parse(&full[..0]), ReportError::NotUp(_)));
        assert!(matches!(
            parse(&full[..2]),
            ReportError::Unanswered { number: 1, .. }
        ));
        assert!(matches!(parse(&full[..3]), ReportError::NoEnd(_)));
        let failed = [Line::Up, Line::Failed("no plan".to_owned())];
        assert_eq!(parse(&failed), ReportError::Failed("no plan".to_owned()));
    }

    #[test]
    fn a_garbled_line_is_shown() {
        let error = Report::parse(&plan(), "@ {\"Ans[   1.0] oops").unwrap_err();
        assert_eq!(
            error,
            ReportError::Garbled("@ {\"Ans[   1.0] oops".to_owned())
        );
    }
}
