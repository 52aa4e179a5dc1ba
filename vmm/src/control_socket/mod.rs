//! The control socket: what another process can ask of a running VM.
//!
//! The protocol is JSON-RPC 2.0 (<https://www.jsonrpc.org/specification>) on a UNIX stream socket, one message a line. The
//! methods with their parameters and results are [`Method`] and the types beside it; `docs/control-socket.schema.json` is
//! made of them. A request without `id` is a notification and gets no answer. Batches are not served.
//!
//! The event loop of `msr-vmm run` serves the socket and never waits for a client: sockets do not block, a line has at
//! most [`MAX_LINE`] bytes, a client that does not read its answers is not read from, and further clients than
//! [`MAX_CLIENTS`] wait in the listen queue. What a client can make the VMM hold is bounded by that. vCPUs serve no
//! client; a request that needs one (an MSR) takes it out of KVM_RUN for as long as that access lasts.
//!
//! Whoever can connect controls the VM. The socket's mode is 0600 from the moment it exists, and there is no other
//! authentication.
//!
//! A socket that a killed VMM left behind is replaced; one that is served, or a file of another kind, is an error.

#![forbid(unsafe_code)]

mod client;
mod connection;
mod listener;
mod method;
mod protocol;
mod results;
mod schema;
mod server;
mod vm_methods;

pub use client::{Client, ClientError};
pub use connection::MAX_LINE;
pub use listener::{ControlSocket, ListenError};
pub use method::{
    DeviceParams, DeviceSetParams, FilterText, Method, MsrParams, ScenarioText, SnapshotParams,
    TraceParams, WriteMsrParams,
};
pub use protocol::{Error, Id, Request, Response};
pub use results::{
    DeviceDetails, DeviceSummary, FilterRule, MsrResult, MsrStat, Notice, SnapshotResult, State,
    Status, TraceResult, WaitResult,
};
pub use schema::schema;
pub use server::{Handler, MAX_CLIENTS, Server, Waiting};
pub use vm_methods::{Files, VmMethods};
