//! The messages of JSON-RPC: requests, answers and errors.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::method::Method;

/// A request: `{"jsonrpc": "2.0", "id": 1, "method": "status"}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Always "2.0".
    pub jsonrpc: String,
    /// What the answer is to carry; without it there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Id>,
    /// The name of the method.
    pub method: String,
    /// The method's parameters; none, or an empty object, for a method that takes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub params: Option<Value>,
}

/// What ties an answer to its request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Id {
    /// A number.
    Number(i64),
    /// A string.
    Text(String),
}

/// An answer, with either `result` or `error`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Response {
    /// Always "2.0".
    pub jsonrpc: String,
    /// That of the request; null where the request could not be read.
    pub id: Option<Id>,
    /// What was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Error>,
}

/// Why a request is not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[error("{message}")]
#[serde(deny_unknown_fields)]
pub struct Error {
    /// JSON-RPC's code: -32700 for no JSON, -32600 for no request, -32601 for no such method, -32602 for wrong
    /// parameters, -32000 for what the VM cannot do.
    pub code: i32,
    /// What is wrong and what would be right.
    pub message: String,
}

impl Error {
    /// The code for wrong parameters, which are the caller's to mend.
    pub const INVALID_PARAMS: i32 = -32602;

    pub(super) fn parse(error: &serde_json::Error) -> Self {
        Self::new(-32700, format!("the line is no JSON: {error}"))
    }

    pub(super) fn request(message: impl Into<String>) -> Self {
        Self::new(-32600, message)
    }

    pub(super) fn method(name: &str) -> Self {
        let names = Method::NAMES.join(", ");
        Self::new(
            -32601,
            format!("there is no method `{name}`; there are {names}"),
        )
    }

    pub(super) fn params(message: impl Into<String>) -> Self {
        Self::new(Self::INVALID_PARAMS, message)
    }

    /// The VM cannot do it.
    pub fn vm(error: impl ToString) -> Self {
        Self::new(-32000, error.to_string())
    }

    fn new(code: i32, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}
