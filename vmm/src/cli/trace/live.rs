//! `msr-vmm top`: a trace that grows, as a table that refreshes.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use msr_filter::names;
use msr_trace::{Follower, Header, Record};
use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Row, Table};

use super::args::TopArgs;
use super::unreadable;
use crate::cli::Failure;

/// How often the table is drawn anew.
const REFRESH: Duration = Duration::from_millis(500);

/// What was counted of one MSR and answerer.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Tally {
    reads: u64,
    writes: u64,
    faults: u64,
    /// Since the last refresh.
    fresh: u64,
    /// A second, of the last refresh.
    rate: f64,
}

/// What the rows are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Rate,
    Total,
    Msr,
}

/// The table.
#[derive(Debug)]
struct Board {
    rows: BTreeMap<(u32, String), Tally>,
    order: Order,
    ended: bool,
    records: u64,
}

impl Board {
    fn new() -> Self {
        Self {
            rows: BTreeMap::new(),
            order: Order::Rate,
            ended: false,
            records: 0,
        }
    }

    fn add(&mut self, header: &Header, record: &Record) {
        self.records += 1;
        let key = (record.index, header.answerer(record).to_owned());
        let tally = self.rows.entry(key).or_default();
        match record.kind {
            msr_trace::Kind::Read => tally.reads += 1,
            msr_trace::Kind::Write => tally.writes += 1,
        }
        tally.faults += u64::from(record.fault);
        tally.fresh += 1;
    }

    /// Works out the rates of the time since the last call.
    fn settle(&mut self, elapsed: Duration) {
        for tally in self.rows.values_mut() {
            tally.rate = tally.fresh as f64 / elapsed.as_secs_f64().max(0.001);
            tally.fresh = 0;
        }
    }

    /// The rows as they are shown.
    fn sorted(&self) -> Vec<(&(u32, String), &Tally)> {
        let mut rows: Vec<_> = self.rows.iter().collect();
        match self.order {
            Order::Rate => rows.sort_by(|a, b| {
                b.1.rate
                    .total_cmp(&a.1.rate)
                    .then(b.1.total().cmp(&a.1.total()))
            }),
            Order::Total => rows.sort_by_key(|(_, tally)| Reverse(tally.total())),
            Order::Msr => {}
        }
        rows
    }

    fn draw(&self, frame: &mut Frame<'_>) {
        let [head, body, foot] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Fill(1),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        let state = if self.ended {
            "the recording has ended"
        } else {
            "recording"
        };
        let rate: f64 = self.rows.values().map(|tally| tally.rate).sum();
        frame.render_widget(
            Line::raw(format!(
                "{} accesses, {rate:.0} a second; {state}",
                self.records
            )),
            head,
        );
        let rows = self.sorted().into_iter().map(|((index, by), tally)| {
            Row::new([
                format!("{index:#010x}"),
                names::name(*index).unwrap_or("-").to_owned(),
                by.clone(),
                format!("{:.0}", tally.rate),
                tally.reads.to_string(),
                tally.writes.to_string(),
                tally.faults.to_string(),
            ])
        });
        let widths = [12, 34, 16, 10, 10, 10, 10].map(Constraint::Length);
        let heads = [
            "MSR",
            "name",
            "answered by",
            "rate/s",
            "reads",
            "writes",
            "faults",
        ];
        let bold = Style::new().add_modifier(Modifier::REVERSED);
        frame.render_widget(
            Table::new(rows, widths).header(Row::new(heads).style(bold)),
            body,
        );
        frame.render_widget(Line::raw("sort by  r rate  t total  m MSR    q quit"), foot);
    }
}

impl Tally {
    fn total(&self) -> u64 {
        self.reads + self.writes
    }
}

/// Shows the table until a key ends it.
pub(crate) fn top(args: &TopArgs) -> Result<(), Failure> {
    let mut follower =
        Follower::open(&args.file).map_err(|error| unreadable(&args.file, &error))?;
    let header = follower.header().clone();
    let mut board = Board::new();
    // What was recorded before is counted, and is no rate.
    let mut terminal = ratatui::try_init().map_err(Failure::fault)?;
    let outcome = (|| {
        let mut last = Instant::now();
        let mut first = true;
        loop {
            loop {
                let records = follower
                    .poll()
                    .map_err(|error| unreadable(&args.file, &error))?;
                records.iter().for_each(|record| board.add(&header, record));
                if records.is_empty() {
                    break;
                }
            }
            board.ended = follower.ended();
            if first {
                board.rows.values_mut().for_each(|tally| tally.fresh = 0);
                first = false;
            }
            board.settle(last.elapsed());
            last = Instant::now();
            terminal
                .draw(|frame| board.draw(frame))
                .map_err(Failure::fault)?;
            if !keys(&mut board).map_err(Failure::fault)? {
                return Ok(());
            }
        }
    })();
    ratatui::restore();
    outcome
}

/// Takes keys until it is time to refresh; `false` once it is time to end.
fn keys(board: &mut Board) -> std::io::Result<bool> {
    let until = Instant::now() + REFRESH;
    loop {
        if !event::poll(until.saturating_duration_since(Instant::now()))? {
            return Ok(true);
        }
        let Event::Key(key) = event::read()? else {
            continue;
        };
        if key.kind != KeyEventKind::Press {
            continue;
        }
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return Ok(false),
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => {
                return Ok(false);
            }
            KeyCode::Char('r') => board.order = Order::Rate,
            KeyCode::Char('t') => board.order = Order::Total,
            KeyCode::Char('m') => board.order = Order::Msr,
            _ => continue,
        }
        return Ok(true);
    }
}

#[cfg(test)]
mod tests {
    use msr_trace::{Answerer, Kind, Reason};
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;

    fn board() -> Board {
        let header = Header::default();
        let mut board = Board::new();
        for (index, times) in [(0x10, 3), (0x611, 8)] {
            for _ in 0..times {
                board.add(
                    &header,
                    &Record {
                        time: 0,
                        vcpu: 0,
                        index,
                        kind: Kind::Read,
                        value: 0,
                        rip: None,
                        fault: index == 0x10,
                        injected: false,
                        answerer: Answerer::Fallback(Reason::Unknown),
                    },
                );
            }
        }
        board.settle(Duration::from_secs(2));
        board
    }

    #[test]
    fn rows_are_sorted_by_rate_and_show_counts() {
        let mut terminal = Terminal::new(TestBackend::new(110, 6)).unwrap();
        terminal.draw(|frame| board().draw(frame)).unwrap();
        let screen = terminal.backend().to_string();
        let lines: Vec<&str> = screen.lines().collect();
        assert!(lines[0].contains("11 accesses, 6 a second"), "{screen}");
        assert!(
            lines[2].contains("MSR_PKG_ENERGY_STATUS") && lines[2].contains("unclaimed"),
            "{screen}"
        );
        assert!(lines[3].contains("IA32_TIME_STAMP_COUNTER"), "{screen}");
    }

    #[test]
    fn other_orders_are_by_total_and_by_index() {
        let mut board = board();
        board.settle(Duration::from_secs(1));
        board.order = Order::Total;
        assert_eq!(board.sorted()[0].0.0, 0x611);
        board.order = Order::Msr;
        assert_eq!(board.sorted()[0].0.0, 0x10);
    }
}
