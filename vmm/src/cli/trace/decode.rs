//! `msr-vmm decode`: a value, field by field.

use msr_filter::{fields, names};
use serde_json::json;

use super::DecodeArgs;
use crate::cli::{Failure, print};

/// Prints what the bits of a value mean.
pub(crate) fn decode(args: &DecodeArgs) -> Result<(), Failure> {
    let (index, value) = (args.msr.first(), args.value);
    if args.msr.len() != 1 {
        return Err(Failure::usage(format!(
            "{} is a range: decode takes one MSR",
            args.msr
        )));
    }
    let name = names::name(index);
    let decoded = fields::decode(index, value);
    if args.json {
        let fields = decoded.map(|decoded| {
            let pairs = decoded.fields().map(|(field, value)| {
                json!({ "name": field.name, "bits": [field.high, field.low], "value": value,
                        "text": field.text(value).to_string() })
            });
            json!({ "source": decoded.layout().source, "fields": pairs.collect::<Vec<_>>() })
        });
        let text = json!({ "msr": index, "name": name, "value": format!("{value:#x}"), "decoded": fields });
        return print(&format!("{text}\n"));
    }
    let mut text = format!(
        "MSR {index:#x} {} = {value:#x}\n",
        name.unwrap_or("(no name known)")
    );
    match decoded {
        Some(decoded) => {
            for (field, value) in decoded.fields() {
                let bits = if field.high == field.low {
                    field.low.to_string()
                } else {
                    format!("{}:{}", field.high, field.low)
                };
                text += &format!("  {bits:>6}  {:<28} {}\n", field.name, field.text(value));
            }
            text += &format!("  ({})\n", decoded.layout().source);
        }
        None => text += "  no table of its fields\n",
    }
    print(&text)
}
