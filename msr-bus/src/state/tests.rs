use super::*;

fn state() -> BusState {
    BusState {
        faults: Vec::new(),
        version: BusState::VERSION,
        devices: vec![NamedState {
            device: "scratch".into(),
            state: DeviceState::encode(3, &[1u64, u64::MAX]),
        }],
    }
}

#[test]
fn a_state_survives_json() {
    let read = BusState::from_json(&state().to_json()).unwrap();
    assert_eq!(read, state());
    assert_eq!(
        read.devices[0].state.decode::<Vec<u64>>(3).unwrap(),
        [1, u64::MAX]
    );
}

#[test]
fn a_state_of_another_version_is_refused_whatever_its_shape() {
    let error = BusState::from_json("{\"version\": 2, \"registers\": [1, 2]}").unwrap_err();
    assert_eq!(
        error.to_string(),
        "the state has version 2, this program reads version 1"
    );
}

#[test]
fn text_that_is_no_state_is_refused_as_damaged() {
    let whole = state().to_json();
    // Every way of cutting it short, and some ways of being something else.
    let cut = (0..whole.len()).map(|end| &whole[..end]);
    let other = [
        "null",
        "[]",
        "{}",
        "{\"version\": -1}",
        "{\"version\": \"1\"}",
        "{\"version\": 1}",
        "{\"version\": 1, \"devices\": [{}]}",
        "{\"version\": 1, \"devices\": [], \"more\": 0}",
    ];
    for text in cut.chain(other) {
        let error = BusState::from_json(text).unwrap_err();
        assert!(matches!(error, RestoreError::Data(_)), "{text}: {error}");
    }
}

#[test]
fn data_of_another_shape_is_refused_as_damaged() {
    let error = DeviceState::encode(1, &"text")
        .decode::<Vec<u64>>(1)
        .unwrap_err();
    assert!(matches!(error, RestoreError::Data(_)), "{error}");
}
