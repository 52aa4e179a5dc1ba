//! Every change that is tried: of each place in a snapshot's state, what may be put there.
//!
//! The state is written by [`Written`] in a way that says where each value is in the text, so that a change is the replacement of a
//! piece of text and costs no more than that, and so that text can be made which no JSON library writes, such as a key twice.

use std::ops::Range;

use serde_json::{Map, Number, Value, json};

/// Lists of numbers that are longer are bytes of a struct or a buffer, which are changed by words.
const BLOB: usize = 16;
/// The size of a word, in bytes.
const WORD: usize = 8;

/// A replacement of a piece of the state's text.
#[derive(Clone, Debug)]
pub(super) struct Change {
    /// Where, as a JSON pointer, and what is done there.
    pub(super) what: String,
    pub(super) range: Range<usize>,
    pub(super) text: String,
    /// Whether nothing but a refusal is right: the type is another, or there is a key or a number of bytes that no struct has.
    pub(super) must_be_refused: bool,
}

impl Change {
    /// The text with the change.
    pub(super) fn made_to(&self, text: &str) -> String {
        [
            &text[..self.range.start],
            &self.text,
            &text[self.range.end..],
        ]
        .concat()
    }
}

/// A state as text, with its places.
pub(super) struct Written<'a> {
    pub(super) text: String,
    places: Vec<(String, Range<usize>, &'a Value)>,
}

impl<'a> Written<'a> {
    pub(super) fn new(body: &'a Value) -> Self {
        let mut written = Self {
            text: String::new(),
            places: Vec::new(),
        };
        written.write(body, "");
        written
    }

    fn write(&mut self, value: &'a Value, at: &str) {
        let start = self.text.len();
        let place = self.places.len();
        self.places.push((at.to_owned(), 0..0, value));
        match value {
            Value::Object(object) => {
                let mut before = '{';
                for (key, value) in object {
                    self.text.push(before);
                    self.text += &format!("{}:", Value::from(key.as_str()));
                    self.write(value, &format!("{at}/{key}"));
                    before = ',';
                }
                self.text += if object.is_empty() { "{}" } else { "}" };
            }
            Value::Array(list) if !is_blob(list) => {
                let mut before = '[';
                for (number, value) in list.iter().enumerate() {
                    self.text.push(before);
                    self.write(value, &format!("{at}/{number}"));
                    before = ',';
                }
                self.text += if list.is_empty() { "[]" } else { "]" };
            }
            _ => self.text += &value.to_string(),
        }
        self.places[place].1 = start..self.text.len();
    }

    /// How many values there are, a list of bytes being one.
    pub(super) fn places(&self) -> usize {
        self.places.len()
    }

    /// All changes; `pipe` is the path of a named pipe, which a program that opens it waits for.
    pub(super) fn changes(&self, pipe: &str) -> Vec<Change> {
        let mut changes = Vec::new();
        for (at, range, value) in &self.places {
            let mut add = |what: &str, text: String, must_be_refused| {
                changes.push(Change {
                    what: format!("{at}: {what}"),
                    range: range.clone(),
                    text,
                    must_be_refused,
                });
            };
            match value {
                Value::Object(object) => of_object(at, object, &mut add),
                Value::Array(list) if is_blob(list) => of_blob(list, &mut add),
                Value::Array(list) => of_list(list, &mut add),
                Value::Number(number) => of_number(number, &mut add),
                Value::String(text) => of_text(text, pipe, &mut add),
                Value::Bool(set) => {
                    add("the other", (!set).to_string(), false);
                    add("a number", "7".to_owned(), true);
                    add("null", "null".to_owned(), false);
                }
                Value::Null => {
                    add("a number", "7".to_owned(), false);
                    add("text", "\"x\"".to_owned(), false);
                    add("an object", UNKNOWN.to_owned(), false);
                }
            }
        }
        changes
    }
}

/// An object that is no struct's.
const UNKNOWN: &str = r#"{"no_such_key":[]}"#;

fn is_blob(list: &[Value]) -> bool {
    list.len() > BLOB && list.iter().all(Value::is_number)
}

fn of_object(at: &str, object: &Map<String, Value>, add: &mut impl FnMut(&str, String, bool)) {
    // What the state of an MSR device has is the device's, and the keys of one are kept as a table: both are read by the device.
    let is_struct = !at.contains("/state") && !at.starts_with("/live/");
    let whole = Value::Object(object.clone()).to_string();
    for key in object.keys() {
        let mut without = object.clone();
        without.remove(key);
        // Keys of the configuration have defaults.
        let needed = is_struct && !at.starts_with("/config");
        add(
            &format!("without {key}"),
            Value::Object(without).to_string(),
            needed,
        );
        let twice = format!(
            "{{{}:{},{}",
            Value::from(key.as_str()),
            object[key],
            &whole[1..]
        );
        add(&format!("{key} twice"), twice, false);
    }
    let mut more = object.clone();
    more.insert("no_such_key".to_owned(), json!([]));
    add("a key more", Value::Object(more).to_string(), is_struct);
    add("empty", "{}".to_owned(), false);
    add("a number", "7".to_owned(), is_struct);
    add("null", "null".to_owned(), false);
}

fn of_list(list: &[Value], add: &mut impl FnMut(&str, String, bool)) {
    let text = |list: &[Value]| Value::from(list).to_string();
    add("an object", UNKNOWN.to_owned(), true);
    add("a number", "7".to_owned(), true);
    add("empty", "[]".to_owned(), false);
    if let [first, rest @ ..] = list {
        add("without the first", text(rest), false);
        add(
            "the first twice",
            text(&[std::slice::from_ref(first), list].concat()),
            false,
        );
        add(
            "reversed",
            text(&list.iter().rev().cloned().collect::<Vec<_>>()),
            false,
        );
        let thousand = vec![first.clone(); 1000];
        add("a thousand times the first", text(&thousand), false);
    }
}

/// Bytes, or other numbers of a buffer. A struct of KVM's with fewer bytes, or none, or a string's, has zeros for the rest (kvm-bindings, `serde`).
fn of_blob(list: &[Value], add: &mut impl FnMut(&str, String, bool)) {
    let text = |list: &[Value]| Value::from(list).to_string();
    let with = |at: usize, bytes: &[Value]| {
        let mut list = list.to_vec();
        list[at..][..bytes.len()].clone_from_slice(bytes);
        Value::from(list).to_string()
    };
    add("an object", UNKNOWN.to_owned(), true);
    add("text", "\"x\"".to_owned(), false);
    add("a byte less", text(&list[1..]), false);
    add("a byte more", text(&[list, &[json!(0)]].concat()), true);
    add("empty", "[]".to_owned(), false);
    for (what, value) in [("256", json!(256)), ("-1", json!(-1)), ("text", json!("x"))] {
        add(&format!("the first is {what}"), with(0, &[value]), true);
    }
    for fill in [0, 255] {
        let all = vec![json!(fill); list.len()];
        add(&format!("all {fill}"), text(&all), false);
    }
    for start in (0..list.len()).step_by(WORD) {
        let length = WORD.min(list.len() - start);
        let word = &list[start..][..length];
        let flipped: Vec<_> = word
            .iter()
            .map(|byte| json!(byte.as_u64().unwrap_or(0) ^ 1 << (start / WORD % 8)))
            .collect();
        add(
            &format!("a bit of each of {start}.."),
            with(start, &flipped),
            false,
        );
        let ones = vec![json!(255); length];
        if word != ones {
            add(&format!("255 from {start} on"), with(start, &ones), false);
        }
        if word.iter().any(|byte| *byte != json!(0)) {
            let zeros = vec![json!(0); length];
            add(&format!("0 from {start} on"), with(start, &zeros), false);
        }
    }
}

fn of_number(number: &Number, add: &mut impl FnMut(&str, String, bool)) {
    add("an object", UNKNOWN.to_owned(), true);
    add("a list", "[7]".to_owned(), true);
    add("null", "null".to_owned(), false);
    add("text", "\"x\"".to_owned(), true);
    add("1e300", "1e300".to_owned(), false);
    add("beyond 64 bits", "36893488147419103232".to_owned(), false);
    for value in [-1, i64::MIN, 0, 1, 255, 256, 0xffff_ffff, i64::MAX] {
        if number.as_i64() != Some(value) {
            add(&value.to_string(), value.to_string(), false);
        }
    }
    add("the greatest", u64::MAX.to_string(), false);
    if let Some(value) = number.as_u64() {
        for bit in [0, 1, 4, 7, 12, 16, 31, 32, 47, 63] {
            add(&format!("bit {bit}"), (value ^ 1 << bit).to_string(), false);
        }
    }
}

fn of_text(text: &str, pipe: &str, add: &mut impl FnMut(&str, String, bool)) {
    add("an object", UNKNOWN.to_owned(), true);
    add("a list", "[\"x\"]".to_owned(), true);
    add("null", "null".to_owned(), false);
    add("a number", "7".to_owned(), false);
    let cut = text.chars().skip(1).collect();
    for other in [
        String::new(),
        "x".to_owned(),
        "x".repeat(100_000),
        "a\nb\u{0}c".to_owned(),
        "0xffffffffffffffff".to_owned(),
        "/nowhere".to_owned(),
        "/".to_owned(),
        "/dev/zero".to_owned(),
        pipe.to_owned(),
        cut,
    ] {
        let what: String = other.chars().take(20).collect();
        add(&format!("{what:?}"), Value::from(other).to_string(), false);
    }
}
