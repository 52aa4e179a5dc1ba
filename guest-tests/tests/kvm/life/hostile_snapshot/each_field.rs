//! Every place of the state is changed in every way of [`changes`](super::changes), one at a time.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use guest_tests::{assets, settings};
use libtest_mimic::Failed;
use msr_vmm::control_socket::{Client, Method};
use msr_vmm::snapshot::Snapshot;

use super::changes::{Change, Written};
use super::{Outcome, Saved, attempt, outcome_class};

/// How many changes are tried unless all are.
const SOME: usize = 1000;
/// How many of those that are not refused by reading the state are tried: a VM takes time to make.
const SOME_BUILT: usize = 150;
/// How many changes of each outcome the program is given, too.
const BY_PROGRAM: usize = 3;
/// How many VMs there are at a time: the end of one waits for the kernel.
const WORKERS: usize = 4;
/// The longest that one change may take.
const LIMIT: Duration = Duration::from_secs(60);

pub(super) fn some_changes() -> Result<(), Failed> {
    changes(Some((SOME, SOME_BUILT)))
}

pub(super) fn all_changes() -> Result<(), Failed> {
    changes(None)
}

/// What came of the changes so far.
#[derive(Default)]
struct Tally {
    /// By outcome: how many, and the first of them.
    outcomes: BTreeMap<String, (usize, Vec<Change>)>,
    wrong: Vec<String>,
}

struct Trials<'a> {
    changes: Vec<Change>,
    text: &'a str,
    next: AtomicUsize,
    built: AtomicUsize,
    /// How many VMs may be built.
    most_built: usize,
    left_out: AtomicUsize,
    tally: Mutex<Tally>,
    /// What each worker is at, since when.
    at: Vec<Mutex<Option<(Instant, String)>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn changes(limits: Option<(usize, usize)>) -> Result<(), Failed> {
    let saved = Saved::new()?;
    let body = saved.body()?;
    let written = Written::new(&body);
    let pipe = saved.folder.path("pipe");
    make_pipe(&pipe)?;
    let all = written.changes(&pipe.to_string_lossy());
    let total = all.len();
    let (most, most_built) = limits.unwrap_or((total, total));
    // Spread evenly, from another start each time.
    let step = total.div_ceil(most.max(1)).max(1);
    let seed = settings::seed()?;
    let mut tried: Vec<Change> = all
        .into_iter()
        .skip(seed as usize % step)
        .step_by(step)
        .collect();
    // So that those for which a VM is built are from all of the state.
    shuffle(&mut tried, seed);
    let count = tried.len();
    let trials = Trials {
        changes: tried,
        text: &written.text,
        next: AtomicUsize::new(0),
        built: AtomicUsize::new(0),
        most_built,
        left_out: AtomicUsize::new(0),
        tally: Mutex::default(),
        at: (0..WORKERS).map(|_| Mutex::new(None)).collect(),
    };
    let begin = Instant::now();
    thread::scope(|scope| -> Result<(), Failed> {
        let workers: Vec<_> = (0..WORKERS)
            .map(|worker| {
                let (trials, saved) = (&trials, &saved);
                scope.spawn(move || trials.work(worker, saved))
            })
            .collect();
        while workers.iter().any(|worker| !worker.is_finished()) {
            for at in &trials.at {
                if let Some((since, what)) = &*lock(at)
                    && since.elapsed() > LIMIT
                {
                    // The thread that hangs would be waited for.
                    eprintln!("{what}: not done after {LIMIT:?}");
                    std::process::abort();
                }
            }
            thread::sleep(Duration::from_millis(20));
        }
        for worker in workers {
            worker.join().map_err(|_| "a worker panicked")??;
        }
        Ok(())
    })?;
    let took = begin.elapsed();
    let mut tally = trials
        .tally
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    let mut by_program = 0;
    for (_, changes) in tally.outcomes.values() {
        for change in changes {
            if let Err(error) = by_the_program(&saved, &written.text, change) {
                let words = error.message().unwrap_or_default().to_owned();
                tally.wrong.push(words);
            }
            by_program += 1;
        }
    }
    let left_out = trials.left_out.into_inner();
    let tried = count - left_out;
    println!(
        "hostile snapshot: {tried} of {total} changes at {} places in {took:.0?}, {by_program} of them by the program too",
        written.places()
    );
    for (outcome, (count, _)) in &tally.outcomes {
        println!("  {count:6} {outcome}");
    }
    if let Some(wrong) = tally.wrong.first() {
        let wrongs = tally
            .wrong
            .iter()
            .take(30)
            .map(String::as_str)
            .collect::<Vec<_>>();
        return Err(format!(
            "{} wrong, such as {wrong}\n{}",
            tally.wrong.len(),
            wrongs.join("\n")
        )
        .into());
    }
    let of = |wanted: &str| -> usize {
        let outcomes = tally.outcomes.iter();
        let counts = outcomes.filter(|(outcome, _)| outcome.starts_with(wanted));
        counts.map(|(_, (count, _))| count).sum()
    };
    // Each layer refuses something, and each lets through what only makes another guest.
    for (outcome, least) in [
        ("refused: Damaged", tried / 10),
        ("refused: Cpuid", 1),
        ("refused: Msrs", 1),
        ("runs", most_built.min(tried) / 20),
    ] {
        if of(outcome) < least {
            return Err(format!("{} and not {least} times `{outcome}`", of(outcome)).into());
        }
    }
    fs::remove_file(pipe)?;
    saved.only_its_files_are_left()
}

/// A named pipe.
fn make_pipe(path: &Path) -> Result<(), Failed> {
    use std::os::unix::ffi::OsStrExt;
    let name = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the name ends in a zero byte and outlives the call.
    if unsafe { libc::mkfifo(name.as_ptr(), 0o600) } != 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    Ok(())
}

/// Fisher and Yates's, by a generator that needs no quality.
fn shuffle(changes: &mut [Change], seed: u64) {
    let mut state = seed | 1;
    for last in (1..changes.len()).rev() {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        changes.swap(last, (state >> 33) as usize % (last + 1));
    }
}

impl Trials<'_> {
    fn work(&self, worker: usize, saved: &Saved) -> Result<(), Failed> {
        let copy = saved.copy(1 + worker as u8)?;
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(change) = self.changes.get(number) else {
                break;
            };
            *lock(&self.at[worker]) = Some((Instant::now(), change.what.clone()));
            copy.put(&change.made_to(self.text))?;
            self.one(&copy.folder, change);
            *lock(&self.at[worker]) = None;
        }
        Ok(())
    }

    fn one(&self, folder: &Path, change: &Change) {
        // Whether the state can be read is known quickly.
        let outcome = match Snapshot::read(folder) {
            Err(error) => Outcome::refused(error.into()),
            Ok(_) if self.built.fetch_add(1, Ordering::Relaxed) >= self.most_built => {
                self.left_out.fetch_add(1, Ordering::Relaxed);
                return;
            }
            Ok(_) => match std::panic::catch_unwind(|| attempt(folder)) {
                Ok(outcome) => outcome,
                Err(_) => {
                    let mut tally = lock(&self.tally);
                    tally.wrong.push(format!("{}: a panic", change.what));
                    return;
                }
            },
        };
        let mut tally = lock(&self.tally);
        let odd = is_quoted_at_length(change);
        let wrong = match &outcome {
            Outcome::Panicked(words) => Some(words.clone()),
            Outcome::Runs { .. } if change.must_be_refused => Some("it is not refused".to_owned()),
            Outcome::Refused { words, .. } if words.len() < 20 || !odd && words.contains('\n') => {
                Some(format!("it says {words:?}"))
            }
            Outcome::Refused { words, .. } if !odd && words.len() > 2000 => {
                Some(format!("it says {} bytes", words.len()))
            }
            _ => None,
        };
        tally
            .wrong
            .extend(wrong.map(|words| format!("{}: {words}", change.what)));
        let (count, first) = tally.outcomes.entry(outcome_class(&outcome)).or_default();
        *count += 1;
        if first.len() < BY_PROGRAM {
            first.push(change.clone());
        }
    }
}

/// Whether a text of many bytes or lines is put there: what is said of it is as long.
fn is_quoted_at_length(change: &Change) -> bool {
    change.text.len() > 1000 || change.text.contains("\\n")
}

/// `msr-vmm restore` refuses it with one line, or runs it until it is told to stop.
fn by_the_program(saved: &Saved, text: &str, change: &Change) -> Result<(), Failed> {
    let copy = saved.copy(9)?;
    copy.put(&change.made_to(text))?;
    let socket = saved.folder.path("socket");
    let mut child = Command::new(assets::msr_vmm()?)
        .args(["--log", "error", "restore"])
        .arg(&copy.folder)
        .arg("--control")
        .arg(&socket)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    // A pipe may hold less than what is said of a long text.
    let mut stderr = child.stderr.take().ok_or("no pipe")?;
    let reader = thread::spawn(move || {
        let mut said = Vec::new();
        stderr.read_to_end(&mut said).map(|_| said)
    });
    let begin = Instant::now();
    while child.try_wait()?.is_none() {
        // It answers once the guest runs. One that has ended in between is seen above.
        if let Ok(mut client) = Client::connect(&socket) {
            let _ = client.call(&Method::Stop);
        }
        if begin.elapsed() > LIMIT {
            child.kill()?;
            return Err(format!("{}: the program does not end", change.what).into());
        }
        thread::sleep(Duration::from_millis(2));
    }
    let status = child.wait()?;
    let said = reader.join().map_err(|_| "the reader panicked")??;
    // The sandbox keeps a VMM that got that far from removing its socket.
    let _ = std::fs::remove_file(&socket);
    let said = String::from_utf8_lossy(&said);
    // What the guest of a changed state does first may be to write to the console, to fault or to switch itself off.
    let in_order = matches!(status.code(), Some(0..=2));
    let told_why = status.success() || said.starts_with("msr-vmm: ") || said.contains("ERROR");
    let faulted = said.contains("vCPU");
    if !in_order
        || !told_why
        || said.contains("panicked")
        || (said.lines().count() > 1 && !faulted && !is_quoted_at_length(change))
    {
        return Err(format!("{}: {}: {said}", change.what, status).into());
    }
    Ok(())
}
