//! Changes of a JSON value, as an input says them.

use arbitrary::{Arbitrary, Result, Unstructured};
use serde_json::{Map, Value};

/// The most changes of one input.
const MOST: usize = 8;
/// The most elements that a list is made to have by repeating one.
const MOST_REPEATED: usize = 64;
/// A key that nothing has.
const UNKNOWN: &str = "no_such_key";

#[derive(Arbitrary)]
enum Change<'a> {
    Put(Put<'a>),
    /// One of the value's keys or elements goes.
    Remove(u8),
    /// A key more.
    Add,
    /// One element, again and again.
    Repeat {
        element: u8,
        count: u8,
    },
    /// What is at another place.
    CopyFrom(u16),
}

#[derive(Arbitrary)]
enum Put<'a> {
    Null,
    Bool(bool),
    Number(u64),
    Negative(u32),
    Float(f64),
    /// A bit of the number that is there.
    Bit(u8),
    Text(&'a str),
    /// One of the values that a list or an object is otherwise compared with.
    Empty {
        object: bool,
    },
    Number32(u32),
    Number8(u8),
}

/// Changes `body` as `u` says. If all that has changed is a key more in a struct of the state, which makes any reader refuse it,
/// the result names its place.
pub(super) fn make(body: &mut Value, u: &mut Unstructured<'_>) -> Result<Option<String>> {
    let (mut count, mut unknown_key) = (0, None);
    while !u.is_empty() && count < MOST {
        let mut places = Vec::new();
        list(body, String::new(), &mut places);
        let place = u.choose(&places)?;
        let change = Change::arbitrary(u)?;
        let other = match change {
            Change::CopyFrom(from) => body.pointer(&places[usize::from(from) % places.len()]),
            _ => None,
        };
        let other = other.cloned();
        let value = body.pointer_mut(place).expect("a place of the value");
        let added = apply(value, change, other);
        unknown_key = (added && count == 0 && is_struct(place)).then(|| place.clone());
        count += 1;
    }
    Ok(unknown_key)
}

/// The places in a value, as JSON pointers.
fn list(value: &Value, at: String, places: &mut Vec<String>) {
    match value {
        Value::Object(object) => object
            .iter()
            .for_each(|(key, value)| list(value, format!("{at}/{key}"), places)),
        Value::Array(array) => (0..)
            .zip(array)
            .for_each(|(n, value)| list(value, format!("{at}/{n}"), places)),
        _ => {}
    }
    places.push(at);
}

/// Not the keys of MSR devices, nor their states: those are read by the device, when there is one.
fn is_struct(place: &str) -> bool {
    ["/state", "/live", "/config/msr/device"]
        .iter()
        .all(|free| !place.contains(free))
}

/// Changes a value, and says whether it has a key more.
fn apply(value: &mut Value, change: Change<'_>, other: Option<Value>) -> bool {
    match (change, &mut *value) {
        (Change::Put(put), _) => *value = new(put, value),
        (Change::Remove(which), Value::Object(object)) => {
            let key = object.keys().nth(usize::from(which) % object.len().max(1));
            if let Some(key) = key.cloned() {
                object.remove(&key);
            }
        }
        (Change::Remove(which), Value::Array(array)) if !array.is_empty() => {
            array.remove(usize::from(which) % array.len());
        }
        (Change::Add, Value::Object(object)) => {
            object.insert(UNKNOWN.to_owned(), Value::Null);
            return true;
        }
        (Change::Repeat { element, count }, Value::Array(array)) if !array.is_empty() => {
            let element = array[usize::from(element) % array.len()].clone();
            let count = usize::from(count) % MOST_REPEATED;
            array.extend(std::iter::repeat_n(element, count));
        }
        (Change::CopyFrom(_), _) => *value = other.unwrap_or_default(),
        _ => {}
    }
    false
}

fn new(put: Put<'_>, old: &Value) -> Value {
    match put {
        Put::Null => Value::Null,
        Put::Bool(set) => set.into(),
        Put::Number(number) => number.into(),
        Put::Number32(number) => number.into(),
        Put::Number8(number) => number.into(),
        Put::Negative(number) => (-i64::from(number)).into(),
        Put::Float(number) => number.into(),
        Put::Bit(bit) => (old.as_u64().unwrap_or(0) ^ 1 << (bit % 64)).into(),
        Put::Text(text) => text.into(),
        Put::Empty { object: true } => Map::new().into(),
        Put::Empty { object: false } => Vec::<Value>::new().into(),
    }
}
