use super::*;

#[derive(Debug, PartialEq, Deserialize, Serialize)]
struct Holder {
    value: U64,
}

fn read(value: &str) -> Result<u64, String> {
    toml::from_str(&format!("value = {value}"))
        .map(|holder: Holder| holder.value.0)
        .map_err(|error| error.message().to_owned())
}

#[test]
fn integers_and_strings_in_both_bases_are_read() {
    for (text, expected) in [
        ("0", 0),
        ("31", 31),
        ("0x1f", 31),
        ("9223372036854775807", i64::MAX as u64),
        ("\"31\"", 31),
        ("\"0x1F\"", 31),
        ("\"0X1f\"", 31),
        ("\"0x8000_0000_0000_0000\"", 1 << 63),
        ("\"0xffffffffffffffff\"", u64::MAX),
        ("\"18_446_744_073_709_551_615\"", u64::MAX),
    ] {
        assert_eq!(read(text), Ok(expected), "{text}");
    }
}

#[test]
fn what_is_no_64_bit_value_is_refused_with_what_would_be_right() {
    for text in [
        "-1",
        "1.5",
        "true",
        "\"\"",
        "\"0x\"",
        "\"_\"",
        "\"0x+1\"",
        "\"+1\"",
        "\"-1\"",
        "\"0x10000000000000000\"",
        "\"18446744073709551616\"",
        "\"12ab\"",
    ] {
        let message = read(text).expect_err(text);
        assert!(
            message
                .contains("expected a 64-bit value, as an integer or a string such as \"0x1f00\""),
            "{text}: {message}"
        );
    }
}

#[test]
fn a_written_value_is_read_back() {
    for value in [0, 1, u64::MAX] {
        let text = toml::to_string(&Holder { value: U64(value) }).unwrap();
        assert_eq!(toml::from_str::<Holder>(&text).unwrap().value.0, value);
    }
}
