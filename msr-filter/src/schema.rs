//! The vocabulary as JSON schemas. A title says in words what a value may be.

use alloc::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use crate::{Access, MsrRange};

impl JsonSchema for MsrRange {
    fn schema_name() -> Cow<'static, str> {
        "MsrRange".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["integer", "string"],
            "title": "an MSR's index or name, or a range such as \"0x600-0x63f\"",
            "minimum": 0,
            "maximum": u32::MAX,
        })
    }
}

impl JsonSchema for Access {
    fn schema_name() -> Cow<'static, str> {
        "Access".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "enum": ["r", "w", "rw"] })
    }
}
