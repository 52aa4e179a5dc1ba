//! Schedules on a clock that the test moves.

use super::*;

/// What was asked to be watched.
#[derive(Default)]
struct Asked(Vec<String>);

impl Watch for Asked {
    fn console(&mut self, id: u32, text: &str) {
        self.0.push(format!("{id} console {text}"));
    }

    fn accesses(&mut self, id: u32, msr: u32, count: u64) {
        self.0.push(format!("{id} {msr:#x} {count}"));
    }
}

fn scenario(toml: &str) -> ScenarioConfig {
    toml::from_str(toml).expect("the test wrote it")
}

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// What is done at a time: the titles.
fn done(schedule: &mut Schedule, asked: &mut Asked, now: u64) -> Vec<String> {
    let take = || schedule.take_due(ms(now), asked).map(|due| due.title);
    std::iter::from_fn(take).collect()
}

#[test]
fn steps_follow_each_other_by_time() {
    let (mut schedule, mut asked) = (Schedule::default(), Asked::default());
    let config = scenario(
        "name = 'heat'
         [[step]]
         do = 'pause'
         [[step]]
         wait = '5s'
         do = 'resume'
         [[step]]
         at = '6s'
         do = 'stop'
         [[step]]
         at = '1s'
         do = 'stop'",
    );
    schedule.begin(config, ms(1000), &mut asked);
    assert_eq!(
        done(&mut schedule, &mut asked, 1000),
        ["scenario heat, step 1"]
    );
    assert_eq!(schedule.deadline(), Some(ms(6000)));
    assert!(done(&mut schedule, &mut asked, 5999).is_empty());
    assert_eq!(
        done(&mut schedule, &mut asked, 6100),
        ["scenario heat, step 2"]
    );
    // Six seconds after the beginning, and what should have been before at once after it.
    assert_eq!(schedule.deadline(), Some(ms(7000)));
    assert_eq!(
        done(&mut schedule, &mut asked, 7000),
        ["scenario heat, step 3", "scenario heat, step 4"]
    );
    assert_eq!((schedule.deadline(), schedule.len()), (None, 0));
    assert!(asked.0.is_empty());
}

#[test]
fn a_step_waits_for_all_that_it_names_and_then_for_its_time() {
    let (mut schedule, mut asked) = (Schedule::default(), Asked::default());
    let config = scenario(
        "[[step]]
         after = 'login:'
         accesses = { msr = 0x19c, count = 3 }
         at = '2s'
         wait = '1s'
         do = 'power-button'",
    );
    schedule.begin(config, ms(0), &mut asked);
    assert_eq!(asked.0, ["0 console login:", "0 0x19c 3"]);
    assert_eq!(schedule.deadline(), None);
    schedule.seen(0, Seen::Accesses, ms(100));
    assert_eq!(schedule.deadline(), None);
    schedule.seen(0, Seen::Console, ms(200));
    assert_eq!(schedule.deadline(), Some(ms(3000)));
    // A second time, and of a scenario that is not there, it means nothing.
    schedule.seen(0, Seen::Console, ms(2900));
    schedule.seen(1, Seen::Console, ms(2900));
    assert_eq!(schedule.deadline(), Some(ms(3000)));
    assert_eq!(
        done(&mut schedule, &mut asked, 3000),
        ["scenario 1, step 1"]
    );
}

#[test]
fn rounds_begin_anew_and_end_where_they_are_to() {
    let (mut schedule, mut asked) = (Schedule::default(), Asked::default());
    let config = scenario(
        "repeat = 2
         [[step]]
         after = '#'
         do = 'pause'
         [[step]]
         at = '1s'
         do = 'resume'",
    );
    schedule.begin(config, ms(0), &mut asked);
    for (round, now) in [(1, 0), (2, 5000)] {
        schedule.seen(0, Seen::Console, ms(now));
        let title = |step| format!("scenario 1, round {round}, step {step}");
        assert_eq!(done(&mut schedule, &mut asked, now), [title(1)]);
        assert_eq!(done(&mut schedule, &mut asked, now + 6000), [title(2)]);
    }
    assert_eq!((asked.0.len(), schedule.len()), (2, 0));
}

#[test]
fn the_same_seed_gives_the_same_waits_and_another_one_others() {
    let waits = |seed: u64| -> Vec<Duration> {
        let (mut schedule, mut asked) = (Schedule::default(), Asked::default());
        let config = format!(
            "repeat = 50
             seed = {seed}
             [[step]]
             wait = '10ms'
             jitter = '100ms'
             do = 'pause'"
        );
        schedule.begin(scenario(&config), ms(0), &mut asked);
        let mut now = Duration::ZERO;
        let mut waits = Vec::new();
        while let Some(due) = schedule.deadline() {
            waits.push(due - now);
            now = due;
            assert!(schedule.take_due(now, &mut asked).is_some());
        }
        waits
    };
    let first = waits(1);
    assert_eq!((first.len(), &first), (50, &waits(1)));
    assert_ne!(first, waits(2));
    assert!(
        first.iter().all(|wait| (ms(10)..ms(110)).contains(wait)),
        "{first:?}"
    );
    let shortest = first.iter().min().unwrap();
    let longest = first.iter().max().unwrap();
    assert!(*longest - *shortest > ms(50), "{first:?}");
}

#[test]
fn scenarios_run_beside_each_other_and_the_longest_due_comes_first() {
    let (mut schedule, mut asked) = (Schedule::default(), Asked::default());
    for (name, wait) in [("slow", "20ms"), ("quick", "10ms")] {
        let config =
            format!("name = '{name}'\nrepeat = 2\n[[step]]\nwait = '{wait}'\ndo = 'pause'");
        schedule.begin(scenario(&config), ms(0), &mut asked);
    }
    assert_eq!(
        done(&mut schedule, &mut asked, 20),
        [
            "scenario quick, round 1, step 1",
            "scenario slow, round 1, step 1"
        ]
    );
    assert_eq!(
        done(&mut schedule, &mut asked, 30),
        ["scenario quick, round 2, step 1"]
    );
    assert_eq!(schedule.len(), 1);
}
